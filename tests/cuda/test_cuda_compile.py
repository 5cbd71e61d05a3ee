"""The CUDA sources, judged without a GPU: they compile for every architecture, and the machine code has
the intended instructions.

Compiling takes four minutes on two idle cores; the results are kept in pytest's cache under a hash of all
that goes into them, so only a change of the sources costs that time again.
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
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
TORCH_INCLUDE = Path(torch.__file__).parent / "include"
ARCHITECTURES = ("80", "90", "100")
SOURCES = sorted((CSRC / "cuda").rglob("*.cu"), key=lambda path: path.stem)
# The flags of setup.py for nvcc, for three architectures. --keep leaves the cubins beside the object file.
FLAGS = [
    "-std=c++17",
    "-O3",
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


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a report of ptxas for each source, and its cubin for each architecture."""
    digest = hashlib.sha256(
        repr((FLAGS, ARCHITECTURES, torch.__version__, run("nvcc", "--version"))).encode()
    )
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
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]

    def compile_one(source: Path) -> None:
        report = folder / f"{source.stem}.txt"
        if report.exists():
            return
        said = run(
            "nvcc",
            "-c",
            source,
            "-o",
            folder / f"{source.stem}.o",
            "-I",
            TORCH_INCLUDE,
            *FLAGS,
            "--keep-dir",
            folder,
            *targets,
        )
        for left in folder.glob(f"{source.stem}.*"):
            if left.suffix != ".cubin":
                left.unlink()
        report.write_text(said)  # last: its presence means that the rest is complete

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(compile_one, SOURCES))
    return folder


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
def test_compiles_for_every_architecture(built: Path) -> None:
    assert len(SOURCES) == 15
    wanted = {f"{source.stem}.compute_{a}.cubin" for source in SOURCES for a in ARCHITECTURES}
    assert {path.name for path in built.glob("*.cubin")} == wanted


ENTRY = re.compile(
    r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill "
    r"loads.*?Used (\d+) registers",
    re.DOTALL,
)


@needs_nvcc
def test_encoders_stay_in_their_registers(built: Path) -> None:
    found = ENTRY.findall((built / "encode.txt").read_text())
    assert Counter(architecture for _, architecture, *_ in found) == dict.fromkeys(ARCHITECTURES, 3)
    for kernel, architecture, stores, loads, registers in found:
        assert (int(stores), int(loads)) == (0, 0), (kernel, architecture)
        assert int(registers) <= MORE_REGISTERS, (kernel, architecture)


@needs_nvcc
def test_gradients_are_scaled_128_bits_at_a_time(built: Path) -> None:
    found = ENTRY.findall((built / "scale_gradient.txt").read_text())
    assert Counter(architecture for _, architecture, *_ in found) == dict.fromkeys(ARCHITECTURES, 4)
    for kernel, architecture, stores, loads, registers in found:
        assert (int(stores), int(loads)) == (0, 0), (kernel, architecture)
        assert int(registers) <= 32, (kernel, architecture)  # all 2048 threads of a multiprocessor
    for architecture in ARCHITECTURES:
        for kernel, seen in kernels_in(built / f"scale_gradient.compute_{architecture}.cubin"):
            if "scale_in_placeIdE" not in kernel:  # double precision may be slow
                assert seen["LDG.128"] >= 1, (kernel, architecture)
                assert seen["STG.128"] >= 1, (kernel, architecture)


@needs_nvcc
def test_multilabel_rows_move_128_bits_at_a_time(built: Path) -> None:
    found = ENTRY.findall((built / "multilabel.txt").read_text())
    assert Counter(architecture for _, architecture, *_ in found) == dict.fromkeys(ARCHITECTURES, 3)
    assert all(int(registers) <= MORE_REGISTERS for *_, registers in found)
    for architecture in ARCHITECTURES:
        for kernel, seen in kernels_in(built / f"multilabel.compute_{architecture}.cubin"):
            if "multilabel_rowsIfE" in kernel:
                assert seen["LDG.128"] >= 4, (
                    architecture
                )  # of the student, targets, labels: float32 and halves
                assert seen["STG.128"] >= 3, architecture


@needs_nvcc
def test_hot_kernels_stay_in_their_registers(built: Path) -> None:
    text = "".join(path.read_text() for path in built.glob("*.txt"))
    hot = [found for found in ENTRY.findall(text) if is_hot(found[0])]
    # Ten pairs of types: on chip, read again, staged and strided, each for the forward KL and for the others;
    # by-products; sparse.
    assert len(hot) == (10 * (4 * 2 + 1) + 3 * 2) * len(ARCHITECTURES)
    for kernel, architecture, stores, loads, registers in hot:
        assert (int(stores), int(loads)) == (0, 0), (kernel, architecture)
        lean = "ForwardKl" in kernel and not re.search(r"VectorsI\w+Lb0E", kernel)
        assert int(registers) <= (REGISTERS if lean else MORE_REGISTERS), (kernel, architecture)


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_move_128_bits_at_a_time(built: Path, architecture: str) -> None:
    kernels = {
        k: seen for path in built.glob(f"*.compute_{architecture}.cubin") for k, seen in kernels_in(path)
    }
    hot = {name: seen for name, seen in kernels.items() if is_hot(name)}
    assert len(hot) == 10 * (4 * 2 + 1) + 3 * 2
    for name, seen in hot.items():
        assert seen["LDL"] == seen["STL"] == 0, name
        staged = re.search(r"SinglesI\w+Lb1E", name)
        if "Singles" in name and not staged:
            # Rows that neighbour class by class: single elements, which neighbouring threads read together.
            continue
        if "ObservedRow" not in name:
            assert seen["STG.128"] >= 1, name
        # Tiles that are kept on chip are copied there past the registers. Blackwell's instruction has its width
        # elsewhere.
        copied = staged or re.search(r"VectorsI\w+Lb1E", name)
        assert seen["LDG.128" if not copied else "LDGSTS" if architecture == "100" else "LDGSTS.128"] >= 1, (
            name
        )


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
