"""The native libraries: this module alone loads them, and reports which of them are available.

The CPU library is required: without it the import fails, and the error names the remedy. The CUDA library
exists if it was built, with a CUDA torch and a toolkit. A library that exists and doesn't load is an error,
never a silent fallback.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch  # the libraries link to torch's, so it must be loaded first

try:
    _cpu: Any = importlib.import_module("ensdistill._cpu")
except ImportError as error:
    raise ImportError(
        f"ensdistill's compiled part is missing or doesn't load ({error}). Build it with a C++17 compiler "
        "(Debian/Ubuntu: "
        "`apt-get install g++`; Fedora: `dnf install gcc-c++`; macOS: `xcode-select --install`): `make "
        "setup` in a checkout, or "
        "`pip install --no-build-isolation .` with torch already installed."
    ) from error

_cuda: Any = (
    importlib.import_module("ensdistill._cuda")
    if importlib.util.find_spec("ensdistill._cuda") is not None
    else None
)


def build_info() -> dict[str, Any]:
    """The kernels that are built and the devices that run them here, as plain data.

    Examples
    --------
    >>> build_info()["cpu"]["instruction_set"] in build_info()["cpu"]["runnable"]
    True
    """
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
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
        "loss": {"arguments": list(_cpu.loss_arguments), **_cpu.names},
        "cuda": {
            "built": _cuda is not None,
            "architectures": _cuda.architectures if _cuda is not None else [],
            "devices": gpus,
        },
    }


def names(what: str) -> tuple[str, ...]:
    """The values of one of the op's choices, in the order of the library's enum.

    Examples
    --------
    >>> names("tail_mode")
    ('tail', 'renormalize', 'zero')
    """
    return tuple(_cpu.names[what])


def why_no_kernels(device_type: str, index: int | None = None) -> str | None:
    """Return why no kernel runs on such a device, and the remedy; None if one runs. With ``index`` that GPU
    is checked too.

    Examples
    --------
    >>> why_no_kernels("cpu"), why_no_kernels("mps")
    (None, "and there are kernels for cpu and cuda only; move the tensors, or pass impl='reference'")
    """
    if device_type in ("cpu", "meta"):
        return None
    if device_type != "cuda":
        return "and there are kernels for cpu and cuda only; move the tensors, or pass impl='reference'"
    if _cuda is None:
        return (
            f"but this ensdistill was built without its CUDA kernels (torch {torch.__version__} is "
            "running). Build it again where a CUDA "
            "toolkit is (nvcc on the PATH, or CUDA_HOME): `python setup.py build_ext --inplace` in a "
            "checkout, or `pip install "
            "--no-build-isolation --no-deps --force-reinstall .`; or move the tensors to the CPU, or pass "
            "impl='reference'"
        )
    return None if index is None else _why_not_this_gpu(index, tuple(_cuda.architectures))


@lru_cache
def _why_not_this_gpu(index: int, architectures: tuple[str, ...]) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if runs_on(capability, architectures):
        return None
    found, oldest = ".".join(map(str, capability)), min(architectures, key=_capability)
    name = f"a {torch.cuda.get_device_name(index)} of compute capability {found}"
    if capability < (8, 0):
        return (
            f"{name}, and the kernels need 8.0 or later; move the tensors to the CPU, or pass "
            "impl='reference'"
        )
    return (
        f"{name}, and the CUDA kernels are compiled for {', '.join(architectures)} ({oldest} being the "
        "oldest); build again with "
        f"TORCH_CUDA_ARCH_LIST={found}, or pass impl='reference'"
    )


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a GPU can run the compiled code: machine code of its own generation and no newer, or any older
    PTX.

    Examples
    --------
    >>> runs_on((8, 6), ["8.0", "9.0"]), runs_on((12, 0), ["9.0", "10.0+PTX"]), runs_on((7, 5), ["8.0+PTX"])
    (True, True, False)
    """
    for name in architectures:
        compiled = _capability(name)
        # A letter is of that one chip's own instructions, also in PTX.
        if not name.removesuffix("+PTX").replace(".", "").isdigit():
            if capability == compiled:
                return True
        elif compiled <= capability and (name.endswith("+PTX") or compiled[0] == capability[0]):
            return True
    return False


def _capability(architecture: str) -> tuple[int, int]:
    major, minor = re.sub(r"[^0-9.]", "", architecture).split(".")
    return int(major), int(minor)


def prepared_loss(settings: dict[str, Any], layout: dict[str, Any]) -> Any:
    """The CPU's kernel for one signature of the loss: see `ensdistill.loss.prepared`."""
    return _cpu.PreparedLoss(settings, layout)


def kernel_plan(**shape: Any) -> dict[str, Any]:
    """See `ensdistill.loss.explain.kernel_plan`."""
    return dict(_cpu.kernel_plan(**shape))


def kernel_registers(**kernel: Any) -> int | None:
    """The registers that a kernel of the CUDA library takes; None without that library, or without a GPU to
    load it for."""
    return int(_cuda.registers(**kernel)) if _cuda is not None and torch.cuda.is_available() else None


def release_memory() -> int:
    """Free the memory of the last gradient, which is kept for the next call of the loss on the CPU.

    A training loop needs the same size in every step, and fresh pages cost as much as the loss itself. Free
    the memory between two loops, or after a batch much larger than the next ones. On a GPU torch's allocator
    keeps memory, and this module none.

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
