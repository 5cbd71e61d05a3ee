"""From results to report.json: metrics, gains with intervals, cost ratios and a verdict in words.

``docs/report-json.md`` has the schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.report.bootstrap import (
    LEVEL,
    RESAMPLES,
    Statistic,
    interval,
    ratio_interval,
    resampled,
    weighted_means,
)
from ensdistill.report.differences import furthest_rows, judge_agreement, output_names
from ensdistill.report.measures import MEASURES, Metric, held_out_key
from ensdistill.report.results import (
    BATCHES,
    FAMILIES,
    PERCENTILES,
    SHARED_KINDS,
    MemberResult,
    ModelResult,
    Predictions,
    RunResults,
    StudentResults,
)
from ensdistill.report.spread import judge_spread
from ensdistill.report.table import SCHEMA_VERSION
from ensdistill.report.uncertainty import judge_uncertainty
from ensdistill.report.verdict import outcome, verdict

BOOTSTRAP_SEED = 0
COPIES = ("test", "labelled", "pool", "synthetic", "labelled_in_pool", "other_label", "left_out")
EACH_KINDS = (*SHARED_KINDS, "direct", "student")  # whose metric of each class, label or number is shown
# Entries under the student's name alone.
OWN = ("description", "agreement", "uncertainty", "spread", "generations", "furthest_rows")
OTHERS = "others"  # beside a member's name: the mixture of the other members
Key = tuple[str, str]  # a student's name, or "" for a model that all share; and a kind


def judge(results: RunResults, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The content of report.json (``docs/report-json.md`` has its schema).

    Parameters
    ----------
    results : RunResults
    resamples : int
        Of the bootstrap over seeds and test rows; at least 2000.

    Returns
    -------
    dict
        Plain JSON values.
    """
    shared = {"ensemble": results.ensemble, "best_member": results.best_member}
    described = {kind: _describe(model, results) for kind, model in shared.items()}
    draws = _Draws(results, resamples)
    blocks = {student.name: _student(student, described, results, draws) for student in results.students}
    without = _without_copies(results, resamples)
    for name, block in blocks.items():
        if without is not None and without[name]["outcome"] != block["outcome"]:
            rows = sum(int(copies.test.sum()) for copies in results.copies)
            block["verdict"] += (
                f" Without the {rows} test rows that equal rows trained on it is otherwise: "
                f"{without[name]['verdict']}"
            )
    first = blocks[results.students[0].name]
    return {
        "schema_version": SCHEMA_VERSION,
        "task": results.task,
        "name": results.name,
        "dataset": dict(results.dataset),
        "seeds": list(results.seeds),
        **{key: value for key, value in first.items() if key not in OWN},
        "over_best_member": draws.gains(("", "ensemble"), ("", "best_member")),
        "members": [_describe_member(member, results, draws) for member in results.members],
        "students": blocks,
        "weighted": len(results.weights) > 0,
        "baselines": results.baselines,
        "copies": {name: sum(int(np.sum(getattr(c, name))) for c in results.copies) for name in COPIES},
        "without_copies": without,
        "bootstrap": {"resamples": resamples, "seed": BOOTSTRAP_SEED, "level": LEVEL},
        "environment": dict(results.environment),
        "timings_s": dict(results.timings),
        "storage_bytes": dict(results.storage),
        **({"forecast": dict(results.forecast)} if results.forecast else {}),
        **({"auto": dict(results.auto)} if results.auto else {}),
        **({"exports": [dict(one) for one in results.exports]} if results.exports else {}),
        **({"searches": {n: list(s) for n, s in results.searches.items()}} if results.searches else {}),
    }


def _without_copies(results: RunResults, resamples: int) -> dict[str, Any] | None:
    fewer = results.without_copies() if any(copies.test.any() for copies in results.copies) else None
    if fewer is None:
        return None
    names = MEASURES[results.task].by_name
    return {
        name: {
            **{key: block[key] for key in ("outcome", "verdict")},
            "models": {
                kind: {m: model[m]["mean"] for m in names if m in model}
                for kind, model in block["models"].items()
            },
        }
        for name, block in judge(fewer, resamples=resamples)["students"].items()
    }


class _Draws:
    """Every model's gain-oriented metrics, as means and as bootstrap draws, from one set of resamples."""

    def __init__(self, results: RunResults, resamples: int) -> None:
        models: dict[Key, Predictions] = {("", kind): getattr(results, kind) for kind in SHARED_KINDS}
        models |= {
            (student.name, kind): model
            for student in results.students
            for kind, model in student.models.items()
        }
        # Of a mixture of some members the deciding metrics alone: mAP and F1 are slow to resample.
        parts = {(m.name, OTHERS): m.others for m in results.members if m.others is not None}
        models |= parts
        predictions = {key: model.predictions(results.task) for key, model in models.items()}
        self._compared = MEASURES[results.task].compared
        found = [
            (key, metric)
            for key, values in predictions.items()
            for metric in self._compared
            if metric.defined(values) and (metric.decides or key not in parts)
        ]
        # Means of rows first: they are resampled together, by one product of matrices.
        found.sort(key=lambda one: one[1].rows is None)
        self._column = {(key, metric.name): i for i, (key, metric) in enumerate(found)}
        self._sign = np.array([metric.sign for _, metric in found])
        means, statistics = [], []
        for s, labels in enumerate(results.labels):
            each = [(metric, predictions[key][s]) for key, metric in found]
            rows = np.stack([m.rows(p, labels) for m, p in each if m.rows is not None], axis=1)
            weights = results.weights_of(s)
            of_rows = rows.mean(axis=0) if weights is None else np.average(rows, axis=0, weights=weights)
            others = [m.of(p, labels, weights) for m, p in each if m.rows is None]
            means.append([*_finished(found, of_rows[None])[0], *others])
            statistics.append(
                _statistic(found, rows, [m.resampler(p, labels) for m, p in each if m.resampler])
            )
        self._means = np.mean(means, axis=0)
        sizes = [len(labels) for labels in results.labels]
        self._draws = resampled(
            statistics, sizes, weights=results.weights, resamples=resamples, seed=BOOTSTRAP_SEED
        )

    def has(self, key: Key, metric: str) -> bool:
        """Whether the model has the metric."""
        return (key, metric) in self._column

    def gains(self, better: Key, base: Key) -> dict[str, Any]:
        """The lead of one model over another with its interval, by metric that both have."""
        both = [m.name for m in self._compared if self.has(better, m.name) and self.has(base, m.name)]
        return {metric: _gain(*self.gain(better, base, metric)) for metric in both}

    def gain(self, better: Key, base: Key, metric: str) -> tuple[float, np.ndarray]:
        """The lead of one model over another: of the means, and of each resample."""
        i, j = (self._column[key, metric] for key in (better, base))
        sign = self._sign[i]
        return float(sign * self._means[i] - sign * self._means[j]), sign * self._draws[
            :, i
        ] - sign * self._draws[:, j]


def _statistic(
    found: Sequence[tuple[Key, Metric]], rows: np.ndarray, resamplers: Sequence[Statistic]
) -> Statistic:
    """All metrics of one seed's rows, for sets of row weights."""
    of_rows = weighted_means(rows)

    def values(weights: np.ndarray) -> np.ndarray:
        others = [resampler(weights)[:, None] for resampler in resamplers]
        return np.hstack([_finished(found, of_rows(weights)), *others])

    return values


def _finished(found: Sequence[tuple[Key, Metric]], means: np.ndarray) -> np.ndarray:
    """Means of rows [R, M], each by its metric's ``finish``."""
    for column, (_, metric) in zip(means.T, found, strict=False):
        if metric.finish is not None:
            column[:] = metric.finish(column)
    return means


def _student(
    student: StudentResults, shared: dict[str, Any], results: RunResults, draws: _Draws
) -> dict[str, Any]:
    name, measures = student.name, MEASURES[results.task]
    compared = [metric.name for metric in measures.compared]

    gains = draws.gains
    ensemble, direct, own = ("", "ensemble"), (name, "direct"), (name, "student")

    def key(kind: str) -> Key:
        return ("" if kind in SHARED_KINDS else name, kind)

    def members_of(family: str, metric: str) -> list[str]:
        there = [kind for kind in FAMILIES[family] if kind in SHARED_KINDS or kind in student.models]
        return [kind for kind in there if draws.has(key(kind), metric)]

    def strongest(family: str, metric: str) -> dict[str, Any]:
        alternative = min(members_of(family, metric), key=lambda kind: draws.gain(own, key(kind), metric)[0])
        leads = {
            who: draws.gain(model, key(alternative), metric)
            for who, model in (("student", own), ("ensemble", ensemble))
        }
        gained = {who: _gain(*lead) for who, lead in leads.items()}
        return {
            "alternative": alternative,
            **gained,
            "retained_gain": _retained(leads["student"], leads["ensemble"]),
        }

    judged = [m for m in compared if draws.has(own, m) and draws.has(ensemble, m)]
    block: dict[str, Any] = {
        "description": student.description,
        "models": shared | {kind: _describe(student.models[kind], results) for kind in student.models},
        "gains": {
            "ensemble": gains(ensemble, direct),
            "student": gains(own, direct),
            "student_over": {
                kind: gains(own, key(kind))
                for kind in FAMILIES["all"]
                if kind in SHARED_KINDS or kind in student.models
            },
        },
        "retained_gain": {
            metric: _retained(draws.gain(own, direct, metric), draws.gain(ensemble, direct, metric))
            for metric in judged
            if draws.has(direct, metric)
        },
        # A metric that no direct model has, as the NLL of forecasts without a variance, judges nothing.
        "strongest": {
            family: {m: strongest(family, m) for m in judged if members_of("direct", m)}
            for family in FAMILIES
        },
    }
    block["outputs"] = _outputs(student, results)
    block["agreement"] = judge_agreement(student, results)
    block["uncertainty"] = judge_uncertainty(student, results)
    means = {kind: block["models"][kind] for kind in ("ensemble", "direct", "student")}
    block["spread"] = judge_spread(
        {"ensemble": results.spreads, **student.spreads},
        {kind: one["nll"]["mean"] for kind, one in means.items() if "nll" in one},
        results.strange,
    )
    block["generations"] = [_measured(one, results)[0] for one in student.generations]
    block["furthest_rows"] = furthest_rows(student, results)
    block["serving"] = _serving(block["models"]["ensemble"], block["models"]["student"])
    block["outcome"] = outcome(block)
    block["verdict"] = verdict(name, block, len(results.seeds), results.task)
    return block


def _outputs(student: StudentResults, results: RunResults) -> list[dict[str, Any]]:
    """The metric of each class, label or number by itself, the mean over the seeds where it is defined."""
    each = MEASURES[results.task].each
    models = {kind: getattr(results, kind) for kind in SHARED_KINDS} | dict(student.models)
    values = {
        kind: [
            each.values(prediction, labels, results.weights_of(s))
            for s, (prediction, labels) in enumerate(
                zip(models[kind].predictions(results.task), results.labels, strict=True)
            )
        ]
        for kind in EACH_KINDS
    }
    names = output_names(results)
    described = np.mean([each.describe(labels, len(names)) for labels in results.labels], axis=0)
    return [
        {
            "name": name,
            each.about: float(described[i]),
            each.metric.name: {kind: _mean_where_defined([v[i] for v in of]) for kind, of in values.items()},
        }
        for i, name in enumerate(names)
    ]


def _mean_where_defined(values: Sequence[float]) -> float | None:
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else None


def _gain(mean: float, draws: np.ndarray) -> dict[str, Any]:
    low, high = interval(draws)
    return {"mean": mean, "ci95": [low, high], "beyond_interval": low > 0}


def _retained(student: tuple[float, np.ndarray], ensemble: tuple[float, np.ndarray]) -> dict[str, Any]:
    ci95 = ratio_interval(student[1], ensemble[1]) if ensemble[0] > 0 else None
    return {
        "mean": student[0] / ensemble[0] if ensemble[0] > 0 else None,
        "ci95": None if ci95 is None else list(ci95),
        "meaningful": ci95 is not None,
        "share_without_gain": float((ensemble[1] <= 0).mean()),
    }


def _measured(model: Predictions, results: RunResults) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """All metrics of a model's predictions, and the pairs of prediction and labels of the seeds."""
    measures, predictions = MEASURES[results.task], model.predictions(results.task)
    pairs = list(zip(predictions, results.labels, strict=True))
    found = {
        metric.name: _over_seeds([metric.of(*pair, results.weights_of(s)) for s, pair in enumerate(pairs)])
        for metric in measures.metrics
        if metric.defined(predictions)
    }
    return found, pairs


def _describe(model: ModelResult | MemberResult, results: RunResults) -> dict[str, Any]:
    described, pairs = _measured(model, results)
    floored, count, _ = MEASURES[results.task].floored
    return described | {
        floored: sum(count(*pair) for pair in pairs),
        "parameters": model.parameters,
        "bytes": model.bytes,
        "latency_ms": {batch: {p: model.latency_ms[batch][p] for p in PERCENTILES} for batch in BATCHES},
        "note": model.note,
    }


def _describe_member(member: MemberResult, results: RunResults, draws: _Draws) -> dict[str, Any]:
    weighting = {"weight": _over_seeds(member.weights)}
    if len(member.temperatures):
        weighting["temperature"] = _over_seeds(member.temperatures)
    if len(member.held_out):
        weighting[held_out_key(results.task)] = _over_seeds(member.held_out)
    if member.others is not None:
        weighting["contribution"] = draws.gains(("", "ensemble"), (member.name, OTHERS))
    if member.shapley:
        weighting["shapley"] = {
            metric: {
                **_over_seeds([value for value, _ in pairs]),
                "error": float(np.sqrt(sum(error**2 for _, error in pairs)) / len(pairs)),
            }
            for metric, pairs in member.shapley.items()
        }
    return {"name": member.name, **weighting, **_describe(member, results)}


def _over_seeds(values: Any) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "per_seed": [float(value) for value in values]}


def _serving(ensemble: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    def ratio(of: float | None, to: float | None) -> float | None:
        return of / to if to and of else None  # 0 parameters are those of a booster, which are not counted

    return {
        "parameters": ratio(ensemble["parameters"], student["parameters"]),
        "bytes": ratio(ensemble["bytes"], student["bytes"]),
        "latency_ms": {
            batch: {
                p: ratio(ensemble["latency_ms"][batch][p], student["latency_ms"][batch][p])
                for p in PERCENTILES
            }
            for batch in BATCHES
        },
    }
