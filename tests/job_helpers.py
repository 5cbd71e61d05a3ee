"""The smallest whole job on real data: digits, two members, two students of thirty steps; and what its files say afterwards."""

from __future__ import annotations

import contextlib
import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from ensdistill.cli import main

OPTIMIZATION = {"steps": 30, "batch_size": 32, "learning_rate": 0.02, "schedule": "cosine"}


def mlp(hidden: int, **more: Any) -> dict[str, Any]:
    return {"class_path": "ensdistill.models.MLP", "init_args": {"inputs": 64, "hidden": [hidden], "outputs": 10, **more}}


JOB: dict[str, Any] = {
    "name": "tiny",
    "seeds": 1,
    "workers": 1,
    "data": {"class_path": "ensdistill.data.Digits", "init_args": {"labelled": 100, "pool": 100}},
    "teachers": {
        "folds": 2,
        "members": [
            {
                "class_path": "ensdistill.specs.TorchMembers",
                "init_args": {"name": "mlp", "count": 1, "model": mlp(32, dropout=0.1), "optimization": OPTIMIZATION},
            },
            {"class_path": "ensdistill.specs.SklearnMembers", "init_args": {"estimator": {"class_path": "sklearn.naive_bayes.GaussianNB"}}},
        ],
    },
    "cache": {"transfer": {"synthetic": [{"class_path": "ensdistill.transfer.Mixup", "init_args": {"rows": 60}}]}},
    "distill": {
        "folds": 2,
        "students": {
            "small": {"model": mlp(8), "optimization": OPTIMIZATION},
            "wide": {"model": mlp(16), "optimization": OPTIMIZATION},
        },
    },
}


def write_job(folder: Path, change: dict[str, Any] | None = None, **more: Any) -> Path:
    """Write the job as YAML to ``folder``; ``change`` maps dotted paths (list positions are numbers) to new values."""
    job = deepcopy(JOB) | {"folder": str(folder / "runs")} | more
    for path, value in (change or {}).items():
        *parents, last = path.split(".")
        at: Any = job
        for key in parents:
            at = at[int(key)] if isinstance(at, list) else at[key]
        at[last] = value
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def run(*words: str | Path) -> tuple[int, str, str]:
    """The command line in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def numbers(folder: Path) -> dict[str, Any]:
    """report.json without what depends on the clock: latencies and seconds."""
    return without_clock(json.loads((folder / "report.json").read_text()))


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_clock(v) for k, v in value.items() if k not in ("latency_ms", "timings", "seconds", "created")}
    return [without_clock(v) for v in value] if isinstance(value, list) else value


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's modification time and bytes, locks aside."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def fingerprints(folder: Path) -> dict[str, str]:
    """The fingerprint that each finished unit recorded, by its folder."""
    files = (p for stage in ("teachers", "cache", "direct/*", "distill/*") for p in folder.glob(f"seed-*/{stage}/stage.json"))
    return {str(p.parent.relative_to(folder)): json.loads(p.read_text())["fingerprint"] for p in files}
