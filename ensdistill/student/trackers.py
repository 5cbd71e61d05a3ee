"""accelerate's trackers of a training: the checks of their names, and the runs that a resumed training
continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from ensdistill.common.files import read_json, write_json
from ensdistill.student.engine import apart

PROJECT = "ensdistill"
RUNS = "trackers.json"
# accelerate knows these; others are registered by the user.
BUILT_IN = {"aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"}
_NAME_PARTS = 5


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


class Trackers:
    """The trackers of one training, in process 0.

    A run has the name of the training's folder. The folder keeps the identifiers of the runs, by which a
    resumed training goes on with the same ones.

    Parameters
    ----------
    trackers : sequence of str or GeneralTracker
    folder : Path or None
        Of the training.

    Raises
    ------
    ValueError
        A tracker that writes files, and no folder.
    """

    def __init__(self, trackers: Sequence[Any], folder: Path | None) -> None:
        self.given, self.folder = trackers, folder
        self.running: list[Any] = []
        self._sent: list[Mapping[str, int]] = []
        for tracker in trackers:
            if isinstance(tracker, str):
                kind = LOGGER_TYPE_TO_CLASS[tracker]
                if kind.requires_logging_directory and folder is None:
                    raise ValueError(f"trackers: {tracker!r} writes files; pass folder=")

    def __bool__(self) -> bool:
        return bool(self.given)

    def start(self, step: int, settings: dict[str, Any], sent: Mapping[str, int]) -> None:
        """Start the runs of a training that has done ``step`` steps, or go on with them; ``sent`` holds the
        last steps of which an earlier process sent the loss and the evaluation."""
        if not self.given:
            return
        file = None if self.folder is None else self.folder / RUNS
        runs = {} if file is None or not step else read_json(file) or {}
        where = {} if self.folder is None else {"folder": str(self.folder)}
        for tracker in self.given:
            name = tracker if isinstance(tracker, str) else None
            made = tracker if name is None else self._made(name, step, runs.get(name))
            self._each(lambda one: one.start(), [made])
            self.running.append(made)
            # These trackers keep a run's earlier values, so steps that are done again would appear twice.
            self._sent.append(sent if name in runs else {})
            # trackio replaces a run's settings by those of the process that resumes it.
            if not step or name == "trackio" or (name in _IDENTIFIERS and name not in runs):
                self._each(lambda one: one.store_init_configuration({**settings, **where}), [made])
            if name in _IDENTIFIERS:
                runs[name] = _IDENTIFIERS[name](made)
        if file is not None:
            write_json(file, runs)

    def log(self, values: dict[str, float], step: int, kind: str) -> None:
        """Send the values of a ``loss`` or an ``evaluation``, unless they were sent before a resume."""
        new = [one for one, sent in zip(self.running, self._sent, strict=True) if step > sent.get(kind, 0)]
        self._each(lambda tracker: tracker.log(values, step=step), new)

    def finish(self, failed: bool = False) -> None:
        """End the runs, as failed ones where the training did."""
        running, self.running, self._sent = self.running, [], []
        if failed:
            kinds = tuple(LOGGER_TYPE_TO_CLASS[name] for name in _FAILED)
            self._each(lambda one: _FAILED[one.name](one), [one for one in running if isinstance(one, kinds)])
        self._each(lambda tracker: tracker.finish(), running)

    def _made(self, name: str, step: int, run: str | None) -> Any:
        kind = LOGGER_TYPE_TO_CLASS[name]
        title = None if self.folder is None else _title(self.folder)
        if name == "tensorboard":
            # TensorBoard then hides the steps that an earlier process did after its last checkpoint.
            return kind(PROJECT, str(self.folder), **({"purge_step": step + 1} if step else {}))
        if name == "wandb":
            return kind(PROJECT, name=title, **({} if run is None else {"id": run, "resume": "allow"}))
        if name == "mlflow":
            return kind(PROJECT, run_id=run, run_name=title)
        if name == "trackio":
            return kind(PROJECT, name=run or title, resume="never" if run is None else "allow")
        return kind(PROJECT, str(self.folder)) if kind.requires_logging_directory else kind(PROJECT)

    def _each(self, call: Callable[[Any], object], trackers: Sequence[Any]) -> None:
        if trackers:
            # accelerate asks its state whether this is the main process; a caller's state stays as it is.
            with apart(keep_variables=True):
                PartialState(cpu=True)
                for tracker in trackers:
                    call(tracker)


# How a started run is found again.
_IDENTIFIERS: dict[str | None, Callable[[Any], str]] = {
    "wandb": lambda tracker: str(tracker.run.id),
    "mlflow": lambda tracker: str(tracker.active_run.info.run_id),
    "trackio": lambda tracker: str(tracker.run.name),
}


# Their ``finish`` alone would mark a failed run as finished.
_FAILED: dict[str, Callable[[Any], object]] = {
    "wandb": lambda tracker: tracker.run.finish(exit_code=1),
    "mlflow": lambda tracker: import_module("mlflow").end_run("FAILED"),
}


def _title(folder: Path) -> str:
    """The name of a run: the last parts of its folder; in a job's run folder RUN/seed-0/distill/NAME/KIND.

    >>> _title(Path("runs/digits/seed-0/distill/small/student/training"))
    'digits/seed-0/distill/small/student'
    """
    parts = [part for part in folder.parts if part not in (folder.anchor, "..")]
    if len(parts) > 1 and parts[-1] == "training":
        parts.pop()
    return "/".join(parts[-_NAME_PARTS:]) or PROJECT
