"""The CUDA kernels on the CPU: csrc/cuda compiled by g++ against the stand-in headers of tests/shim.

What is built is the op itself, launcher and kernels, registered as ``ensdistill_shim::distill_loss`` for tensors on the CPU. Threads of
a block are fibres there; see tests/shim/engine.cpp. A build is kept under a hash of all that goes into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ensdistill import ops

SHIM = Path(__file__).parent / "shim"
CSRC = Path(__file__).parent.parent / "csrc"
TORCH = Path(torch.__file__).parent
ENGINE = ("engine", "fibre", "shared", "device", "reports")
FLAGS = [
    *("-std=c++17", "-g1", "-fPIC", "-pthread", "-DENSDISTILL_SHIM", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
    # CUDA's pragmas, and the names of kernels of hidden types; the latter are wanted.
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-attributes"),
    "-fno-extern-tls-init",  # shared memory is thread-local storage that nobody initialises
    *("-I", str(SHIM / "include"), "-isystem", str(TORCH / "include")),
]
# What the kernels do wrong shows as a report that names kernel, block and thread (reports.cpp) ...
CHECKED = "-fsanitize=alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift"
# ... or, where memory ends, as the address sanitizer's, which ends the process.
BOUNDED = "-fsanitize=address"
LINKED = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl", "-Wl,--no-undefined"]

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
    """Builds into one folder for each state of the sources, below ``folder``; older ones go."""

    def __init__(self, folder: Path) -> None:
        version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256(repr((FLAGS, CHECKED, BOUNDED, LINKED, torch.__version__, version)).encode())
        for path in sorted(x for x in (*SHIM.rglob("*"), *(CSRC / "cuda").rglob("*"), *CSRC.glob("*.h")) if x.is_file()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        self.folder = folder / digest.hexdigest()[:24]
        if not self.folder.exists():
            for stale in folder.iterdir():
                shutil.rmtree(stale)
            self.folder.mkdir(parents=True)

    def library(self, bounded: bool = False) -> Path:
        """The op. ``bounded``: with the address sanitizer, whose library must then be loaded first of all."""
        # Other files of kernels than the op's own are compiled as they are.
        kernels = [path for path in sorted((CSRC / "cuda").rglob("*.cu")) if path.name != "distill_loss.cu"]
        return self._build("libensdistill_shim.so", [SHIM / "library.cpp", *kernels], bounded, ["-shared", *LINKED])

    def toys(self, bounded: bool = False) -> Path:
        return self._build("toys", [SHIM / "toys.cpp"], bounded, ["-rdynamic", "-ldl"])

    def warnings(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*/*.log")))

    def _build(self, name: str, kernels: list[Path], bounded: bool, link: list[str]) -> Path:
        out = self.folder / f"{name.split('.')[0]}-{'bounded' if bounded else 'checked'}"
        if (out / name).exists():
            return out / name
        out.mkdir(exist_ok=True)
        sanitizer = [BOUNDED] if bounded else []
        # The kernels first: they take longest. Not optimised, since the compiler would take longer for that than the tests gain.
        jobs = [(path, ["-O0", *(sanitizer or [CHECKED])]) for path in kernels] + [(SHIM / f"{x}.cpp", ["-O2", *sanitizer]) for x in ENGINE]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: self._compile(*job, out), jobs))
        unfinished = out / f".{name}"
        _run("g++", *sanitizer, *objects, *link, "-pthread", "-o", unfinished)
        unfinished.rename(out / name)  # last: it says that all is there
        return out / name

    def _compile(self, source: Path, flags: list[str], out: Path) -> Path:
        target = out / f"{source.stem}.o"
        (out / f"{source.stem}.log").write_text(_run("g++", "-x", "c++", "-c", source, "-o", target, *FLAGS, *flags))
        return target


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def kernels_in(library: Path) -> set[str]:
    """The kernels of a library, as :meth:`Shim.launches` names them; those that no other file could call have no name there."""
    text = "".join(path.read_text() for path in (CSRC / "cuda").rglob("*.cu*"))
    names = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(", text)
    assert len(names) == text.count("__global__ ")
    symbols = re.findall(r" [WT] (.+)", _run("nm", "-DC", "--defined-only", library))
    return {x for x in symbols if re.match(rf"(void )?ensdistill::cuda::({'|'.join(names)})[<(]", x)}


# Defined once in a process; its signature is the real op's.
_LIBRARIES: list[Any] = []


class Shim:
    """The op, loaded, and the device it believes to run on."""

    def __init__(self, library: Path) -> None:
        if not _LIBRARIES:
            _LIBRARIES.append(torch.library.Library("ensdistill_shim", "DEF"))
            _LIBRARIES[0].define(str(ops.distill_loss._schema).removeprefix("ensdistill::"))
            torch.ops.load_library(str(library))
        self.library = library
        self.op = torch.ops.ensdistill_shim.distill_loss.default
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
        return [Launch(x[0], *map(int, x[1:])) for x in (line.split("\t") for line in lines)]

    @contextmanager
    def instead_of_the_cpu(self, waiting: tuple[str, ...] = ()) -> Iterator[None]:
        """ensdistill's functions call this op. A call for what the op says it hasn't "so far" skips the test if ``waiting`` says so too."""
        real = ops.distill_loss

        def op(*arguments: Any) -> Any:
            try:
                return self.op(*arguments)
            except RuntimeError as error:
                if "so far" not in str(error) or not (features_of(self.op, arguments) & set(waiting)):
                    raise
                said = str(error).splitlines()[0]
            pytest.skip(said)

        ops.distill_loss = op
        try:
            yield
        finally:
            ops.distill_loss = real


def features_of(op: Any, arguments: tuple[Any, ...]) -> set[str]:
    """What of the family one call of the op needs."""
    a = dict(zip((x.name for x in op._schema.arguments), arguments, strict=True))
    tensors = [a["student"]] if a["kind"] == "topk" else [a["student"], a["targets"]]
    found = {f"kind {a['kind']}", f"divergence {a['divergence']}"}
    if a["kind"] == "topk":
        found.add(f"tail_mode {a['tail_mode']}")
    if any(x.dim() > 2 + (x is a["targets"]) or (x.stride(-1) != 1 and x.shape[-1] > 1) for x in tensors):
        found.add("classes first")
    found |= {name for name in ("class_weights", "sample_weights") if a[name] is not None}
    found |= {name for name in ("z_loss", "with_statistics") if a[name]}
    if a["reduction"] == "sum" and a["divisor"] != 1:
        found.add("divisor")
    return found
