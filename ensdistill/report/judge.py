"""From results to report.json: metrics, gains with intervals, cost ratios and a verdict in words.

The schema, version 2. ``<kind>`` is one of `results.KINDS`, ``<metric>`` one of accuracy, nll, brier,
``<student>`` a student's name, ``<family>`` one of `results.FAMILIES`, ``<alternative>`` one of the kinds in
the family ``all``, ``<i>`` a position in a list; everything else stands as it is. Gains are improvements:
positive is better for every metric. Accuracy is a share (0.97), NLL is in nats, Brier is summed over classes.
The entries marked ``*`` describe the first student and stand again, for every student, under
``students.<student>``::

    schema_version                                    int
    name                                              str
    dataset.{name}                                    str
    dataset.{labelled,pool,transfer,test,classes}     int
    dataset.asked                                     int, rows of all versions of the transfer set
    seeds.<i>                                         int
    bootstrap.{resamples,seed}                        int
    bootstrap.{level}                                 float
  * models.<kind>.{accuracy,nll,brier,ece,adaptive_ece}.mean          float
  * models.<kind>.{accuracy,nll,brier,ece,adaptive_ece}.per_seed.<i>  float
  * models.<kind>.{parameters,bytes,nll_floored_rows}                 int
  * models.<kind>.latency_ms.{batch_1,batch_256}.{p50,p95}            float or null
  * models.<kind>.note                                                str
    members.<i>.{name,note}                           str
    members.<i>.{weight,temperature,accuracy,nll,brier,ece,adaptive_ece}.mean          float
    members.<i>.{weight,temperature,accuracy,nll,brier,ece,adaptive_ece}.per_seed.<i>  float
    members.<i>.held_out_nll.{mean,per_seed.<i>}      float; where it has held-out predictions
    members.<i>.{parameters,bytes,nll_floored_rows}   int
    members.<i>.latency_ms.{batch_1,batch_256}.{p50,p95}              float or null
  * gains.{ensemble,student}.<metric>.mean            float
  * gains.{ensemble,student}.<metric>.ci95.<i>        float
  * gains.{ensemble,student}.<metric>.beyond_interval bool
  * gains.student_over.<alternative>.<metric>.mean    float
  * gains.student_over.<alternative>.<metric>.ci95.<i>        float
  * gains.student_over.<alternative>.<metric>.beyond_interval bool
  * retained_gain.<metric>.mean                       float or null
  * retained_gain.<metric>.ci95.<i>                   float, or ci95 itself null
  * retained_gain.<metric>.meaningful                 bool
  * retained_gain.<metric>.share_without_gain         float
  * strongest.<family>.<metric>.alternative           str
  * strongest.<family>.<metric>.{student,ensemble}.mean       float
  * strongest.<family>.<metric>.{student,ensemble}.ci95.<i>   float
  * strongest.<family>.<metric>.{student,ensemble}.beyond_interval    bool
  * strongest.<family>.<metric>.retained_gain.mean    float or null
  * strongest.<family>.<metric>.retained_gain.ci95.<i>        float, or ci95 itself null
  * strongest.<family>.<metric>.retained_gain.meaningful      bool
  * strongest.<family>.<metric>.retained_gain.share_without_gain      float
  * serving.{parameters,bytes}                        float or null
  * serving.latency_ms.{batch_1,batch_256}.{p50,p95}  float or null
  * outcome                                           str
  * verdict                                           str
    students.<student>.description                    str
    weighted                                                                             bool
    baselines                                         str
    copies.{test,labelled,pool,synthetic,labelled_in_pool,other_label,left_out}        int
    without_copies.<student>.{outcome,verdict}        str, or without_copies itself null
    without_copies.<student>.models.<kind>.{accuracy,nll,brier,ece,adaptive_ece}       float
    auto.{minutes,seconds}                            float; with ``teachers: auto``
    auto.left_out.<member>                            str
    environment.*                                     any
    timings_s.*                                       float

``gains.ensemble`` and ``gains.student`` are over direct; ``beyond_interval`` is true where the interval lies
wholly above zero. ``strongest`` holds, for each family and metric, the alternative with the best mean on the
test rows, and the gains over it. Choosing it on the test rows can only raise the bar for the student: its
lead over any alternative chosen beforehand is at least as large. ``retained_gain.mean`` is the student's gain
divided by the ensemble's, both of means over seeds, null where the ensemble's is not positive; under
``strongest`` both are over that alternative. ``meaningful`` is false, and ``ci95`` null, where the ensemble's
gain is not beyond its interval; ``share_without_gain`` is the share of resamples in which the ensemble has no
gain (see `bootstrap.ratio_interval`). ``<kind>_temperature_scaled`` is the model after temperature scaling:
``direct`` calibrated on held-out folds of the labelled rows, the distilled ones to the mixture on the pool
(see `scaling`); the test rows are not used. ``weighted`` is true where the test rows have weights, by which
all means, and those of resamples, are then weighted. ``baselines`` states how *direct* and the temperatures
were chosen; empty where it was by a job's search. ``copies`` counts equal inputs over all seeds: test
rows that equal any row trained on, a labelled, a pool or a synthetic one; then labelled rows in the pool,
labelled and
test rows that equal one with another label, and rows that were left out (see
`ensdistill.data.copies.Copies`). ``without_copies`` holds the outcome and means over seeds without those test
rows; null where there are none, or where a seed has no other test rows. ``serving`` is ensemble divided by
student. ``exports``, only there where a student was exported, holds of each file its ``student``, ``seed``,
``name``, ``runtime``, ``temperature``, ``bytes``, ``accuracy``, ``nll``, ``latency_ms``, and the
``largest_difference`` of a probability from the student's own. ``outcome`` is one of `verdict.OUTCOMES`. The
file holds no NaN and no infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.report import metrics
from ensdistill.report.bootstrap import LEVEL, RESAMPLES, interval, ratio_interval, resampled_means
from ensdistill.report.results import (
    BATCHES,
    FAMILIES,
    PERCENTILES,
    SHARED_KINDS,
    MemberResult,
    ModelResult,
    RunResults,
    StudentResults,
)
from ensdistill.report.table import SCHEMA_VERSION
from ensdistill.report.verdict import outcome, verdict

BOOTSTRAP_SEED = 0
# name -> (one value per row, the sign that makes larger better)
GAIN_METRICS = {
    "accuracy": (metrics.correct_rows, 1),
    "nll": (metrics.nll_rows, -1),
    "brier": (metrics.brier_rows, -1),
}
COPIES = ("test", "labelled", "pool", "synthetic", "labelled_in_pool", "other_label", "left_out")
TABLE_METRICS = ("accuracy", "nll", "brier", "ece", "adaptive_ece")


def judge(results: RunResults, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The content of report.json (see the module's docstring).

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
        "name": results.name,
        "dataset": dict(results.dataset),
        "seeds": list(results.seeds),
        **{key: value for key, value in first.items() if key != "description"},
        "members": [_describe_member(member, results) for member in results.members],
        "students": blocks,
        "weighted": len(results.weights) > 0,
        "baselines": results.baselines,
        "copies": {name: sum(int(np.sum(getattr(c, name))) for c in results.copies) for name in COPIES},
        "without_copies": without,
        "bootstrap": {"resamples": resamples, "seed": BOOTSTRAP_SEED, "level": LEVEL},
        "environment": dict(results.environment),
        "timings_s": dict(results.timings),
        **({"auto": dict(results.auto)} if results.auto else {}),
        **({"exports": [dict(one) for one in results.exports]} if results.exports else {}),
        **({"searches": {n: list(s) for n, s in results.searches.items()}} if results.searches else {}),
    }


def _without_copies(results: RunResults, resamples: int) -> dict[str, Any] | None:
    fewer = results.without_copies() if any(copies.test.any() for copies in results.copies) else None
    if fewer is None:
        return None
    return {
        name: {
            **{key: block[key] for key in ("outcome", "verdict")},
            "models": {
                kind: {m: model[m]["mean"] for m in TABLE_METRICS} for kind, model in block["models"].items()
            },
        }
        for name, block in judge(fewer, resamples=resamples)["students"].items()
    }


class _Draws:
    """Every model's gain-oriented metrics, as means and as bootstrap draws, from one set of resamples."""

    def __init__(self, results: RunResults, resamples: int) -> None:
        models: dict[tuple[str, str], ModelResult] = {
            ("", kind): getattr(results, kind) for kind in SHARED_KINDS
        }
        models |= {
            (student.name, kind): model
            for student in results.students
            for kind, model in student.models.items()
        }
        self._column = {key: len(GAIN_METRICS) * i for i, key in enumerate(models)}
        self._offset = {metric: i for i, metric in enumerate(GAIN_METRICS)}
        rows = [
            np.stack(
                [
                    sign * f(model.probabilities[s], labels)
                    for model in models.values()
                    for f, sign in GAIN_METRICS.values()
                ],
                axis=1,
            )
            for s, labels in enumerate(results.labels)
        ]
        weights = results.weights
        means = [
            np.average(values, axis=0, weights=weights[s]) if len(weights) else values.mean(axis=0)
            for s, values in enumerate(rows)
        ]
        self._means = np.mean(means, axis=0)
        self._draws = resampled_means(rows, weights=weights, resamples=resamples, seed=BOOTSTRAP_SEED)

    def gain(self, better: tuple[str, str], base: tuple[str, str], metric: str) -> tuple[float, np.ndarray]:
        i, j = (self._column[key] + self._offset[metric] for key in (better, base))
        return float(self._means[i] - self._means[j]), self._draws[:, i] - self._draws[:, j]


def _student(
    student: StudentResults, shared: dict[str, Any], results: RunResults, draws: _Draws
) -> dict[str, Any]:
    name = student.name

    def gains(better: tuple[str, str], base: tuple[str, str]) -> dict[str, Any]:
        return {metric: _gain(*draws.gain(better, base, metric)) for metric in GAIN_METRICS}

    ensemble, direct, own = ("", "ensemble"), (name, "direct"), (name, "student")

    def key(kind: str) -> tuple[str, str]:
        return ("" if kind in SHARED_KINDS else name, kind)

    def strongest(family: tuple[str, ...], metric: str) -> dict[str, Any]:
        alternative = min(family, key=lambda kind: draws.gain(own, key(kind), metric)[0])
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

    block: dict[str, Any] = {
        "description": student.description,
        "models": shared | {kind: _describe(student.models[kind], results) for kind in student.models},
        "gains": {
            "ensemble": gains(ensemble, direct),
            "student": gains(own, direct),
            "student_over": {kind: gains(own, key(kind)) for kind in FAMILIES["all"]},
        },
        "retained_gain": {
            metric: _retained(draws.gain(own, direct, metric), draws.gain(ensemble, direct, metric))
            for metric in GAIN_METRICS
        },
        "strongest": {
            name: {m: strongest(kinds, m) for m in GAIN_METRICS} for name, kinds in FAMILIES.items()
        },
    }
    block["serving"] = _serving(block["models"]["ensemble"], block["models"]["student"])
    block["outcome"] = outcome(block)
    block["verdict"] = verdict(name, block, len(results.seeds))
    return block


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


def _describe(model: ModelResult | MemberResult, results: RunResults) -> dict[str, Any]:
    pairs = list(zip(model.probabilities, results.labels, strict=True))
    described: dict[str, Any] = {
        metric: _over_seeds(
            [
                getattr(metrics, metric)(probabilities, labels, weights=results.weights_of(s))
                for s, (probabilities, labels) in enumerate(pairs)
            ]
        )
        for metric in TABLE_METRICS
    }
    return described | {
        "nll_floored_rows": sum(
            metrics.floored_rows(probabilities, labels) for probabilities, labels in pairs
        ),
        "parameters": model.parameters,
        "bytes": model.bytes,
        "latency_ms": {batch: {p: model.latency_ms[batch][p] for p in PERCENTILES} for batch in BATCHES},
        "note": model.note,
    }


def _describe_member(member: MemberResult, results: RunResults) -> dict[str, Any]:
    weighting = {"weight": _over_seeds(member.weights), "temperature": _over_seeds(member.temperatures)}
    if len(member.held_out_nll):
        weighting["held_out_nll"] = _over_seeds(member.held_out_nll)
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
