"""The job of a data set in a regime, as a user would run it: default members and settings, students of two
sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.sets import SETS, Drawn, Regime, content
from ensdistill.common.optimization import Optimization
from ensdistill.job import scheduler
from ensdistill.job.config import Config, TeachersConfig
from ensdistill.job.defaults import defaults
from ensdistill.job.evaluate import evaluate
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import CNN, MLP, BagOfNgrams
from ensdistill.report import write_report
from ensdistill.report.results import SHARED_KINDS, RunResults
from ensdistill.teachers.recipes import TorchMembers

FIRST_SEEDS = {"develop": 0, "report": 1000}
EQUAL = ("letter",)  # sets whose members are networks of one architecture
SIZES = ("member", "tenth")


@dataclass(frozen=True)
class Case:
    """One data set in one regime.

    Parameters
    ----------
    name : str
        Of the set.
    regime : str
        Of the set's, or ``quick``.
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
    def sizes(self) -> Regime:
        found = SETS[self.name]
        return found.quick if self.regime == "quick" else found.regimes[self.regime]


def config(case: Case) -> Config:
    """The job's settings; importable, so that other processes can make them again."""
    size = case.sizes
    samples, _, _ = content(case.name)
    made = defaults(samples[: 2 * size.labelled], size.labelled, size.pool)
    (student,) = made.distill.students.values()
    teachers = equal_networks(size.labelled) if case.name in EQUAL else made.teachers
    students = {name: _sized(student, case.name, name) for name in SIZES}
    return Config(
        Drawn(case.name, size.labelled, size.pool, size.test, case.first_seed),
        teachers,
        made.cache,
        replace(made.distill, students=students),
        name=str(case),
        folder=case.folder,
        seeds=case.seeds,
        max_test_copies=0.5,  # coarse columns; the report gives the figures without them too
    )


def equal_networks(labelled: int) -> TeachersConfig:
    """Six networks of two layers of 256."""
    steps = max(400, min(4000, 30 * labelled // 64))
    recipe = TorchMembers(
        partial(MLP, hidden=[256, 256], dropout=0.2),
        6,
        optimization=Optimization(
            steps=steps, batch_size=64, learning_rate=2e-3, weight_decay=0.02, schedule="cosine"
        ),
        preprocess="auto",
    )
    return TeachersConfig([recipe])


def _sized(student: StudentConfig, name: str, size: str) -> StudentConfig:
    """The default student with the model of a member's size, or of about a tenth of it."""
    member = size == "member"
    kind = SETS[name].kind
    if kind == "image":
        wide = partial(CNN, channels=[16, 32], hidden=[64], activation="silu", pooling="average")
        model: Any = wide if member else student.model
    elif kind == "text":
        model = partial(BagOfNgrams, width=64 if member else 6, dropout=0.3 if member else 0.0)
    else:
        widths = {True: 256, False: 64} if name in EQUAL else {True: 128, False: 32}
        model = partial(MLP, hidden=[widths[member]] * 2, activation="silu")
    return replace(student, model=model, description=f"{size}: {type(student).__name__}")


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


def run(case: Case, note: Callable[[str], None]) -> RunResults:
    """Bring the case's job up to its models, write its report, and return the models' test predictions."""
    settings = config(case)
    scheduler.run(settings, "distill", partial(config, case), Notes(note))
    folder = RunFolder(settings)
    results = evaluate(folder)
    write_report(results, folder.path)
    return results


def probabilities(results: RunResults, size: str) -> dict[str, list[np.ndarray]]:
    """The test predictions of all models beside one student, by kind: float64 [N, C] for each seed."""
    student = next(one for one in results.students if one.name == size)
    found = {kind: list(getattr(results, kind).probabilities) for kind in SHARED_KINDS}
    return found | {kind: list(model.probabilities) for kind, model in student.models.items()}
