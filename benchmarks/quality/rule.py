"""The rule by which a preflight predicts the share of the gain that a student keeps: small jobs on development
seeds, and a ridge regression that is judged on data sets that it left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import jobs, judgement
from benchmarks.quality.jobs import Case
from benchmarks.quality.sets import SETS, Regime
from benchmarks.teachers.data import Missing
from ensdistill.common.files import read_json, write_json
from ensdistill.job.preflight import run_features
from ensdistill.student import retention
from ensdistill.student.retention import LEAST, MOST, NAMES, Features, Rule, standardised

TEST = 3000  # rows at most
STEPS = 800  # of students, at most
SMALL: Mapping[str, Sequence[tuple[int, int]]] = {  # labelled rows and rows of the pool of each job
    "digits": [(200, 0), (200, 800)],
    "letter": [(400, 0), (400, 4000), (1500, 0), (1500, 6000)],
    "income": [(300, 0), (300, 3000), (1500, 0)],
    "spam": [(200, 0), (200, 2000), (1000, 0), (1000, 1500)],
    "diamonds": [(300, 0), (300, 3000), (1500, 0), (1500, 6000)],
    "flights": [(500, 0), (500, 4000)],
    "fashion": [(300, 0), (300, 3000)],
    "packages": [(400, 0), (400, 4000)],
}
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
        return Regime(self.labelled, self.pool, None if self.name == "digits" else TEST)

    @property
    def sizes(self) -> tuple[str, ...]:
        return (*SETS[self.name].sizes, "least")

    @property
    def steps(self) -> int | None:
        return STEPS


def small_cases(folder: Path, sets: Sequence[str]) -> Iterator[SmallCase]:
    """One seed each, all different."""
    for name in sets:
        for number, (labelled, pool) in enumerate(SMALL[name]):
            yield SmallCase(name, f"{labelled}-{pool}", 1, 100 + number, folder, False, labelled, pool)


def examples(case: Case, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The features of a case's students and the shares that they kept, on the development seed's test rows;
    read from the run's folder where they are there already."""
    run = jobs.prepared(case)
    file = run.path / "examples.json"
    known = read_json(file)
    if isinstance(known, list) and all(map(run.is_finished, run.units("distill"))):
        return known
    run = jobs.train(case, note)
    features, results = run_features(run), jobs.results(run)
    found = []
    for size, one in features.items():
        judged = judgement.judge_student(jobs.probabilities(results, size), results.labels)["nll"]
        about = {"set": case.name, "labelled": case.rows.labelled, "pool": case.rows.pool, "size": size}
        figures = {key: judged[key] for key in ("kept", "lead", "standard_error")}
        found.append(about | figures | {"features": asdict(one)})
    write_json(file, found)
    return found


def gather(folder: Path, sets: Sequence[str], note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The examples of all small jobs."""
    found = []
    for case in small_cases(folder, sets):
        note(f"{case}")
        try:
            found += examples(case, note)
        except Missing as error:
            note(f"  skipped: {error}")
    return found


def fit(found: Sequence[Mapping[str, Any]]) -> Rule:
    """The rule with the smallest error on data sets left out.

    The strength of the ridge, and which features are used, is chosen on data sets that are left out; the
    error is that of data sets on which neither the choice nor the fit was made. Shares count by how certain
    the ensemble's lead is.

    Raises
    ------
    ValueError
        Fewer than three data sets have a share.
    """
    used = [one for one in found if one["kept"] is not None and _errors(one) >= CERTAIN]
    groups = np.array([one["set"] for one in used])
    if len(set(groups)) < 3:
        raise ValueError(f"found: expected examples of three data sets or more; got {sorted(set(groups))}")
    x, means, scales = standardised([Features(**one["features"]).vector() for one in used])
    y = np.clip([one["kept"] for one in used], LEAST, MOST)
    weights = np.minimum(1.0, np.array([_errors(one) for one in used]) / judgement.BEYOND) ** 2
    left_out, by_mean = np.zeros(len(y)), np.zeros(len(y))
    for name in np.unique(groups):
        here = groups == name
        ridge = _chosen(x[~here], y[~here], weights[~here], groups[~here])
        mean, slopes = _ridge(x[~here], y[~here], weights[~here], ridge)
        left_out[here], by_mean[here] = mean + x[here] @ slopes, np.average(y[~here], weights=weights[~here])
    mean, slopes = _ridge(x, y, weights, _chosen(x, y, weights, groups))
    return Rule(
        NAMES,
        tuple(map(float, means)),
        tuple(map(float, scales)),
        tuple(map(float, slopes)),
        mean,
        _error(left_out, y, weights),
        _error(by_mean, y, weights),
        len(used),
        len(set(groups)),
    )


def write(rule: Rule, found: Sequence[Mapping[str, Any]], source: Mapping[str, Any], examples: Path) -> None:
    """Keep the rule in the package, and the examples that it is learned from among the results."""
    command = "python -m benchmarks quality --fit-rule"
    write_json(examples, {"benchmark": "quality, examples of the rule", "source": dict(source),
                          "examples": list(found)})  # fmt: skip
    write_json(retention.FILE, {"made by": command} | asdict(rule))


def _errors(one: Mapping[str, Any]) -> float:
    return float(one["lead"]) / max(float(one["standard_error"]), 1e-12)


def _chosen(x: np.ndarray, y: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> float:
    """The ridge of the least error on sets left out."""

    def error(ridge: float) -> float:
        found = np.zeros(len(y))
        for name in np.unique(groups):
            here = groups == name
            mean, slopes = _ridge(x[~here], y[~here], weights[~here], ridge)
            found[here] = mean + x[here] @ slopes
        return _error(found, y, weights)

    return min(RIDGES, key=error)


def _ridge(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ridge: float) -> tuple[float, np.ndarray]:
    from sklearn.linear_model import Ridge

    made = Ridge(alpha=ridge).fit(x, y, sample_weight=weights)
    return float(made.intercept_), np.asarray(made.coef_)


def _error(found: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    return float(np.sqrt(np.average(np.square(np.clip(found, LEAST, MOST) - y), weights=weights)))
