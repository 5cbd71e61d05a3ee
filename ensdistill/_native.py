"""Loads the native libraries. The one place that decides what is available, and says so.

The CPU library is not optional: without it the import fails with what to do. The CUDA library is there where it was built,
that is with a CUDA torch and a toolkit; a library that is there and doesn't load is an error, never a silent fallback.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch  # the libraries link to torch's, so it must be loaded first

try:
    _cpu: Any = importlib.import_module("ensdistill._cpu")
except ImportError as error:
    raise ImportError(
        f"ensdistill's compiled part is missing or doesn't load ({error}). Build it with a C++17 compiler (Debian/Ubuntu: "
        "`apt-get install g++`; Fedora: `dnf install gcc-c++`; macOS: `xcode-select --install`): `make setup` in a checkout, or "
        "`pip install --no-build-isolation .` with torch already installed."
    ) from error

_cuda: Any = importlib.import_module("ensdistill._cuda") if importlib.util.find_spec("ensdistill._cuda") is not None else None


def build_info() -> dict[str, Any]:
    """What is built and what runs here, as plain data.

    Examples
    --------
    >>> build_info()["cpu"]["instruction_set"] in build_info()["cpu"]["runnable"]
    True
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "torch": {
            "running": torch.__version__,
            "compiled_with": _cpu.compiled_with_torch,
            "stable_abi": "2.11",
            "cuda": torch.version.cuda,
        },
        "cpu": {
            "compiled": _cpu.compiled_instruction_sets(),
            "runnable": _cpu.runnable_instruction_sets(),
            "instruction_set": _cpu.instruction_set(),
            "compiler": _cpu.compiler,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
        },
        "cuda": {"built": _cuda is not None, "architectures": _cuda.architectures if _cuda is not None else [], "devices": gpus},
    }


def kernel_plan(*shape: Any) -> dict[str, Any]:
    """See `ensdistill.plans.kernel_plan`."""
    return dict(_cpu.kernel_plan(*shape))


def kernel_registers(*kernel: Any) -> int | None:
    """What the CUDA library says; None where there is none, or no GPU to load it for."""
    return int(_cuda.registers(*kernel)) if _cuda is not None and torch.cuda.is_available() else None


def release_memory() -> int:
    """Free the memory of the last gradient, which is kept for the next call of the loss on the CPU.

    A training loop asks for the same size again and again, and fresh pages cost as much as the loss itself. Between two loops, or
    after a batch much larger than those to come, it is better given back. On a GPU nothing is kept here: torch's allocator does it.

    Returns
    -------
    int
        Bytes; 0 where nothing was kept. Gradients under 1 MiB never are.

    Examples
    --------
    >>> _ = release_memory()
    >>> release_memory()
    0
    """
    return int(_cpu.release_memory())


def instruction_set() -> str:
    """The CPU instruction set in use.

    Examples
    --------
    >>> instruction_set() in build_info()["cpu"]["compiled"]
    True
    """
    return str(_cpu.instruction_set())


def use_instruction_set(name: str) -> None:
    """Run another of the runnable CPU instruction sets, for tests and benchmarks.

    Raises
    ------
    ValueError
        ``name`` is not compiled in, or doesn't run on this machine.

    Examples
    --------
    >>> use_instruction_set(instruction_set())
    """
    _cpu.use_instruction_set(name)
