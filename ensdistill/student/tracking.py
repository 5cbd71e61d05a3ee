"""The record of a training: lines of JSON in its folder, and accelerate's trackers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from torch import Tensor

from ensdistill.common.files import write_bytes
from ensdistill.student.engine import apart
from ensdistill.student.selection import Choice, Evaluation

LOG = "log.jsonl"
PROJECT = "ensdistill"
# accelerate knows these; others are registered by the user.
BUILT_IN = {"aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"}


def check_trackers(trackers: Sequence[Any]) -> tuple[Any, ...]:
    """The trackers as a tuple.

    Raises
    ------
    ValueError
        A name that accelerate does not have, or a package that is not installed.
    TypeError
        Neither a name nor a ``GeneralTracker``.
    """
    if isinstance(trackers, (str, GeneralTracker)) or not isinstance(trackers, Sequence):
        raise TypeError(f"trackers: expected a list of them; got {trackers!r}")
    available = {str(one) for one in get_available_trackers()}
    for tracker in trackers:
        if isinstance(tracker, GeneralTracker):
            continue
        if not isinstance(tracker, str):
            raise TypeError(
                "trackers: expected names or instances of accelerate.tracking.GeneralTracker; got "
                f"{type(tracker).__name__}"
            )
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"trackers: expected one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}; got {tracker!r}"
            )
        if tracker in BUILT_IN - available:
            raise ValueError(
                f"trackers: {tracker!r} needs a package that is not installed: pip install {tracker}"
            )
    return tuple(trackers)


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
        for tracker in trackers:
            kind = LOGGER_TYPE_TO_CLASS.get(tracker, tracker) if isinstance(tracker, str) else tracker
            if isinstance(tracker, str) and kind.requires_logging_directory and folder is None:
                raise ValueError(f"trackers: {tracker!r} writes files; pass folder=")
        self.trackers = [_made(tracker, folder) for tracker in trackers]

    def start(self, step: int) -> None:
        """Begin, or go on after ``step`` steps: lines of later steps, which a killed run has left, are
        dropped."""
        if self.file is not None:
            kept = _lines_until(self.file, step)
            write_bytes(self.file, "".join(kept).encode())
        self._write({"step": step, "resumed": True} if step else {"step": 0, "settings": self.settings})
        self._each(lambda tracker: tracker.start())
        if not step:
            self._each(lambda tracker: tracker.store_init_configuration(self.settings))

    def block(self, step: int, losses: Tensor, rate: float) -> None:
        """The mean of the losses of the block that ends at ``step``, and the learning rate after it."""
        if self.file is None and not self.trackers:
            return
        values = {"loss": float(losses.double().mean()), "learning_rate": rate}
        self._write({"step": step, **values, "seconds": round(perf_counter() - self._begun, 3)})
        self._log(values, step)

    def evaluation(self, evaluation: Evaluation) -> None:
        scores = {"student": asdict(evaluation.student)}
        if evaluation.average is not None:
            scores["average"] = asdict(evaluation.average)
        scores = {who: {k: v for k, v in part.items() if v is not None} for who, part in scores.items()}
        self._write({"step": evaluation.step, "evaluation": scores})
        self._log(
            {f"{who}/{name}": value for who, part in scores.items() for name, value in part.items()},
            evaluation.step,
        )

    def checkpoint(self, step: int, file: Path) -> None:
        self._write({"step": step, "checkpoint": file.name})

    def end(self, step: int, choice: Choice, reason: str) -> None:
        self._write({"step": step, "end": reason or "all steps are done", "choice": asdict(choice)})

    def close(self) -> None:
        """Let the trackers finish, also those of a training that failed."""
        self._each(lambda tracker: tracker.finish())
        self.trackers = []

    def _log(self, values: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step=step))

    def _write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _each(self, call: Callable[[Any], object]) -> None:
        if self.trackers:
            # accelerate asks its state whether this is the main process; a caller's state stays as it is.
            with apart(keep_variables=True):
                PartialState(cpu=True)
                for tracker in self.trackers:
                    call(tracker)


def _made(tracker: Any, folder: Path | None) -> Any:
    if not isinstance(tracker, str):
        return tracker
    kind = LOGGER_TYPE_TO_CLASS[tracker]
    return kind(PROJECT, str(folder)) if kind.requires_logging_directory else kind(PROJECT)


def _lines_until(file: Path, step: int) -> list[str]:
    """The whole lines of a log about the first ``step`` steps; none where there is no step."""
    if step == 0 or not file.exists():
        return []
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            found = json.loads(line)
        except ValueError:  # a line that a kill has cut
            continue
        if line.endswith("\n") and found["step"] <= step and "end" not in found:
            kept.append(line)
    return kept
