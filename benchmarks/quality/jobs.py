"""The job of a data set in a regime, as a user would run it: default members and settings, students of given
sizes, and one whose size is searched for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.quality.lenet import LeNet
from benchmarks.quality.sets import SETS, Drawn, Regime, content
from ensdistill.data.preprocess import power_scaler
from ensdistill.data.tasks import has_gaps, rows_of_rarest
from ensdistill.job import scheduler
from ensdistill.job.config import Config, TeachersConfig
from ensdistill.job.defaults import NETWORK, defaults
from ensdistill.job.evaluate import evaluate
from ensdistill.job.kinds_of_labels import Labels
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import CNN, MLP, BagOfNgrams, TabularMLP
from ensdistill.report import write_report
from ensdistill.report.results import SHARED_KINDS, RunResults
from ensdistill.teachers.recipes import TorchMembers

FIRST_SEEDS = {"develop": 0, "report": 1000}
KEEP, KEPT = "keep", 0.95  # the student whose size is searched for, and the share that it has to keep
MINUTES = {"full": 5.0, "quick": 0.25}  # of a search, for each seed
QUICK_STEPS = 200
_MEMBERS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # sets whose members are equal networks
    "letter": (partial(MLP, hidden=[256, 256], dropout=0.2), 6),
    "fashion": (partial(LeNet, dropout=0.3), 8),
}
_STUDENTS: dict[str, dict[str, Callable[[], nn.Module]]] = {  # by set, else by kind
    "letter": {"member": partial(MLP, hidden=[256] * 2, activation="silu"),
               "tenth": partial(MLP, hidden=[64] * 2, activation="silu"),
               "least": partial(MLP, hidden=[16], activation="silu")},
    "fashion": {"member": LeNet, "quarter": partial(LeNet, width=0.5), "least": partial(LeNet, width=0.25)},
    "array": {"member": partial(MLP, hidden=[128] * 2, activation="silu"),
              "tenth": partial(MLP, hidden=[32] * 2, activation="silu"),
              "least": partial(MLP, hidden=[8], activation="silu")},
    "table": {"member": partial(TabularMLP, hidden=[128] * 2, activation="silu", numbers="piecewise", width=8),
              "tenth": partial(TabularMLP, hidden=[32] * 2, activation="silu", numbers="piecewise", width=4),
              "least": partial(TabularMLP, hidden=[8], activation="silu", numbers="piecewise", width=2)},
    "image": {"member": partial(CNN, channels=[16, 32], hidden=[64], activation="silu", pooling="average"),
              "tenth": partial(CNN, channels=[8, 16], activation="silu", pooling="average"),
              "least": partial(CNN, channels=[4, 8], activation="silu", pooling="average")},
    "text": {"member": partial(BagOfNgrams, width=64, dropout=0.3),
             "tenth": partial(BagOfNgrams, width=48, buckets=2048, dropout=0.3),
             "least": partial(BagOfNgrams, width=16, buckets=1024)},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One data set in one regime.

    Parameters
    ----------
    name : str
        Of the set.
    regime : str
        Of the set's.
    seeds : int
    first_seed : int
    folder : Path
        Where runs are kept, and go on after a kill.
    """

    name: str
    regime: str
    seeds: int
    first_seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.name}-{self.regime}"

    @property
    def rows(self) -> Regime:
        return SETS[self.name].regimes[self.regime]

    @property
    def sizes(self) -> tuple[str, ...]:
        return (*SETS[self.name].sizes, KEEP)

    @property
    def quick(self) -> bool:
        return self.regime == "quick"

    @property
    def steps(self) -> int | None:
        """The most steps of a student; None for the default's."""
        return QUICK_STEPS if self.quick else None


def config(case: Case) -> Config:
    """The job's settings; importable, so that other processes can make them again."""
    rows = case.rows
    samples, labels, _ = content(case.name)
    count = 1 if labels.ndim == 1 else labels.shape[1]
    rarest = round(rows_of_rarest(labels) * rows.labelled / len(labels))
    kind = Labels(SETS[case.name].task, count, has_gaps(labels), rarest)
    made = defaults(samples[: 2 * rows.labelled], rows.labelled, rows.pool, kind)
    (student,) = made.distill.students.values()
    teachers = equal_networks(case) if case.name in _MEMBERS else made.teachers
    distill = replace(made.distill, students=students(case, student))
    if case.steps is not None:
        teachers, distill = replace(teachers, folds=3), replace(distill, folds=2)
    minutes = case.seeds * MINUTES["quick" if case.quick else "full"]
    return Config(
        Drawn(case.name, rows.labelled, rows.pool, rows.test, case.first_seed),
        teachers,
        made.cache,
        distill,
        name=str(case),
        folder=case.folder,
        seeds=case.seeds,
        max_test_copies=0.5,  # coarse columns; the report gives the figures without them too
        minutes=minutes if KEEP in case.sizes else None,
    )


def equal_networks(case: Case) -> TeachersConfig:
    """An ensemble of networks of one architecture, trained as those of the defaults."""
    network, count = _MEMBERS[case.name]
    samples, _, _ = content(case.name)
    rows = getattr(samples, "ndim", 0) == 2 and not hasattr(samples, "columns")
    preprocess = power_scaler() if rows else "auto"
    recipe = TorchMembers(network, count, optimization=NETWORK, preprocess=preprocess, tune=True)
    return TeachersConfig([recipe], folds=3 if case.rows.labelled > 20_000 else 5)


def students(case: Case, default: StudentConfig) -> dict[str, StudentConfig]:
    """The case's students by name."""
    kind = SETS[case.name].kind
    if kind == "table" and not hasattr(content(case.name)[0], "columns"):
        kind = "array"
    models = _STUDENTS.get(case.name) or _STUDENTS[kind]
    found = StudentConfig(keep=KEPT, description=f"the smallest that keeps {KEPT:.0%}")
    return {
        size: found if size == KEEP else _sized(default, size, models[size], case.steps)
        for size in case.sizes
    }


def _sized(
    student: StudentConfig, size: str, model: Callable[[], nn.Module], steps: int | None
) -> StudentConfig:
    made = replace(student, model=model, description=f"{size}: {getattr(model, 'func', model).__name__}")
    if (buckets := getattr(model, "keywords", {}).get("buckets")) is not None:
        made = replace(made, preprocess=replace(student.preprocess, buckets=buckets))
    if steps is None:
        return made
    own, direct = (replace(one, steps=steps) for one in (made.optimization, made.baseline))
    return replace(made, optimization=own, direct=direct)


class Notes:
    """Shows a job's progress as lines of text."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note

    def start(self, finished: int, todo: int) -> None:
        self.note(f"  {finished} stages finished, {todo} to do")

    def progress(self, piece: Any, what: str, done: int, total: int, figures: str = "") -> None:
        pass

    def preflight(self, found: Any) -> None:
        for line in found.advice:
            self.note(f"  {line}")

    def finished(self, piece: Any, seconds: float) -> None:
        self.note(f"  {piece}: {seconds:.0f} s")

    def warning(self, text: str) -> None:
        self.note(f"  {text}")


def prepared(case: Case) -> RunFolder:
    """The folder of the case's job."""
    return RunFolder(config(case))


def train(case: Case, note: Callable[[str], None]) -> RunFolder:
    """Bring the case's job up to its models."""
    settings = config(case)
    scheduler.run(settings, "distill", partial(config, case), Notes(note))
    return RunFolder(settings)


def results(run: RunFolder) -> RunResults:
    """Write the report of a finished job, and return its models' test predictions."""
    found = evaluate(run, timed=False)  # `serving` times them in one runtime
    write_report(found, run.path)
    return found


def predictions(found: RunResults, size: str) -> Mapping[str, list[Any]]:
    """The test predictions of all models beside one student, by kind, for each seed: in the form that the
    task's metrics take (:mod:`ensdistill.report.measures`)."""
    student = next(one for one in found.students if one.name == size)
    models = {kind: getattr(found, kind) for kind in SHARED_KINDS} | dict(student.models)
    return {kind: model.predictions(found.task) for kind, model in models.items()}
