"""The CUDA kernels on the CPU: csrc/cuda compiled by g++ against the stand-in headers of tests/shim.

It builds the ops themselves, launchers and kernels, registered as ``ensdistill_shim::distill_loss``
and so on for tensors on the CPU. Threads of a block are fibres there; see tests/shim/engine.cpp. A build is
kept under a hash of all that goes into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ensdistill.loss import multilabel_op, ops

SHIM = Path(__file__).parent / "shim"
CSRC = Path(__file__).parent.parent / "csrc"
TORCH = Path(torch.__file__).parent
OPS = ("distill_loss.cu", "encode.cu")
ENGINE = ("engine", "fibre", "shared", "device", "reports")
FLAGS = [
    *(
        "-std=c++17",
        "-g1",
        "-fPIC",
        "-pthread",
        "-DENSDISTILL_SHIM",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ),
    # CUDA's pragmas, and the names of kernels of hidden types; the latter are wanted.
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-attributes"),
    "-fno-extern-tls-init",  # shared memory is thread-local storage without initialisation
    *("-I", str(SHIM / "include"), "-isystem", str(TORCH / "include")),
]
# A kernel's fault becomes a report that names kernel, block and thread (reports.cpp) ...
CHECKED = "-fsanitize=alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift"
# ... or, where memory ends, as the address sanitizer's, which ends the process.
BOUNDED = "-fsanitize=address"
LINKED = [
    f"-L{TORCH / 'lib'}",
    f"-Wl,-rpath,{TORCH / 'lib'}",
    "-ltorch_cpu",
    "-lc10",
    "-ldl",
    "-Wl,--no-undefined",
]

H100 = {"major": 9, "minor": 0, "multiprocessors": 132, "shared_limit": 227 * 1024}
# The same kernels on less: no clusters, and rows stop fitting a block at 12 000 classes.
A10 = {"major": 8, "minor": 6, "multiprocessors": 72, "shared_limit": 99 * 1024}
DEVICES = {"H100": H100, "A10": A10}
_ATTRIBUTES = {"major": 75, "minor": 76, "multiprocessors": 16, "shared_limit": 97}  # cudaDeviceAttr


@dataclass(frozen=True)
class Launch:
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    cluster: int


class Builder:
    """Compiles the objects that aren't in ``folder`` yet. They are named by a hash of their source, of all headers and
    of how they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
        self._common = hashlib.sha256(repr((FLAGS, LINKED, torch.__version__, version)).encode())
        headers = (
            x
            for root in (CSRC, SHIM)
            for pattern in ("*.h", "*.def", "*.cuh", *OPS)
            for x in root.rglob(pattern)
        )
        for path in sorted({*headers, *(SHIM / "include").glob("*")}):
            self._common.update(path.name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
        self._logs: list[Path] = []

    def library(self, bounded: bool = False) -> Path:
        """The ops. ``bounded``: with the address sanitizer, whose library must then be loaded first of
        all."""
        # Other files of kernels than the ops' own, which library.cpp takes in, are compiled as they are.
        kernels = [path for path in sorted((CSRC / "cuda").rglob("*.cu")) if path.name not in OPS]
        return self._build(
            "libensdistill_shim.so", [SHIM / "library.cpp", *kernels], bounded, ["-shared", *LINKED]
        )

    def toys(self, bounded: bool = False) -> Path:
        return self._build("toys", [SHIM / "toys.cpp"], bounded, ["-rdynamic", "-ldl"])

    def warnings(self) -> str:
        """The compiler's warnings about all that this builder needed."""
        return "".join(path.read_text() for path in self._logs)

    def _build(self, name: str, kernels: list[Path], bounded: bool, link: list[str]) -> Path:
        with FileLock(self.folder / f"{name}.lock"):  # other processes may be testing at the same time
            return self._build_alone(name, kernels, bounded, link)

    def _build_alone(self, name: str, kernels: list[Path], bounded: bool, link: list[str]) -> Path:
        kind, sanitizer = ("bounded", [BOUNDED]) if bounded else ("checked", [])
        # The kernels first: they take longest. Not optimised, since the compiler would take longer for that
        # than the tests gain.
        jobs = [(path, ["-O0", *(sanitizer or [CHECKED])]) for path in kernels] + [
            (SHIM / f"{x}.cpp", ["-O2", *sanitizer]) for x in ENGINE
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: self._compile(job[0], job[1], kind), jobs))
        self._logs += [_log_of(x) for x in objects]
        digest = hashlib.sha256(repr((link, [x.name for x in objects])).encode()).hexdigest()[:24]
        return self._made(
            f"{kind}-{name.partition('.')[0]}",
            digest,
            Path(name).suffix,
            "g++",
            *sanitizer,
            *objects,
            *link,
            "-pthread",
        )

    def _compile(self, source: Path, flags: list[str], kind: str) -> Path:
        digest = self._common.copy()
        digest.update(repr(flags).encode() + source.read_bytes())
        command = ("g++", "-x", "c++", "-c", source, *FLAGS, *flags)
        return self._made(f"{kind}-{source.stem}", digest.hexdigest()[:24], ".o", *command)

    def _made(self, stem: str, digest: str, suffix: str, *command: object) -> Path:
        """The file ``stem-digest`` that a command writes, by the command or from before; files of other
        digests go."""
        out = self.folder / f"{stem}-{digest}{suffix}"
        if out.exists():
            return out
        for stale in self.folder.glob(f"{stem}-{'?' * 24}{suffix}"):
            stale.unlink(missing_ok=True)
            _log_of(stale).unlink(missing_ok=True)
        unfinished = self.folder / f".{out.name}-{os.getpid()}"
        _log_of(out).write_text(_run(*command, "-o", unfinished))
        unfinished.rename(out)  # last: its name means that all is there
        return out


def _log_of(made: Path) -> Path:
    return made.with_name(f"{made.name}.log")


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def kernels_in(library: Path) -> set[str]:
    """The kernels of a library, as :meth:`Shim.launches` names them; those that no other file could call have
    no name there."""
    text = "".join(path.read_text() for path in (CSRC / "cuda").rglob("*.cu*"))
    text = re.sub(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", text)
    names = re.findall(r"__global__\s+void\s+(\w+)\s*\(", text)
    assert len(names) == text.count("__global__ ")
    symbols = re.findall(r" [WT] (.+)", _run("nm", "-DC", "--defined-only", library))
    return {x for x in symbols if re.match(rf"(void )?ensdistill::cuda::({'|'.join(names)})[<(]", x)}


def run_within_bounds(builder: Builder, code: str, *arguments: str) -> None:
    """Python that uses the ops, under the address sanitizer, which has to be in a process before all else; it
    gets the library's path."""
    library = builder.library(bounded=True)
    sanitizer = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = os.environ | {
        "LD_PRELOAD": sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": paths,
    }
    command = [sys.executable, "-c", f"{code}\nprint('within bounds')", str(library), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "within bounds\n"


# Defined once in a process; the signatures are the real ops'.
_LIBRARIES: list[Any] = []


class Shim:
    """The op, loaded, and the device it believes to run on."""

    def __init__(self, library: Path) -> None:
        if not _LIBRARIES:
            _LIBRARIES.append(torch.library.Library("ensdistill_shim", "DEF"))
            others = ("multilabel_loss", "scale_gradient", "encode_uint8", "encode_top_k", "encode_counts")
            for op in (ops.distill_loss, *(getattr(torch.ops.ensdistill, name).default for name in others)):
                _LIBRARIES[0].define(str(op._schema).removeprefix("ensdistill::"))
            torch.ops.load_library(str(library))
        self.library = library
        self.op = torch.ops.ensdistill_shim.distill_loss.default
        self.kernels_run: set[str] = set()
        self._functions = ctypes.CDLL(str(library))
        self._functions.ensdistill_shim_launches.restype = ctypes.c_char_p
        self._functions.ensdistill_shim_seed.argtypes = [ctypes.c_uint64]

    def seed(self, seed: int) -> None:
        """Decides in which order blocks and threads run."""
        self._functions.ensdistill_shim_seed(seed)

    def use(self, device: dict[str, int]) -> None:
        for name, value in device.items():
            self._functions.ensdistill_shim_set_attribute(_ATTRIBUTES[name], value)

    def launches(self) -> list[Launch]:
        """Those since the last call."""
        lines = self._functions.ensdistill_shim_launches().decode().splitlines()
        found = [Launch(x[0], *map(int, x[1:])) for x in (line.split("\t") for line in lines)]
        self.kernels_run |= {launch.kernel for launch in found}
        return found

    @contextmanager
    def instead_of_the_cpu(self) -> Iterator[None]:
        """ensdistill's functions call this op."""
        modules: list[tuple[Any, str]] = [(ops, "distill_loss"), (multilabel_op, "multilabel_loss")]
        real = [getattr(module, name) for module, name in modules]
        for module, name in modules:
            setattr(module, name, _poisoned(getattr(torch.ops.ensdistill_shim, name).default))
        try:
            yield
        finally:
            for (module, name), op in zip(modules, real, strict=True):
                setattr(module, name, op)


def _poisoned(op: Any) -> Any:
    def call(*arguments: Any) -> Any:
        with poisoned_memory():
            return op(*arguments)

    return call


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Tensors that torch makes hold NaN, or the largest integer, until they are written to."""
    before, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(
        True
    )  # a part of which is torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
