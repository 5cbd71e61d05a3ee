"""The origin of a result: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill import __version__
from ensdistill.loss import ops

ROOT = Path(__file__).resolve().parents[2]  # of a checkout; of an installed package, the folder that holds it


def last_level_cache() -> int:
    """Bytes of the last-level cache, 32 MiB where the system doesn't expose it."""
    sizes = [
        _bytes(p.read_text().strip()) for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=32 << 20)


def _bytes(text: str) -> int:
    return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0)


def cpu_name() -> str:
    """The processor's name as it calls itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except FileNotFoundError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, cores, threads and versions, as plain data for a result file."""
    build = ops.build_info()
    packages = {name: _version(name) for name in ("triton", "liger-kernel", "quack-kernels")}
    return {
        "kind": device.type,
        "device": cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cores": build["cpu"]["cores"],
        "threads": torch.get_num_threads(),
        "instruction_sets": build["cpu"]["runnable"],
        "last_level_cache_bytes": last_level_cache(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "compiler": build["cpu"]["compiler"],
            "cuda": torch.version.cuda,
            "driver": _driver() if device.type == "cuda" else None,
            **packages,
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def describe_source(device: torch.device) -> dict[str, Any]:
    """Version, and commit and state of the checkout: ``None`` outside of one.

    ``dirty`` leaves the results themselves out, and ``library_is_older`` is true if the native code changed
    after it was built, so that the numbers belong to code that is no longer there.
    """
    library = importlib.util.find_spec(f"ensdistill._{device.type}")
    other = "cuda" if device.type == "cpu" else "cpu"
    built = (
        Path((library and library.origin) or "").stat().st_mtime
    )  # importing ensdistill.loss.ops fails without the library
    csrc = [
        p
        for p in (ROOT / "csrc").rglob("*")
        if p.suffix in (".cpp", ".h", ".cu", ".cuh", ".def") and other not in p.relative_to(ROOT).parts
    ]
    commit = (
        _git("rev-parse", "HEAD") if csrc else None
    )  # an environment may lie in another project's repository
    return {
        "version": __version__,
        "commit": commit,
        "csrc_tree": None if commit is None else _git("rev-parse", "HEAD:csrc"),
        "dirty": None
        if commit is None
        else bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
        "csrc_dirty": None if commit is None else bool(_git("status", "--porcelain", "--", "csrc")),
        "library_is_older": any(p.stat().st_mtime > built for p in csrc),
    }


def _git(*arguments: str) -> str | None:
    # Looking must not take the index's lock from a running commit.
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def result_name(machine: dict[str, Any], source: dict[str, Any]) -> str:
    """``<device>-<cores>c-<commit>``, with ``-dirty`` where the commit alone doesn't name the code; the
    version where there is none.

    Examples
    --------
    >>> source = {"commit": "0123456789ab", "dirty": True}
    >>> result_name({"kind": "cpu", "device": "AMD EPYC (9B)", "cores": 2}, source)
    'amd-epyc-9b-2c-01234567-dirty'
    >>> source = {"commit": None, "version": "0.1.0", "dirty": None}
    >>> result_name({"kind": "cuda", "device": "NVIDIA H100"}, source)
    'nvidia-h100-0.1.0'
    """
    device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    cores = f"-{machine['cores']}c" if machine["kind"] == "cpu" else ""
    return f"{device}{cores}-{(source['commit'] or '')[:8] or source['version']}" + (
        "-dirty" if source["dirty"] else ""
    )
