"""``python benchmarks/gpu_result.py FOLDER SECONDS [COMMIT]``: the results of benchmarks/gpu_check.sh as one
file and a table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "numpy", "liger-kernel", "quack-kernels")
GPU = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "compute_cap",
)
LOG = 4000  # characters of a log that are kept, its last


def git_tree(folder: Path) -> str:
    """The hash that git has for a folder's content, also where there is no git; changes that aren't committed
    are included."""
    lines = []
    for path in folder.iterdir():
        if path.is_dir():
            mode, found, order = b"40000", git_tree(path), path.name + "/"
        else:
            data = path.read_bytes()
            mode = b"100755" if path.stat().st_mode & 0o100 else b"100644"
            found, order = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), path.name
        lines.append((order.encode(), mode + b" " + path.name.encode() + b"\0" + bytes.fromhex(found)))
    content = b"".join(line for _, line in sorted(lines))
    return hashlib.sha1(b"tree %d\0" % len(content) + content).hexdigest()


def said_by(*command: str) -> str | None:
    """The output of a command; None where it fails or isn't there."""
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def version(package: str) -> str | None:
    """Its installed version, beside this Python or in a folder of PYTHONPATH."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def collect(folder: Path, seconds: float, commit: str | None) -> dict[str, Any]:
    """All of it, as plain data."""
    steps = []
    for line in (folder / "steps.tsv").read_text().splitlines():
        name, outcome, spent, reason = line.split("\t")
        log = folder / f"{name}.log"
        tail = log.read_text(errors="replace")[-LOG:] if log.exists() else ""
        steps.append({"step": name, "outcome": outcome, "seconds": int(spent), "reason": reason, "log": tail})
    gpu = said_by("nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader")
    nvcc = re.search(r"release ([\d.]+)", said_by("nvcc", "--version") or "")
    status = said_by("git", "--no-optional-locks", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    benchmark = folder / "benchmark.json"
    return {
        "schema_version": 1,
        "benchmark": "gpu-check",
        "seconds": seconds,
        "devices": [dict(zip(GPU, line.split(", "), strict=False)) for line in (gpu or "").splitlines()],
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "nvcc": nvcc and nvcc[1],
            **{name: version(name) for name in PACKAGES},
        },
        "commit": commit or said_by("git", "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "csrc_tree": git_tree(ROOT / "csrc"),
        "steps": steps,
        "kernels": json.loads(benchmark.read_text()) if benchmark.exists() else None,
    }


def main(folder: str, seconds: str, commit: str = "") -> int:
    """Returns the exit status: 1 where a step failed, 2 where none ran."""
    result = collect(Path(folder), float(seconds), commit or None)
    path = Path(folder) / "gpu-check.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    device = result["devices"][0]["name"] if result["devices"] else "no GPU"
    print(
        f"\n{device}, torch {result['versions']['torch']}, csrc {result['csrc_tree'][:12]}, "
        f"{result['seconds']:.0f} s"
    )
    for step in result["steps"]:
        last = next((line for line in reversed(step["log"].splitlines()) if line.strip()), "")
        print(
            f"  {step['step']:<10} {step['outcome']:<8} {step['seconds']:>4} s  "
            f"{(step['reason'] or last)[:110]}"
        )
    rows = [
        row
        for row in (result["kernels"] or {}).get("rows", [])
        if row["implementation"] in ("fused", "quack")
    ]
    for row in rows:
        floor = (
            ""
            if row["ratio_to_floor"] is None
            else f"{100 / row['ratio_to_floor']:.0f} % of the floor's speed"
        )
        rival = "" if row["implementation"] == "fused" else f", {row['implementation']}'s {row['form']}"
        print(
            f"  {row['case']}, {row['mode']}{rival}: {row['ms']:.3f} ms, {row['gb_per_s']:.0f} GB/s, {floor}"
        )
    print(path)
    outcomes = {step["outcome"] for step in result["steps"]}
    return 1 if outcomes & {"failed", "timeout"} else 0 if outcomes & {"ok", "planned"} else 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
