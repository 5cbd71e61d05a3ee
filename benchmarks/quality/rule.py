"""The rules by which a preflight predicts the share of the gain that a student keeps: for each task a ridge
regression on the benchmark's results and on small jobs, judged on data sets that it left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import jobs, judgement
from benchmarks.quality.jobs import Case
from benchmarks.quality.sets import Regime
from benchmarks.teachers.data import Missing
from ensdistill.common.files import read_json, write_json
from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import TASKS, Task
from ensdistill.job.evaluate import evaluate
from ensdistill.job.preflight import run_preflight
from ensdistill.student import retention
from ensdistill.student.retention import (
    LEAST,
    MOST,
    NAMES,
    Features,
    RetentionRule,
    moments,
    shares,
    standardised,
)

FILE = "examples.json"
TEST = 3000  # rows at most
SMALL: Mapping[str, Sequence[tuple[int, int]]] = {  # labelled rows and rows of the pool of each job
    "digits": [(200, 0), (200, 800)],
    "letter": [(400, 0), (400, 4000), (1500, 0), (1500, 6000)],
    "income": [(300, 0), (300, 3000), (1500, 0)],
    "spam": [(200, 0), (200, 2000), (1000, 0), (1000, 1500)],
    "diamonds": [(300, 0), (300, 3000), (1500, 0), (1500, 6000)],
    "flights": [(500, 0), (500, 4000)],
    "fashion": [(300, 0), (300, 3000)],
    "packages": [(400, 0), (400, 4000)],
    "tags": [(400, 0), (400, 4000)],
    "prices": [(300, 0), (300, 3000), (1500, 0)],
    "delays": [(500, 0), (500, 4000)],
    "diabetes": [(100, 0), (100, 200), (300, 0)],
}
SMALL_SETS = ("digits", "diabetes")  # all of their other rows are test rows
LEAST_SETS = 3  # for a rule, and for a task's own rule
CANDIDATES: tuple[tuple[str, ...], ...] = (  # features of a rule: few, for there are few data sets
    ("size",),
    ("size", "pool", "synthetic"),
    ("size", "epistemic", "lead"),
    ("size", "pool", "synthetic", "rows_per_class"),
    NAMES,
)
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
CERTAIN = 1.0  # standard errors of the ensemble's lead, below which a share is only noise


@dataclass(frozen=True)
class SmallCase(Case):
    """A small job, for the rule alone.

    Parameters
    ----------
    labelled, pool : int
    """

    labelled: int = 0
    pool: int = 0

    @property
    def rows(self) -> Regime:
        return Regime(self.labelled, self.pool, None if self.name in SMALL_SETS else TEST)

    @property
    def sizes(self) -> tuple[str, ...]:
        return ("member", "least")


def small_cases(folder: Path, sets: Sequence[str]) -> Iterator[SmallCase]:
    """One seed each, all different. The first case of every set comes before the second of any, so that a
    search that is killed has seen many sets."""
    for number in range(max(map(len, SMALL.values()))):
        for name in sets:
            for labelled, pool in SMALL.get(name, ())[number : number + 1]:
                yield SmallCase(name, f"{labelled}-{pool}", 1, 100 + number, folder, labelled, pool)


def examples(case: Case, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The examples of a small job's students, by the development seed's test rows; read from the run's folder
    where they are there already."""
    run = jobs.train(case, note)
    made_from = digest([NAMES, *map(run.digest, run.units("distill"))])
    known = read_json(run.path / FILE)
    if isinstance(known, dict) and known["made_from"] == made_from:
        examples: list[dict[str, Any]] = known["examples"]
        return examples
    features, results = run_preflight(run).features, evaluate(run, timed=False)
    rows = {"labelled": case.rows.labelled, "pool": case.rows.pool}
    found = []
    for size, one in features.items():
        judged = judgement.judge_student(jobs.predictions(results, size), results.labels, task=results.task)
        found.append(_example(case.name, rows, size, asdict(one), judged))
    write_json(run.path / FILE, {"made_from": made_from, "examples": found})
    return found


def examples_of(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The examples in a result of the benchmark. The students of quick jobs are none: they are trained too
    shortly. Reported seeds may be among them, for no setting depends on the rule: a preflight prints it."""
    for one in result["students"]:
        if one.get("features") and not result["settings"]["quick"]:
            yield _example(one["set"], one["dataset"], one["size"], one["features"], one)


def _example(
    name: str, rows: Mapping[str, Any], size: str, features: Mapping[str, Any], judged: Mapping[str, Any]
) -> dict[str, Any]:
    """The features of a student, and the share of the gain in likelihood that it kept."""
    likelihood = judged[judgement.metrics_of(judged)[judgement.LIKELIHOOD]]
    return {
        "set": name,
        "task": judged["task"],
        "labelled": rows["labelled"],
        "pool": rows["pool"],
        "size": size,
        **{key: likelihood[key] for key in ("kept", "lead", "standard_error")},
        "features": dict(features),
    }


def is_finished(case: Case) -> bool:
    """Whether the case's models are all there."""
    if not (case.folder / str(case)).is_dir():
        return False
    run = jobs.prepared(case)
    return all(map(run.is_finished, run.units("distill")))


def gather(
    work: Path, sets: Sequence[str], note: Callable[[str], None], *, train: bool = True
) -> list[dict[str, Any]]:
    """The examples of all small jobs; without ``train`` those of finished jobs alone."""
    found = []
    small = small_cases(work / "rule", sets)
    for case in small if train else filter(is_finished, small):
        note(f"{case}")
        try:
            found += examples(case, note)
        except Missing as error:
            note(f"  skipped: {error}")
    return found


def fit(found: Sequence[Mapping[str, Any]]) -> dict[Task, RetentionRule]:
    """The rule of each task that has examples, by the smallest error on data sets left out.

    The strength of the ridge, and which features are used, is chosen on data sets that are left out; the
    error is that of data sets on which neither the choice nor the fit was made. A rule is learned from all
    tasks. A task of three data sets or more has one of its own where that has the smaller error on them.
    Shares count by how certain the ensemble's lead is.

    Raises
    ------
    ValueError
        Fewer than three data sets have a share.
    """
    used = [one for one in found if one["kept"] is not None and _errors(one) >= CERTAIN]
    groups = np.array([one["set"] for one in used])
    if len(set(groups)) < LEAST_SETS:
        raise ValueError(f"found: expected examples of three data sets or more; got {sorted(set(groups))}")
    x = np.stack([Features(**one["features"]).vector() for one in used])
    kept = np.clip([one["kept"] for one in used], LEAST, MOST)
    certain = np.minimum(1.0, np.array([_errors(one) for one in used]) / judgement.BEYOND) ** 2
    every = _Examples(x, kept, certain, groups)
    tasks = np.array([one.get("task", "classification") for one in used])
    present = tuple(task for task in TASKS if (tasks == task).any())
    common, made = _Learned(every, present), dict[Task, RetentionRule]()
    for task in present:
        own = tasks == task
        rule = common.rule(own if len(set(groups[own])) >= LEAST_SETS else None)
        if present != (task,) and len(set(groups[own])) >= LEAST_SETS:
            alone = _Learned(every[own], (task,)).rule()
            rule = min(rule, alone, key=lambda one: min(one.error, one.mean_error))
        made[task] = rule
    return made


class _Learned:
    """The rule of examples, and its predictions for the data sets that each fit left out."""

    def __init__(self, examples: _Examples, tasks: tuple[Task, ...]) -> None:
        self.examples, self.tasks = examples, tasks
        self.by_rule = examples.left_out(lambda others: others.linear(*others.choice()))
        self.by_mean = examples.left_out(
            lambda others: lambda _: np.average(others.y, weights=others.weights)
        )

    def rule(self, judged: np.ndarray | None = None) -> RetentionRule:
        """The rule with its errors on the examples that are judged [N], by default on all."""
        every = self.examples
        rows = np.ones(len(every.y), bool) if judged is None else judged
        names, ridge = every.choice()
        mean, *numbers = every.regression(names, ridge)
        return RetentionRule(
            names,
            *(tuple(map(float, values)) for values in numbers),
            mean=mean,
            error=every.error(self.by_rule, rows),
            mean_error=every.error(self.by_mean, rows),
            cases=len(every.y),
            sets=len(set(every.groups)),
            tasks=self.tasks,
        )


Predictor = Callable[[np.ndarray], Any]  # features [M, F] -> shares [M]


@dataclass(frozen=True, eq=False)
class _Examples:
    """Features [N, F], shares [N], their weights [N], and the names of their data sets [N]."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    groups: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> _Examples:
        return _Examples(self.x[rows], self.y[rows], self.weights[rows], self.groups[rows])

    def left_out(self, fit: Callable[[_Examples], Predictor]) -> np.ndarray:
        """Predictions [N] for each data set by a fit to the others."""
        found = np.zeros(len(self.y))
        for name in np.unique(self.groups):
            here = self.groups == name
            found[here] = fit(self[~here])(self.x[here])
        return np.clip(found, LEAST, MOST)

    def error(self, predicted: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """The root mean squared error of predictions [N] on some of the examples."""
        wrong = np.square(predicted - self.y)[rows]
        return float(np.sqrt(np.average(wrong, weights=self.weights[rows])))

    def choice(self) -> tuple[tuple[str, ...], float]:
        """The features and the ridge of the least error on data sets left out."""
        tried = list(product(CANDIDATES, RIDGES))
        return min(tried, key=lambda one: self.error(self.left_out(lambda others: others.linear(*one))))

    def linear(self, names: Sequence[str], ridge: float) -> Predictor:
        places = [NAMES.index(name) for name in names]
        line = self.regression(names, ridge)
        return lambda x: shares(x[:, places], *line)

    def regression(
        self, names: Sequence[str], ridge: float
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """The mean of the shares; of each feature the mean, the deviation and the slope."""
        x = self.x[:, [NAMES.index(name) for name in names]]
        means, scales = moments(x, self.weights)
        z, w = standardised(x, means, scales), self.weights[:, None]
        mean = float(np.average(self.y, weights=self.weights))
        gram = z.T @ (w * z) + ridge * np.eye(len(names))
        return mean, means, scales, np.linalg.solve(gram, z.T @ (self.weights * (self.y - mean)))


def write(
    rules: Mapping[Task, RetentionRule],
    found: Sequence[Mapping[str, Any]],
    source: Mapping[str, Any],
    examples: Path,
) -> None:
    """Keep the rules in the package, and the examples that they are learned from among the results."""
    command = "python -m benchmarks quality --fit-rule"
    write_json(examples, {"benchmark": "quality, examples of the rule", "source": dict(source),
                          "examples": list(found)})  # fmt: skip
    records = {task: asdict(one) for task, one in rules.items()}
    write_json(retention.FILE, {"made by": command, "rules": records})


def _errors(one: Mapping[str, Any]) -> float:
    return float(one["lead"]) / max(float(one["standard_error"]), 1e-12)
