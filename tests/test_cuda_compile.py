"""The CUDA sources, judged without a GPU: they compile for every architecture, and the machine code is what was meant.

Compiling takes 18 s on two idle cores, up to a minute on shared ones; the result is kept in pytest's cache under a hash of all
that goes into it, so only a change of the sources costs that time again. Otherwise most of the time, some 6 s, is the pybind11 module.
"""

import hashlib
import importlib.util
import re
import shutil
import struct
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parent.parent / "csrc"
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
ARCHITECTURES = ("80", "90", "100")
# What setup.py gives nvcc, for three architectures. --keep leaves the cubins beside the object file.
FLAGS = ["-std=c++17", "-O3", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA", "-Xptxas", "-v", "--threads", "2", "--keep"]
# 768 threads of a multiprocessor's 65536 registers: csrc/cuda/plan.h, kThreadsAtOnce.
REGISTERS = 80

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH: the CUDA sources can't be compiled here")
needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with distill_loss.o, ptxas' report and one cubin for each architecture."""
    digest = hashlib.sha256(repr((FLAGS, ARCHITECTURES, torch.__version__, run("nvcc", "--version"))).encode())
    for path in sorted([*(CSRC / "cuda").glob("*"), *CSRC.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    cache = getattr(request.config, "cache", None)  # absent with -p no:cacheprovider
    folder = (cache.mkdir("cuda") if cache else tmp_path_factory.mktemp("cuda")) / digest.hexdigest()[:24]
    if (folder / "ptxas.txt").exists():
        return folder
    for stale in folder.parent.iterdir():
        shutil.rmtree(stale)
    folder.mkdir()
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    source, out = CSRC / "cuda" / "distill_loss.cu", folder / "distill_loss.o"
    report = run("nvcc", "-c", source, "-o", out, "-I", TORCH_INCLUDE, *FLAGS, "--keep-dir", folder, *targets)
    (folder / "ptxas.txt").write_text(report)  # last: it says that the rest is complete
    return folder


def kernels_in(cubin: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Mangled name and memory instructions of each kernel; those that move 128 bits as ``LDG.128`` and so on.

    Instructions are 128 bits wide since Volta: the operation in bits 0-11, and for LDG and STG the access's width in bits
    73-75, where 6 is 128 bits. (Decoded here because the toolkit's disassemblers are often not installed; compared with
    nvdisasm 13.0 over every kernel of this file and all three architectures.)
    """
    data = cubin.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, start + i * size) for i in range(count)]
    names_at = sections[names][4]
    operations = {0x981: "LDG", 0x986: "STG", 0x983: "LDL", 0x387: "STL", 0x987: "STL"}
    for name_at, _type, _flags, _address, at, length in sections:
        name = data[names_at + name_at : data.index(b"\0", names_at + name_at)].decode()
        if not name.startswith(".text."):
            continue
        seen: Counter[str] = Counter()
        for i in range(at, at + length, 16):
            word = int.from_bytes(data[i : i + 16], "little")
            operation = operations.get(word & 0xFFF)
            if operation:
                seen[operation + (".128" if operation in ("LDG", "STG") and word >> 73 & 7 == 6 else "")] += 1
        yield name.removeprefix(".text."), seen


def is_hot(kernel: str) -> bool:
    return "distill_rows" in kernel and "Any" not in kernel  # Any: the double-precision plan, which may be slow


@needs_nvcc
def test_compiles_for_every_architecture(built: Path) -> None:
    assert (built / "distill_loss.o").stat().st_size > 0
    assert sorted(p.name for p in built.glob("*.cubin")) == sorted(f"distill_loss.compute_{a}.cubin" for a in ARCHITECTURES)


@needs_nvcc
def test_hot_kernels_stay_in_their_registers(built: Path) -> None:
    entry = re.compile(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    hot = [found for found in entry.findall((built / "ptxas.txt").read_text()) if is_hot(found[0])]
    assert len(hot) == 9 * len(ARCHITECTURES)  # three student types, three plans
    for kernel, architecture, stack, stores, loads, registers in hot:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), (kernel, architecture)
        assert int(registers) <= REGISTERS, (kernel, architecture)


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hot_kernels_move_128_bits_at_a_time(built: Path, architecture: str) -> None:
    kernels = dict(kernels_in(built / f"distill_loss.compute_{architecture}.cubin"))
    hot = {name: seen for name, seen in kernels.items() if is_hot(name)}
    assert len(hot) == 9
    for name, seen in hot.items():
        assert seen["LDL"] == seen["STL"] == 0, name
        # Two vectors of the student and two of a target of the same type are under way at once; gradients and zeros go out.
        assert seen["LDG.128"] >= 4, name
        assert seen["STG.128"] >= 2, name
    # The decoder tells widths apart: the reduction reads single floats.
    (reduction,) = [seen for name, seen in kernels.items() if "reduce_rows" in name and "IfE" in name]
    assert reduction["LDG"] > 0
    assert reduction["LDG.128"] == 0


@needs_cxx
def test_plan_covers_the_row_and_fits(tmp_path: Path) -> None:
    program = r"""
#include <cstdio>
#include <cstdlib>
#include "plan.h"
int main(int, char** a) {  // classes members several vector shared_limit
  const auto p = ensdistill::cuda::choose_plan(atoi(a[1]), atoi(a[2]), atoi(a[3]), atoi(a[4]), atoi(a[5]));
  printf("%d %d %d %d %d %zu", p.tile, p.resident, p.threads, p.lanes, p.steps, p.shared_bytes);
}"""
    (tmp_path / "plan.cpp").write_text(program)
    run("g++", "-std=c++17", "-I", CSRC / "cuda", tmp_path / "plan.cpp", "-o", tmp_path / "plan")
    hopper, consumer = 232448, 101376
    for classes in (1, 2, 10, 1000, 1024, 1025, 4097, 14000, 50257, 152064, 262144):
        for members, vector, limit in ((1, 4, hopper), (8, 4, consumer), (1, 8, hopper), (8, 8, consumer), (2, 1, hopper)):
            several = members > 1
            words = run(tmp_path / "plan", classes, members, int(several), vector, limit).split()
            tile, resident, threads, lanes, steps, shared = map(int, words)
            # Worst case: the row begins on the last element of a vector.
            vectors = -(-(classes + vector - 1) // vector)
            assert steps * lanes >= vectors
            assert shared <= limit
            assert threads % lanes == threads % 32 == 0
            assert threads <= 512
            assert tile == (classes <= 1024 and vector > 1)
            assert not tile or (lanes <= 32 and resident)
            assert tile or lanes == threads
            if resident:
                assert shared >= 512 + 4 * (3 if several else 2) * vectors * vector
            elif vector > 1:
                assert 4 * (3 if several else 2) * classes > limit * 0.8  # only rows that really don't fit are read twice
                assert shared >= 512 + 16 * members


@needs_cxx
def test_module_lists_its_architectures(tmp_path: Path) -> None:
    library = tmp_path / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-std=c++17", "-O0", "-shared", "-fPIC", '-DENSDISTILL_ARCHITECTURES="8.0;9.0 10.0+PTX"']
    includes = ["-I", TORCH_INCLUDE, "-I", sysconfig.get_path("include")]  # torch's copy of pybind11
    run("g++", *flags, *includes, CSRC / "cuda" / "module.cpp", "-o", library)
    spec = importlib.util.spec_from_file_location("_cuda", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.architectures == ["8.0", "9.0", "10.0+PTX"]
