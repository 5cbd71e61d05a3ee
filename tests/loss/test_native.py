"""The compiled library: its description, instruction sets, memory, and errors where it is missing."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from closed_forms import UNIT, closed_forms, make_logits, run

from ensdistill.functional import distillation_loss
from ensdistill.loss import ops

ROOT = Path(__file__).parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


def test_build_info_names_the_built_and_the_runnable_sets():
    info = ops.build_info()
    assert info["torch"]["running"] == torch.__version__
    assert tuple(map(int, info["torch"]["stable_abi"].split("."))) <= tuple(
        map(int, torch.__version__.split("+")[0].split(".")[:2])
    )
    cpu = info["cpu"]
    assert cpu["compiled"][0] == "baseline"
    assert set(cpu["runnable"]) <= set(cpu["compiled"])
    assert cpu["instruction_set"] == ops.instruction_set() == cpu["runnable"][-1]  # the widest by default
    assert cpu["threads"] == torch.get_num_threads()
    assert cpu["cores"] >= 1
    assert info["cuda"]["built"] == bool(info["cuda"]["architectures"])
    if not torch.cuda.is_available():
        assert info["cuda"]["devices"] == []


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells what the processor has")
def test_runnable_sets_are_those_of_the_processor():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    expected = ["baseline"]
    if {"avx2", "fma"} <= flags:
        expected.append("avx2")
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        expected.append("avx512")
    assert ops.build_info()["cpu"]["runnable"] == expected


def test_an_instruction_set_can_be_chosen(instruction_set):
    assert ops.instruction_set() == instruction_set
    assert ops.build_info()["cpu"]["instruction_set"] == instruction_set


def test_instruction_sets_are_really_different():
    """Their sums of a wide row have different orders, so in the last bits they differ: choosing one does
    choose another kernel."""
    student, targets = make_logits(37, 5003, seed=0), make_logits(3, 37, 5003, seed=1)
    before, losses = ops.instruction_set(), []
    try:
        for name in ops.build_info()["cpu"]["runnable"]:
            ops.use_instruction_set(name)
            losses.append(tuple(distillation_loss(student, targets, reduction="none").tolist()))
    finally:
        ops.use_instruction_set(before)
    assert len(set(losses)) == len(losses)


def test_small_probabilities_have_all_their_digits(instruction_set):
    """With the teacher on class 0, whose logit is the largest and 0, the other gradients of a forward KL are
    q: exp, sum and division."""
    student = -80 * torch.rand(200, 33, generator=torch.Generator().manual_seed(0))
    targets = torch.full((1, 200, 33), -torch.inf)
    student[:, 0], targets[..., 0] = 0, 0
    for divergence in ("forward_kl", "jsd"):
        _, gradient = run(student, targets, divergence=divergence, reduction="none")
        truth = closed_forms(student, targets, divergence=divergence, reduction="none").gradient
        # 6 roundings of float32; an exponential that is off by 3e-7 would not pass
        assert ((gradient.double() - truth) / truth)[:, 1:].abs().max() <= 6 * UNIT[torch.float32]


def test_release_memory_gives_back_kept_memory():
    """A gradient's memory, and never memory that is still in use."""
    student = torch.zeros(64, 8192, requires_grad=True)
    ops.release_memory()
    loss = distillation_loss(student, torch.zeros(1, 64, 8192))
    assert ops.release_memory() == 0
    (gradient,) = torch.autograd.grad(loss, student)
    del loss
    assert ops.release_memory() == 0
    del gradient
    assert ops.release_memory() == student.nbytes
    assert ops.release_memory() == 0
    small = distillation_loss(student[:1], torch.zeros(1, 1, 8192))
    del small
    assert ops.release_memory() == 0  # 32 KiB aren't worth keeping


@pytest.mark.parametrize("name", ["avx1024", "", "AVX2"])
def test_an_unknown_instruction_set_is_refused(name):
    before = ops.instruction_set()
    with pytest.raises(
        ValueError, match=f"instruction set: '{name}' is not compiled in or doesn't run on this machine"
    ):
        ops.use_instruction_set(name)
    assert ops.instruction_set() == before


def test_the_error_of_a_missing_library_names_the_build_command():
    result = python("""
        import sys
        sys.modules["ensdistill._cpu"] = None  # what an import finds then is ImportError
        import ensdistill.functional
    """)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: ensdistill's compiled part is missing or doesn't load (")
    for advice in (
        "C++17 compiler",
        "apt-get install g++",
        "make setup",
        "pip install --no-build-isolation .",
    ):
        assert advice in message


def built(command, folder, **change):
    """The output of a build where no program is found by its name."""
    environment = {
        **os.environ,
        "PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **change,
    }
    environment.pop("CXX", None)
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_build_without_compiler_or_headers_names_the_packages_to_install(tmp_path):
    compiler = "ensdistill: a C++17 compiler is missing. Debian/Ubuntu: `apt-get install g++`"
    assert compiler in built([sys.executable, "setup.py", "--version"], tmp_path)
    (tmp_path / "c++").symlink_to(sys.executable)
    code = "import runpy, sysconfig; sysconfig.get_path = lambda name: '/none'; runpy.run_path('setup.py')"
    assert (
        "Python's headers are missing (/none/Python.h). Debian/Ubuntu: `apt-get install python3-dev`"
        in built([sys.executable, "-c", code], tmp_path)
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_names_the_packages_to_install(tmp_path):
    make = [shutil.which("make"), "-s", "-f", ROOT / "Makefile", "-C", tmp_path, "setup"]
    (tmp_path / "pyproject.toml").touch()
    assert "ensdistill needs a C++17 compiler. Debian/Ubuntu: apt-get install g++" in built(
        [*make, f"PYTHON={sys.executable}"], tmp_path
    )
    (tmp_path / "c++").symlink_to(sys.executable)
    (tmp_path / "without").write_text(
        f'#!/bin/sh\ncase "$2" in *Python.h*) exit 1;; esac\nexec "{sys.executable}" "$@"\n'
    )
    (tmp_path / "without").chmod(0o755)
    assert (
        "ensdistill needs Python's headers (Python.h). Debian/Ubuntu: apt-get install python3-dev"
        in built([*make, f"PYTHON={tmp_path / 'without'}"], tmp_path)
    )
    assert not (tmp_path / ".venv").exists()


def test_a_library_that_is_there_and_does_not_load_is_an_error(tmp_path):
    """A CUDA library for another torch must not end as "no CUDA"."""
    suffix = ".so" if sys.platform != "win32" else ".pyd"
    (tmp_path / f"_cuda{suffix}").write_bytes(b"\x7fELF is not enough")
    result = python(f"""
        import ensdistill
        ensdistill.__path__.append({str(tmp_path)!r})
        import ensdistill.loss._native
    """)
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert f"_cuda{suffix}" in result.stderr


def test_the_loss_needs_nothing_but_torch():
    """The rest of the package is for other users; this import must stay light."""
    result = python("""
        import sys, torch
        before = set(sys.modules)
        import ensdistill.functional
        new = set(sys.modules) - before
        print(*sorted({name.split(".")[0] for name in new}), *{"torch._dynamo"} & new)
    """)
    assert result.returncode == 0, result.stderr
    heavy = {"sklearn", "scipy", "accelerate", "matplotlib", "pydantic", "skops", "pandas", "torch._dynamo"}
    assert not heavy & set(result.stdout.split())
