"""The smallest whole job on real data: digits, two members, two students of thirty steps; and functions
that read its files."""

from __future__ import annotations

import contextlib
import io
import json
import queue
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from report_cases import without_drawing

import ensdistill.job.scheduler as job
from ensdistill.cli.main import main
from ensdistill.job import evaluate
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit

OPTIMIZATION = {"steps": 30, "batch_size": 32, "learning_rate": 0.02, "schedule": "cosine"}


def mlp(hidden: int, **more: Any) -> dict[str, Any]:
    return {
        "class_path": "ensdistill.models.MLP",
        "init_args": {"inputs": 64, "hidden": [hidden], "outputs": 10, **more},
    }


# The report's headline student is the first.
JOB: dict[str, Any] = {
    "name": "tiny",
    "seeds": 1,
    "workers": 1,
    "data": {"class_path": "ensdistill.data.Digits", "init_args": {"labelled": 100, "pool": 100}},
    "teachers": {
        "folds": 2,
        "members": [
            {
                "class_path": "ensdistill.teachers.recipes.TorchMembers",
                "init_args": {
                    "name": "mlp",
                    "count": 1,
                    "model": mlp(32, dropout=0.1),
                    "optimization": OPTIMIZATION,
                },
            },
            {
                "class_path": "ensdistill.teachers.recipes.SklearnMembers",
                "init_args": {"estimator": {"class_path": "sklearn.naive_bayes.GaussianNB"}},
            },
        ],
    },
    "cache": {
        "transfer": {
            "synthetic": [{"class_path": "ensdistill.data.transfer.Mixup", "init_args": {"rows": 60}}]
        }
    },
    "distill": {
        "folds": 2,
        "students": {
            "small": {"model": mlp(8), "optimization": OPTIMIZATION},
            "wide": {"model": mlp(16), "optimization": OPTIMIZATION},
        },
    },
}


def write_job(folder: Path, change: dict[str, Any] | None = None) -> Path:
    """Write the job as YAML to ``folder``; ``change`` maps dotted paths (list positions are numbers) to new
    values."""
    settings = json.loads(json.dumps(JOB)) | {"folder": str(folder / "runs")}
    for path, value in (change or {}).items():
        *parents, last = path.split(".")
        at: Any = settings
        for key in parents:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        at[last] = value
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def job_file(folder: Path) -> Path:
    """The settings of the job with this run folder."""
    return folder.parents[1] / "job.yaml"


def _execute(folder: RunFolder, todo: list[Unit], reload: Any, display: Any) -> None:
    """`ensdistill.job.scheduler._execute` without processes: the same units through the same `_work`, one
    after the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(folder.config.threads)
    job._worker.update(folder=folder, messages=queue.SimpleQueue())
    try:
        for unit in folder.units("report"):  # in an order in which no unit comes before those it needs
            if unit in todo:
                if error := job._work(unit):
                    raise job.UnitFailed(unit, *error)
                display.finished(unit, 0.0)
    finally:
        torch.set_num_threads(threads)
        job._worker.clear()


def run(*words: str | Path, processes: bool = False, draws: bool = False) -> tuple[int, str, str]:
    """The command line in this process: exit status, standard output, standard error.

    A worker takes seconds to start, so the work is done here too unless ``processes`` is set. A report's figures
    are made, but only drawn with ``processes`` or ``draws``: that takes most of so small a job's time.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(evaluate, "LATENCY_SECONDS", 0.0))
        stack.enter_context(mock.patch.object(evaluate, "LATENCY_CALLS", 2))
        if not processes:
            stack.enter_context(mock.patch.object(job, "_execute", _execute))
        if not (processes or draws):
            stack.enter_context(without_drawing())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def succeed(*words: str | Path, processes: bool = False, draws: bool = False) -> str:
    """Standard output of a command that has to succeed."""
    status, out, err = run(*words, processes=processes, draws=draws)
    assert status == 0, err
    return out


def flat(text: str) -> str:
    """The text on one line, so that the terminal's width does not matter."""
    return " ".join(text.split())


def numbers(folder: Path) -> dict[str, Any]:
    """report.json without latencies, seconds and the bytes of files that hold seconds, which depend on the
    clock, and without the run's name."""
    report = _without_clock(json.loads((folder / "report.json").read_text()))
    del report["name"]
    return report


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        clock = ("latency_ms", "timings_s", "storage_bytes")
        return {k: _without_clock(v) for k, v in value.items() if k not in clock}
    return [_without_clock(v) for v in value] if isinstance(value, list) else value


def trained(folder: Path) -> dict[str, bytes]:
    """The results of training, bit for bit: the models, the members' held-out predictions, the targets and the
    curves."""
    return {
        name: data
        for name, (_, data) in stamps(folder).items()
        if name.endswith(".safetensors") and "/training/" not in name
    }


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's modification time and bytes, locks aside."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def fingerprints(folder: Path) -> dict[str, str]:
    """The fingerprint that each finished unit recorded, by its folder."""
    files = (
        p
        for stage in ("teachers", "cache", "direct/*", "distill/*")
        for p in folder.glob(f"seed-*/{stage}/stage.json")
    )
    return {str(p.parent.relative_to(folder)): json.loads(p.read_text())["fingerprint"] for p in files}
