"""The CUDA sources, judged without a GPU: they compile for every architecture, and the machine code has
the intended instructions.

Compiling takes some ten CPU seconds for a source and an architecture. So some sources are compiled for one
architecture each, and all of them for all in the slow tests: those of rows are instances of the same templates. The results are kept in pytest's cache under a hash
of all that goes into them, so only a change of the sources costs that time again.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
ARCHITECTURES = ("80", "90", "100")
SOURCES = sorted((CSRC / "cuda").rglob("*.cu"), key=lambda path: path.stem)
# Of the slow tests alone.
OTHERS = {path.stem for path in (CSRC / "cuda" / "rows").glob("*.cu")} - {"f32_f32", "bf16_u8"}
# The flags of setup.py for nvcc, but host code, whose speed no test measures, is not optimised. --keep leaves the
# cubin beside the object file.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-Xcompiler=-O0",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DUSE_CUDA",
    "-Xptxas",
    "-v",
    "--keep",
]
# csrc/cuda/plan.h: 640 threads of a multiprocessor's 65536 registers, 512 where other things than the forward
# KL are computed or rows are read again.
REGISTERS, MORE_REGISTERS = 96, 128

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="no nvcc on the PATH: the CUDA sources can't be compiled here"
)
needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Built:
    """The folder with ptxas's report (``.txt``) and the cubin of each pair of a source's name and an architecture;
    whether these are all pairs."""

    folder: Path
    pairs: tuple[tuple[str, str], ...]
    whole: bool

    def of(self, source: str) -> tuple[str, ...]:
        """The architectures that the source was compiled for."""
        return tuple(architecture for name, architecture in self.pairs if name == source)

    def entries(self, source: str) -> list[tuple[str, ...]]:
        """Kernel, architecture, bytes of spill stores, of spill loads, and registers of each entry function."""
        reports = (self.folder / f"{source}.{architecture}.txt" for architecture in self.of(source))
        return [found for report in reports for found in ENTRY.findall(report.read_text())]

    def kernels(self, source: str, architecture: str) -> dict[str, Counter[str]]:
        return dict(kernels_in(self.folder / f"{source}.{architecture}.cubin"))


@pytest.fixture(scope="module", params=["in turn", pytest.param("all", marks=pytest.mark.slow)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Some sources compiled for one architecture each, in turn, or all for all."""
    digest = hashlib.sha256(repr((FLAGS, torch.__version__, run("nvcc", "--version"))).encode())
    for path in sorted(
        x for x in (*(CSRC / "cuda").rglob("*"), *CSRC.glob("*.h"), *CSRC.glob("*.def")) if x.is_file()
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    cache = getattr(request.config, "cache", None)  # absent with -p no:cacheprovider
    folder = (cache.mkdir("cuda") if cache else tmp_path_factory.mktemp("cuda")) / digest.hexdigest()[:24]
    if not folder.exists():
        for stale in folder.parent.iterdir():
            shutil.rmtree(stale)
        folder.mkdir()

    def compile_one(source: Path, architecture: str) -> None:
        name = f"{source.stem}.{architecture}"
        if (folder / f"{name}.txt").exists():
            return
        kept = folder / f"{name}.kept"
        kept.mkdir(exist_ok=True)
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        out = kept / f"{name}.o"
        said = run("nvcc", "-c", source, "-o", out, "-I", TORCH_INCLUDE, *FLAGS, target, "--keep-dir", kept)
        (cubin,) = kept.glob("*.cubin")
        cubin.rename(folder / f"{name}.cubin")
        shutil.rmtree(kept)
        (folder / f"{name}.txt").write_text(said)  # last: its presence means that the rest is complete

    pairs = [
        (source, architecture)
        for i, source in enumerate(SOURCES)
        if request.param == "all" or source.stem not in OTHERS
        for architecture in (ARCHITECTURES if request.param == "all" else [ARCHITECTURES[i % 3]])
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(lambda pair: compile_one(*pair), pairs))
    found = tuple((source.stem, architecture) for source, architecture in pairs)
    return Built(folder, found, request.param == "all")


def kernels_in(cubin: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Mangled name and memory instructions of each kernel; those that move 128 bits as ``LDG.128`` and so on.

    Instructions are 128 bits wide since Volta: the operation in bits 0-11, and for LDG, STG and LDGSTS the
    access's width in bits 73-75, where 6 is 128 bits. (Decoded here because the toolkit's disassemblers are
    often not installed; compared with nvdisasm 13.0 over every kernel of this file and all three
    architectures.)
    """
    data = cubin.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, start + i * size) for i in range(count)]
    names_at = sections[names][4]
    operations = {0x981: "LDG", 0x986: "STG", 0xFAE: "LDGSTS", 0x983: "LDL", 0x387: "STL", 0x987: "STL"}
    for name_at, _type, _flags, _address, at, length in sections:
        name = data[names_at + name_at : data.index(b"\0", names_at + name_at)].decode()
        if not name.startswith(".text."):
            continue
        seen: Counter[str] = Counter()
        for i in range(at, at + length, 16):
            word = int.from_bytes(data[i : i + 16], "little")
            operation = operations.get(word & 0xFFF)
            if operation:
                seen[
                    operation
                    + (".128" if operation in ("LDG", "STG", "LDGSTS") and word >> 73 & 7 == 6 else "")
                ] += 1
        yield name.removeprefix(".text."), seen


def is_hot(kernel: str) -> bool:
    """A row's kernel in single precision; the double-precision plan, of student type Any, may be slow."""
    return "distill_rows" in kernel and "INS0_3AnyE" not in kernel


@needs_nvcc
def test_compiles_for_every_architecture(built: Built) -> None:
    assert len(SOURCES) == 15
    every = {source.stem for source in SOURCES}
    assert {source for source, _ in built.pairs} == (every if built.whole else every - OTHERS)
    assert {architecture for _, architecture in built.pairs} == set(ARCHITECTURES)
    assert all(
        (built.folder / f"{source}.{architecture}.cubin").stat().st_size
        for source, architecture in built.pairs
    )


ENTRY = re.compile(
    r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill "
    r"loads.*?Used (\d+) registers",
    re.DOTALL,
)


@needs_nvcc
def test_encoders_stay_in_their_registers(built: Built) -> None:
    found = built.entries("encode")
    assert Counter(architecture for _, architecture, *_ in found) == dict.fromkeys(built.of("encode"), 3)
    for kernel, architecture, stores, loads, registers in found:
        assert (int(stores), int(loads)) == (0, 0), (kernel, architecture)
        assert int(registers) <= MORE_REGISTERS, (kernel, architecture)


@needs_nvcc
def test_gradients_are_scaled_128_bits_at_a_time(built: Built) -> None:
    found = built.entries("scale_gradient")
    architectures = built.of("scale_gradient")
    assert Counter(architecture for _, architecture, *_ in found) == dict.fromkeys(architectures, 4)
    for kernel, architecture, stores, loads, registers in found:
        assert (int(stores), int(loads)) == (0, 0), (kernel, architecture)
        assert int(registers) <= 32, (kernel, architecture)  # all 2048 threads of a multiprocessor
    for architecture in architectures:
        for kernel, seen in built.kernels("scale_gradient", architecture).items():
            if "scale_in_placeIdE" not in kernel:  # double precision may be slow
                assert seen["LDG.128"] >= 1, (kernel, architecture)
                assert seen["STG.128"] >= 1, (kernel, architecture)


@needs_nvcc
def test_multilabel_rows_move_128_bits_at_a_time(built: Built) -> None:
    found = built.entries("multilabel")
    architectures = built.of("multilabel")
    assert Counter(architecture for _, architecture, *_ in found) == dict.fromkeys(architectures, 3)
    assert all(int(registers) <= MORE_REGISTERS for *_, registers in found)
    for architecture in architectures:
        for kernel, seen in built.kernels("multilabel", architecture).items():
            if "multilabel_rowsIfE" in kernel:
                # Of the student, targets and labels: float32 and halves.
                assert seen["LDG.128"] >= 4, architecture
                assert seen["STG.128"] >= 3, architecture


# Kernels of a pair of types: on chip with all members or two in turn, read again, staged and strided, each for the
# forward KL and for the others; by-products. Those of sparse targets are in the sources of one type.
DENSE, SPARSE = 5 * 2 + 1, 2
# csrc/cuda/panels.cuh's enum, in mangled names.
READ_AGAIN, ON_CHIP = re.compile(r"VectorsI\w+HoldingE0E"), re.compile(r"VectorsI\w+HoldingE[12]E")
PAIRS = {
    f"{student}_{targets}": DENSE + SPARSE * (student == targets)
    for student, targets in product(("f32", "bf16", "f16"), ("f32", "bf16", "f16", "u8"))
    if {student, targets} != {"bf16", "f16"}
}


@needs_nvcc
def test_hot_kernels_stay_in_their_registers(built: Built) -> None:
    for source, architecture in built.pairs:
        hot = [x for x in built.entries(source) if is_hot(x[0]) and x[1] == architecture]
        assert len(hot) == PAIRS.get(source, 0), source
        for kernel, _, stores, loads, registers in hot:
            assert (int(stores), int(loads)) == (0, 0), (kernel, architecture)
            lean = "ForwardKl" in kernel and not READ_AGAIN.search(kernel)
            assert int(registers) <= (REGISTERS if lean else MORE_REGISTERS), (kernel, architecture)


@needs_nvcc
def test_rows_move_128_bits_at_a_time(built: Built) -> None:
    for source, architecture in built.pairs:
        hot = {name: seen for name, seen in built.kernels(source, architecture).items() if is_hot(name)}
        assert len(hot) == PAIRS.get(source, 0), source
        for name, seen in hot.items():
            assert seen["LDL"] == seen["STL"] == 0, (name, architecture)
            staged = re.search(r"SinglesI\w+Lb1E", name)
            if "Singles" in name and not staged:
                # Rows that neighbour class by class: single elements, which neighbouring threads read together.
                continue
            if "ObservedRow" not in name:
                assert seen["STG.128"] >= 1, (name, architecture)
            # Tiles that are kept on chip are copied there past the registers. Blackwell's instruction has its
            # width elsewhere.
            copied = staged or ON_CHIP.search(name)
            load = "LDG.128" if not copied else "LDGSTS" if architecture == "100" else "LDGSTS.128"
            assert seen[load] >= 1, (name, architecture)


@needs_cxx
def test_module_lists_its_architectures(tmp_path: Path) -> None:
    library = tmp_path / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-std=c++17", "-O0", "-shared", "-fPIC", '-DENSDISTILL_ARCHITECTURES="8.0;9.0 10.0+PTX"']
    includes = ["-I", TORCH_INCLUDE, "-I", sysconfig.get_path("include")]  # torch's copy of pybind11
    # The kernels themselves, which nvcc compiles, are not checked here.
    stub = tmp_path / "stub.cpp"
    stub.write_text(
        f'#include "{CSRC}/problem.h"\n#include "{CSRC}/cuda/plan.h"\n'
        "namespace ensdistill::cuda { int registers_of_plan(Layout, Element, Element, Divergence, bool) { "
        "return 96; } }"
    )
    run("g++", *flags, *includes, CSRC / "cuda" / "module.cpp", stub, "-o", library)
    spec = importlib.util.spec_from_file_location("_cuda", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.architectures == ["8.0", "9.0", "10.0+PTX"]
    kernel = {
        "layout": "tile",
        "student": "f32",
        "targets": "u8",
        "divergence": "forward_kl",
        "sparse": False,
    }
    assert module.registers(**kernel) == 96
    for change, message in (
        ({"layout": "flat"}, "no plan is called flat"),
        ({"targets": "float32"}, "unknown name among f32, float32"),
    ):
        with pytest.raises(ValueError, match=message):
            module.registers(**kernel | change)
