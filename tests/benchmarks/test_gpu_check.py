"""benchmarks/gpu_check.sh, run: here without a GPU, and with stand-ins for all that needs one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import predict, sanitize
from benchmarks.gpu_result import git_tree
from ensdistill.bench import suite

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
STEPS = [
    "build",
    "rebuild",
    "load",
    "tests",
    "memcheck",
    "racecheck",
    "synccheck",
    "library",
    "wheels",
    "benchmark",
]

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="no bash, or no timeout"
)

PYTHON = """#!/usr/bin/env bash
case "$*" in
  *is_available*) exit 0 ;;
  *gpu_result.py*) exec {python} "$@" ;;
  *"-m pytest"*) echo "2 failed, 1200 passed"; exit 1 ;;
  *"benchmarks kernels"*) out="${{@: -1}}"; echo '{result}' >"$out" ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
case "$*" in
  *racecheck*) echo started; sleep {seconds} ;;
  *synccheck*) exit 9 ;;
esac
"""
ROW = {
    "implementation": "fused",
    "case": "C=10 K=1",
    "mode": "forward",
    "ms": 0.5,
    "gb_per_s": 2950.0,
    "ratio_to_floor": 1.25,
}


def check(*options, folder, **environment):
    command = ["bash", str(SCRIPT), "--out", str(folder), *map(str, options)]
    paths = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path)), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=paths, timeout=120, check=False)
    file = folder / "gpu-check.json"
    return done, json.loads(file.read_text()) if file.exists() else None


def stand_ins(folder, seconds=0):
    """Stand-ins: a Python with a GPU, a compiler, a sanitizer."""
    tools = folder / "bin"
    tools.mkdir()
    texts = {
        "python": PYTHON.format(python=sys.executable, result=json.dumps({"rows": [ROW]})),
        "compute-sanitizer": SANITIZER.format(seconds=seconds),
        "nvcc": "#!/bin/sh\n",
    }
    for name, text in texts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return tools / "python", {"CUDA_HOME": str(folder)}


def test_its_text():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


def test_dry_run(tmp_path):
    python, environment = stand_ins(tmp_path)
    done, result = check(
        "--dry-run",
        "--python",
        python,
        "--library",
        __file__,
        "--commit",
        "abc",
        folder=tmp_path / "out",
        **environment,
    )
    assert done.returncode == 0, done.stderr
    assert [step["step"] for step in result["steps"]] == STEPS
    outcomes = {step["step"]: (step["outcome"], step["reason"]) for step in result["steps"]}
    assert outcomes.pop("wheels") == ("skipped", "no --wheels given")
    assert {outcome for outcome, _ in outcomes.values()} == {"planned"}
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert f"--tool {tool} --error-exitcode 9" in outcomes[tool][1]
    assert "benchmarks kernels --quick --device cuda" in outcomes["benchmark"][1]
    assert "-m pytest -o addopts= " in outcomes["tests"][1]  # not one process for each core
    assert not list((tmp_path / "out").glob("*.log"))
    assert result["commit"] == "abc"


def test_without_a_gpu_everything_is_skipped_with_the_reason(tmp_path):
    false = tmp_path / "python"
    false.write_text(
        f'#!/bin/sh\ncase "$*" in *is_available*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac\n'
    )
    false.chmod(0o755)
    done, result = check("--python", false, folder=tmp_path / "out")
    assert done.returncode == 2  # nothing was checked
    assert {step["outcome"] for step in result["steps"]} == {"skipped"}
    assert all(
        "no GPU" in step["reason"] for step in result["steps"] if step["step"] not in ("library", "wheels")
    )
    assert result["kernels"] is None


def test_later_steps_run_though_earlier_ones_failed(tmp_path):
    python, environment = stand_ins(tmp_path)
    done, result = check("--python", python, folder=tmp_path / "out", **environment)
    assert done.returncode == 1
    outcomes = {step["step"]: step["outcome"] for step in result["steps"]}
    ran = {name: "ok" for name in STEPS} | {
        "tests": "failed",
        "synccheck": "failed",
        "library": "skipped",
        "wheels": "skipped",
    }
    assert outcomes == ran
    assert "2 failed, 1200 passed" in next(step["log"] for step in result["steps"] if step["step"] == "tests")
    assert result["kernels"]["rows"] == [ROW]
    assert "C=10 K=1, forward: 0.500 ms, 2950 GB/s, 80 % of the floor's speed" in done.stdout
    assert result["csrc_tree"] == git_tree(ROOT / "csrc")


@pytest.mark.slow
def test_nothing_outlives_its_time(tmp_path):
    python, environment = stand_ins(tmp_path, seconds=100)
    done, result = check("--python", python, "--seconds", 7, folder=tmp_path / "out", **environment)
    assert done.returncode == 1
    outcomes = {step["step"]: step["outcome"] for step in result["steps"]}
    assert (outcomes["racecheck"], outcomes["synccheck"], outcomes["benchmark"]) == (
        "timeout",
        "skipped",
        "skipped",
    )
    assert result["seconds"] <= 12


@pytest.mark.parametrize(
    "options",
    [["--seconds", "soon"], ["--library", "/nowhere"], ["--wheels", "/nowhere"], ["--out"], ["--fast"]],
)
def test_bad_options(options, tmp_path):
    done = subprocess.run(
        ["bash", SCRIPT, *options], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert options[0] in done.stderr


def test_git_tree_is_gits(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, text in {"a/x.h": "1", "a/b/y.h": "", "a.c": "2", "a-b": "3", "run": "#!"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "run").chmod(0o755)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    tree = subprocess.run([*git, "write-tree"], capture_output=True, text=True, check=True).stdout.strip()
    shutil.rmtree(tmp_path / ".git")
    assert git_tree(tmp_path) == tree


@pytest.mark.slow
def test_a_library_is_judged(tmp_path):
    """The one of this checkout passes, in a process of its own; other files don't."""
    from ensdistill.loss import _native

    script = str(ROOT / "benchmarks" / "foreign_library.py")
    done = subprocess.run(
        [sys.executable, script, _native._cpu.__file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "loss and gradient are right" in done.stdout
    (tmp_path / "none.so").write_bytes(b"\x7fELF")
    assert (
        subprocess.run(
            [sys.executable, script, tmp_path / "none.so"], capture_output=True, check=False
        ).returncode
        == 1
    )


# The sanitizer's cases, and predictions
# -------------------------------------------------------------------


def test_the_sanitizers_cases_have_every_layout(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # plans are then an H100's
    assert [launch.plan().layout for launch in sanitize.LAUNCHES] == [
        launch.layout for launch in sanitize.LAUNCHES
    ]
    assert {launch.layout for launch in sanitize.LAUNCHES} == {
        "staged",
        "strided",
        "tile",
        "block",
        "cluster",
        "reread",
        "doubles",
    }
    assert all(launch.rows * launch.classes < 600_000 for launch in sanitize.LAUNCHES)


@pytest.mark.parametrize("launch", sanitize.LAUNCHES, ids=lambda x: f"{x.layout}-{x.classes}")
def test_the_sanitizers_inputs_are_fine(launch):
    """Seen on the CPU, so that a failure under the sanitizer is the kernel's: `run` raises where loss or
    gradient is wrong."""
    import torch

    sanitize.run(launch, torch.device("cpu"))


@pytest.mark.parametrize("encoding", sanitize.ENCODINGS, ids=str)
def test_the_sanitizers_encodings_are_fine(encoding):
    """Raises where a result is wrong."""
    import torch

    sanitize.encode(encoding, torch.device("cpu"))


def test_the_sanitizers_cases_have_every_encoder_and_type():
    import torch

    assert {x.encoder for x in sanitize.ENCODINGS} == {"uint8", "top_k", "counts"}
    assert {dtype for dtype, *_ in sanitize.SCALINGS} == {
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
    }
    assert {launch.student for launch in sanitize.LAUNCHES} == {dtype for dtype, *_ in sanitize.SCALINGS}


def test_the_predictions_are_of_these_plans(tmp_path):
    """A change of plan.h without a new table: python -m benchmarks predict."""
    text = (ROOT / "benchmarks" / "PREDICTIONS.md").read_text()
    copy = tmp_path / "PREDICTIONS.md"
    copy.write_text(text)
    predict.rewrite(copy)
    assert copy.read_text() == text
    copy.write_text("no marks")
    with pytest.raises(ValueError, match="expected two lines"):
        predict.rewrite(copy)


def test_a_prediction_counts_the_operations_of_dense_cuh():
    """One teacher on chip: the student's and the teacher's softmax, p and q. K: a member more each in the
    sweep and in the mixture, whose logarithm is the same unit's."""
    assert predict.work("tile", 1, False).exponentials == 4
    assert predict.work("cluster", 8, True).exponentials == 1 + 8 + 8 + 1 + 1
    assert predict.work("reread", 8, False).exponentials == 1 + 8 + 8 + 1 + 1
    # Counted in machine code: a vector of eight takes 72 + 70 + 140 and two copies of 7.5; of float32 four
    # take half of 94 + 92, and 90; each further member 70 + 62 + 7.5.
    assert predict.work("block", 1, False).instructions == pytest.approx((72 + 70 + 140 + 15) / 8, rel=0.03)
    wide = predict.work("block", 1, False, wide=True).instructions
    assert wide == pytest.approx((94 + 92) / 8 + (90 + 15) / 4, rel=0.03)
    more = predict.work("block", 3, False).instructions - predict.work("block", 2, False).instructions
    assert more == pytest.approx((70 + 62 + 7.5) / 8, rel=0.05)
    assert predict.work("tile", 1, False, "jsd").exponentials == 4 + 2 + 2 * 4
    assert predict.work("tile", 1, False, labels=True).exponentials == 4 + 2
    for case in predict.cases():
        plan = predict.plan_of(case)
        limits = predict.times(case, plan)
        assert limits["memory"] * predict.COPY >= 0.999 * case.bytes_moved(gradient=True)
        assert predict.occupancy(plan) >= 1


@pytest.mark.parametrize("which", [suite.quick, suite.full])
def test_every_case_of_a_gpu_has_a_prediction(which):
    predicted = {case.label for case in predict.cases()}
    run = [
        case for case in which(predict.DATA, gpu=True) if case.targets != "float16"
    ]  # which is predicted as bfloat16 is
    without = [case for case in run if case.label not in predicted]
    assert {(c.student, c.targets) for c in run if not c.small and not c.hidden} >= {
        ("float32", "uint8"),
        ("bfloat16", "uint8"),
    }
    assert None not in {predict.why_not(case) for case in without}
    text = (ROOT / "benchmarks" / "PREDICTIONS.md").read_text()
    for case in without:
        assert f"`{predict.why_not(case)}`" in text  # and why
