"""The record of a training: lines of JSON in its folder, and accelerate's trackers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor

from ensdistill.common.files import write_bytes
from ensdistill.student.selection import Choice, Evaluation
from ensdistill.student.trackers import Trackers

LOG = "log.jsonl"


class Record:
    """Writes what happens in a training, by process 0: to ``log.jsonl`` in its folder, and to trackers.

    Parameters
    ----------
    folder : Path or None
    trackers : sequence of str or GeneralTracker
    settings : dict
        Plain values, for the log's first line and the trackers.
    """

    def __init__(self, folder: Path | None, trackers: Sequence[Any], settings: dict[str, Any]) -> None:
        self.settings, self.file = settings, None if folder is None else folder / LOG
        self._begun = perf_counter()
        self.trackers = Trackers(trackers, folder)

    def start(self, step: int) -> None:
        """Begin, or go on after ``step`` steps: lines of later steps, which a killed run has left, are
        dropped."""
        sent: dict[str, int] = {}
        if self.file is not None:
            lines = _lines(self.file) if step else []
            sent = {k: found["step"] for _, found in lines for k in ("loss", "evaluation") if k in found}
            kept = [line for line, found in lines if found["step"] <= step and "end" not in found]
            write_bytes(self.file, "".join(kept).encode())
        self._write({"step": step, "resumed": True} if step else {"step": 0, "settings": self.settings})
        self.trackers.start(step, self.settings, sent)

    def block(self, step: int, losses: Tensor, rate: float) -> None:
        """The mean of the losses of the block that ends at ``step``, and the learning rate after it."""
        if self.file is None and not self.trackers:
            return
        values = {"loss": float(losses.double().mean()), "learning_rate": rate}
        # Trackers first: a step in the log was sent, and is not sent again after a resume.
        self.trackers.log(values, step, "loss")
        self._write({"step": step, **values, "seconds": round(perf_counter() - self._begun, 3)})

    def evaluation(self, evaluation: Evaluation) -> None:
        scores = {"student": asdict(evaluation.student)}
        if evaluation.average is not None:
            scores["average"] = asdict(evaluation.average)
        scores = {who: {k: v for k, v in part.items() if v is not None} for who, part in scores.items()}
        values = {f"{who}/{name}": value for who, part in scores.items() for name, value in part.items()}
        self.trackers.log(values, evaluation.step, "evaluation")
        self._write({"step": evaluation.step, "evaluation": scores})

    def checkpoint(self, step: int, file: Path) -> None:
        self._write({"step": step, "checkpoint": file.name})

    def end(self, step: int, choice: Choice, reason: str) -> None:
        self._write({"step": step, "end": reason or "all steps are done", "choice": asdict(choice)})

    def close(self, failed: bool = False) -> None:
        """Let the trackers finish, also those of a training that ``failed``."""
        self.trackers.finish(failed)

    def _write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of a log, and their content; none where there is no file."""
    if not file.exists():
        return []
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            found = json.loads(line)
        except ValueError:  # a line that a kill has cut
            continue
        if line.endswith("\n"):
            kept.append((line, found))
    return kept
