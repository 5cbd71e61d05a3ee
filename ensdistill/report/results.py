"""The results of one run, before the report judges them: predictions of the test rows, and costs, of every
model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task, check_task
from ensdistill.data.copies import Copies
from ensdistill.report.measures import MEASURES
from ensdistill.report.multilabel_metrics import LabelProbabilities
from ensdistill.report.regression_metrics import Forecasts
from ensdistill.report.spread import Spread

SHARED_KINDS = ("ensemble", "best_member")
# Metrics after temperature scaling, beside those before. See `scaling` for the rows.
SCALED = {
    "direct": "direct_temperature_scaled",
    "direct_label_smoothing": "direct_label_smoothing_temperature_scaled",
    "distilled_from_best_member": "distilled_from_best_member_temperature_scaled",
    "student": "student_temperature_scaled",
}
# Models that the student has to beat, each family a part of the next: without a teacher, as cheap to serve,
# all of them.
DIRECT = (
    "direct",
    "direct_label_smoothing",
    "direct_temperature_scaled",
    "direct_label_smoothing_temperature_scaled",
)
SAME_SIZE = (*DIRECT, "distilled_from_best_member", SCALED["distilled_from_best_member"])
FAMILIES = {"direct": DIRECT, "same_size": SAME_SIZE, "all": (*SAME_SIZE, "best_member")}
STUDENT_KINDS = (*SAME_SIZE, "student", SCALED["student"])
KINDS = SHARED_KINDS + STUDENT_KINDS
# Labels that are numbers can't be smoothed: a regression's students may lack these.
SMOOTHED = tuple(kind for kind in STUDENT_KINDS if "smoothing" in kind)
BATCHES = ("batch_1", "batch_256")
PERCENTILES = ("p50", "p95")
DATASET_KEYS = ("name", "labelled", "pool", "transfer", "test", "classes")  # and "asked", where it is known

Latency = Mapping[str, Mapping[str, float | None]]  # {"batch_1": {"p50": ms, "p95": ms}, "batch_256": {...}}
CurvePoint = tuple[int, float, float | None]


class Predictions:
    """The predictions of a model, by seed."""

    probabilities: Sequence[np.ndarray]
    thresholds: Sequence[np.ndarray]
    forecasts: Sequence[Forecasts]

    def predictions(self, task: Task) -> list[Any]:
        """One for each seed, in the form that the task's metrics take: probabilities [N, C],
        `LabelProbabilities` or `Forecasts`."""
        if task == "classification":
            return list(self.probabilities)
        if task == "regression":
            return list(self.forecasts)
        thresholds = self.thresholds if len(self.thresholds) else [None] * len(self.probabilities)
        return [LabelProbabilities(p, t) for p, t in zip(self.probabilities, thresholds, strict=True)]

    def without(self, dropped: Sequence[np.ndarray]) -> dict[str, Any]:
        """The fields that hold predictions, without the rows of a mask [N] for each seed."""
        kept = [~rows for rows in dropped]
        return {
            "probabilities": [p[rows] for p, rows in zip(self.probabilities, kept, strict=False)],
            "forecasts": [p.take(rows) for p, rows in zip(self.forecasts, kept, strict=False)],
        }


@dataclass(frozen=True)
class Predicted(Predictions):
    """The predictions of a mixture that is no model of the comparison; the fields are those of
    `ModelResult`."""

    probabilities: Sequence[np.ndarray] = ()
    thresholds: Sequence[np.ndarray] = ()
    forecasts: Sequence[Forecasts] = ()


@dataclass(frozen=True)
class ModelResult(Predictions):
    """One model of the comparison.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    probabilities : list of ndarray [N_s, C], float64
        On the test rows, one array for each seed: of the classes, or of labels by themselves. Empty for a
        regression.
    parameters, bytes : int
        Of the served model: stored numbers, and the size of the file that holds them.
    latency_ms : mapping
        ``batch_1`` and ``batch_256``, each with ``p50`` and ``p95``: milliseconds for the whole batch; None
        where it was not measured (of stored answers).
    note : str
        Shown beside the model ("with augmentation", "the SVC in all seeds").
    thresholds : list of ndarray [C]
        Of a multi-label model, one array for each seed: a label is predicted where its probability is at
        least this. Tuned on rows that are not test rows; 0.5 where it is empty.
    forecasts : list of Forecasts
        Of a regression model, one for each seed, in the data's units.
    """

    kind: str
    probabilities: Sequence[np.ndarray]
    parameters: int
    bytes: int
    latency_ms: Latency
    note: str = ""
    thresholds: Sequence[np.ndarray] = ()
    forecasts: Sequence[Forecasts] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}; got {self.kind!r}")
        _check_cost(self.kind, self.parameters, self.bytes, self.latency_ms)


@dataclass(frozen=True)
class MemberResult(Predictions):
    """One teacher: as `ModelResult`, with its weight and temperature in the ensemble.

    Parameters
    ----------
    weights : list of float
        Its share of the mixture, one for each seed.
    temperatures : list of float
        The divisors of its logits, one for each seed; empty for a regressor, which has none.
    held_out : list of float
        Its NLL, of a regressor its RMSE, on folds of the labelled rows that it was not trained on; one for
        each seed. Empty where it has none.
    others : Predicted, optional
        The mixture of the other members, with their weights in the same proportions. None where there is
        none, or where it was not computed.
    shapley : mapping of str to list of (float, float)
        By metric the member's Shapley value in the gain of the ensemble over none, and its standard error,
        one pair for each seed. May be empty.
    """

    name: str
    weights: Sequence[float]
    temperatures: Sequence[float]
    probabilities: Sequence[np.ndarray]
    parameters: int
    bytes: int
    latency_ms: Latency
    note: str = ""
    held_out: Sequence[float] = ()
    thresholds: Sequence[np.ndarray] = ()
    forecasts: Sequence[Forecasts] = ()
    others: Predicted | None = None
    shapley: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_cost(f"member {self.name!r}", self.parameters, self.bytes, self.latency_ms)


@dataclass(frozen=True)
class StudentResults:
    """One student architecture with its baselines.

    Parameters
    ----------
    name, description : str
        A short key ("mlp") and the description ("MLP 64-64-10").
    models : dict of str to ModelResult
        One for each of `STUDENT_KINDS`; of a regression those of `SMOOTHED` may be missing.
    curves : dict of str to list of (step, loss, test NLL or None)
        Learning curves of the first seed, keyed by kind; may be empty. The loss is the model's own objective.
        In place of the NLL stands the BCE of several labels, or the RMSE of a regression. It is recorded
        for the eye alone: nothing is chosen by it.
    generations : list of Predicted
        Of a student of several generations all of them, the first one first and the student last; else empty.
    spreads : dict of str to list of Spread
        By kind ("direct", "student") the uncertainties of each seed; empty where they were not computed.
    """

    name: str
    description: str
    models: Mapping[str, ModelResult]
    curves: Mapping[str, Sequence[CurvePoint]]
    generations: Sequence[Predicted] = ()
    spreads: Mapping[str, Sequence[Spread]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not set(STUDENT_KINDS) - set(SMOOTHED) <= set(self.models) <= set(STUDENT_KINDS):
            raise ValueError(
                f"models: student {self.name!r} needs {', '.join(STUDENT_KINDS)}; got "
                f"{', '.join(self.models) or 'none'}"
            )
        for kind, model in self.models.items():
            if model.kind != kind:
                raise ValueError(
                    f"models: student {self.name!r} has a model of kind {model.kind!r} under the key {kind!r}"
                )
        unknown = set(self.curves) - set(STUDENT_KINDS)
        if unknown:
            raise ValueError(
                f"curves: student {self.name!r}: expected keys among {', '.join(STUDENT_KINDS)}; got "
                f"{min(unknown)!r}"
            )


@dataclass(frozen=True)
class RunResults:
    """Everything the report judges.

    Parameters
    ----------
    name : str
        The run's name.
    dataset : dict
        ``name`` (str), ``labelled``, ``pool``, ``transfer``, ``test`` (numbers of rows), ``classes``
        (how many there are; in the other tasks, how many labels or numbers).
    seeds : list of int
    labels : list of ndarray
        Of the test rows, one array for each seed, in the task's form (see `ensdistill.data.tasks`).
    ensemble, best_member : ModelResult
    members : list of MemberResult
    students : list of StudentResults
        The first is the one the headline is about.
    environment : dict
        JSON values: cpu, threads, torch, ...
    timings : dict of str to float
        Seconds of each stage.
    copies : list of Copies
        Equal inputs in different parts, one entry for each seed; may be empty where they were not counted.
    weights : list of ndarray [N_s], float64
        Of the test rows, one array for each seed; empty where all count alike.
    exports : list of dict
        Of each exported file: JSON values student, seed, name, runtime, temperature, bytes, accuracy, nll,
        latency_ms, largest_difference.
    baselines : str
        How *direct* and the temperatures were chosen, in sentences for the report; empty where it was by a
        job's search.
    auto : dict
        The plan of ``teachers: auto``: ``minutes``, ``seconds`` (its estimate), ``left_out`` (the reason for
        each member that was not trained). Empty where the settings name the members.
    searches : dict of str to list of dict
        By student that was searched for, and seed: the JSON of the search's result.
    task : {"classification", "multilabel", "regression"}
    outputs : list of str
        Names of the C classes, C labels or D numbers; "0", "1", ... where it is empty.
    inputs : list of samples
        The test rows themselves (see :mod:`ensdistill.data.samples`), of which the report shows a few; one
        entry for each seed, or empty.
    uids : list of ndarray [N_s], int64
        The numbers of the test rows in their data set, one array for each seed; may be empty.
    storage : dict of str to int
        Bytes on disk of each stage.
    forecast : dict
        The preflight's: ``over_best_member`` (by metric ``mean``, ``low``, ``high``), ``expected`` (by
        student ``share`` and ``error``) and ``source``; or ``none``, a sentence. May be empty.

    Raises
    ------
    TypeError, ValueError
        Something above is missing or doesn't fit the rest; the message names the model and the seed.
    """

    name: str
    dataset: Mapping[str, Any]
    seeds: Sequence[int]
    labels: Sequence[np.ndarray]
    ensemble: ModelResult
    best_member: ModelResult
    members: Sequence[MemberResult]
    students: Sequence[StudentResults]
    environment: Mapping[str, Any]
    timings: Mapping[str, float]
    copies: Sequence[Copies] = field(default_factory=list)
    weights: Sequence[np.ndarray] = field(default_factory=list)
    exports: Sequence[Mapping[str, Any]] = field(default_factory=list)
    baselines: str = ""
    auto: Mapping[str, Any] = field(default_factory=dict)
    searches: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    task: Task = "classification"
    outputs: Sequence[str] = ()
    inputs: Sequence[Any] = ()
    uids: Sequence[np.ndarray] = ()
    storage: Mapping[str, int] = field(default_factory=dict)
    forecast: Mapping[str, Any] = field(default_factory=dict)
    spreads: Sequence[Spread] = ()
    strange: str = ""

    def __post_init__(self) -> None:
        check_task(self.task)
        missing = [key for key in DATASET_KEYS if key not in self.dataset]
        if missing:
            raise ValueError(
                f"dataset: expected the keys {', '.join(DATASET_KEYS)}; {', '.join(missing)} missing"
            )
        for key in DATASET_KEYS[1:]:
            if not isinstance(self.dataset[key], int):
                raise TypeError(f"dataset: expected an int as {key}; got {self.dataset[key]!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected at least one, each once; got {list(self.seeds)}")
        for kind in SHARED_KINDS:
            if getattr(self, kind).kind != kind:
                raise ValueError(
                    f"{kind}: expected a model of kind {kind!r}; got {getattr(self, kind).kind!r}"
                )
        names = [student.name for student in self.students]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"students: expected at least one, with different names; got {names}")
        self._check_seeds("labels", self.labels)
        if self.copies:
            self._check_seeds("copies", self.copies)
            for seed, copies, labels in zip(self.seeds, self.copies, self.labels, strict=True):
                if copies.test.shape != labels.shape[:1] or copies.test.dtype != bool:
                    raise ValueError(
                        f"copies, seed {seed}: expected test to be bool [{len(labels)}], one for each test "
                        "row; got "
                        f"{copies.test.dtype} {list(copies.test.shape)}"
                    )
        if len(self.weights):
            self._check_seeds("weights", self.weights)
            for seed, weights, labels in zip(self.seeds, self.weights, self.labels, strict=True):
                if weights.shape != labels.shape[:1] or not (weights >= 0).all() or weights.sum() <= 0:
                    raise ValueError(
                        f"weights, seed {seed}: expected {len(labels)} numbers of at least 0 with a positive "
                        f"sum, one for each test row; got {list(weights.shape)}"
                    )
        for member in self.members:
            for what in ("weights", "temperatures"):
                values = getattr(member, what)
                if self.task == "regression" and what == "temperatures" and not len(values):
                    continue
                self._check_seeds(f"{what} of member {member.name!r}", values)
                if not np.isfinite(values).all():
                    raise ValueError(
                        f"{what} of member {member.name!r}: expected finite numbers; got {list(values)}"
                    )
        self._check_predictions()
        for what in ("inputs", "uids"):
            if len(getattr(self, what)):
                self._check_seeds(what, getattr(self, what))
                for seed, rows, labels in zip(self.seeds, getattr(self, what), self.labels, strict=True):
                    if len(rows) != len(labels):
                        raise ValueError(
                            f"{what}, seed {seed}: expected {len(labels)}, one for each test row; got "
                            f"{len(rows)}"
                        )

    def without_copies(self) -> RunResults | None:
        """The same results without the test rows that equal a row that was trained on; None where a seed has
        no others."""
        dropped = [copies.test for copies in self.copies]
        if any(rows.all() for rows in dropped):
            return None

        def fewer(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [array[~rows] for array, rows in zip(arrays, dropped, strict=True)]

        def model(result: ModelResult) -> ModelResult:
            return replace(result, **result.without(dropped))

        return replace(
            self,
            labels=fewer(self.labels),
            weights=fewer(self.weights) if len(self.weights) else [],
            ensemble=model(self.ensemble),
            best_member=model(self.best_member),
            members=[
                replace(member, **member.without(dropped), others=None, shapley={}) for member in self.members
            ],
            students=[
                replace(
                    s,
                    models={kind: model(m) for kind, m in s.models.items()},
                    curves={},
                    generations=[replace(one, **one.without(dropped)) for one in s.generations],
                    spreads={},
                )
                for s in self.students
            ],
            copies=[],
            inputs=(),
            uids=(),
        )

    def weights_of(self, seed: int) -> np.ndarray | None:
        """The weights of the test rows of the seed at this position; None where all count alike."""
        return self.weights[seed] if len(self.weights) else None

    def _check_seeds(self, what: str, values: Sequence[Any]) -> None:
        if len(values) != len(self.seeds):
            raise ValueError(f"{what}: expected {len(self.seeds)}, one for each seed; got {len(values)}")

    def _check_predictions(self) -> None:
        measures, count = MEASURES[self.task], self.dataset["classes"]
        if self.outputs and len(self.outputs) != count:
            raise ValueError(
                f"outputs: expected {count} names of {measures.outputs}, or none; got {len(self.outputs)}"
            )
        for student in self.students:
            if self.task != "regression" and (missing := set(SMOOTHED) - set(student.models)):
                raise ValueError(f"models: student {student.name!r} needs {', '.join(sorted(missing))}, too")
        for where, model in self._models():
            what = f"{measures.predictions} of {where}"
            self._check_seeds(what, model.forecasts if self.task == "regression" else model.probabilities)
            if self.task == "multilabel" and len(model.thresholds):
                self._check_seeds(f"thresholds of {where}", model.thresholds)
            predictions = model.predictions(self.task)
            for seed, prediction, labels in zip(self.seeds, predictions, self.labels, strict=True):
                measures.check(prediction, labels, f"{what}, seed {seed}")
                found = (prediction if self.task == "classification" else labels).shape[1]
                if found != count:
                    raise ValueError(f"{what}, seed {seed}: expected {count} {measures.outputs}; got {found}")

    def _models(self) -> list[tuple[str, Predictions]]:
        models: list[tuple[str, Predictions]] = [
            ("ensemble", self.ensemble),
            ("best_member", self.best_member),
        ]
        models += [(f"member {member.name!r}", member) for member in self.members]
        models += [
            (f"the others than member {member.name!r}", member.others)
            for member in self.members
            if member.others is not None
        ]
        models += [
            (f"{student.name}.{kind}", model)
            for student in self.students
            for kind, model in student.models.items()
        ]
        models += [
            (f"generation {number} of {student.name}", model)
            for student in self.students
            for number, model in enumerate(student.generations, 1)
        ]
        return models


def _check_cost(what: str, parameters: int, size: int, latency_ms: Latency) -> None:
    for name, value in (("parameters", parameters), ("bytes", size)):
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} of {what}: expected an integer of at least 0; got {value!r}")
    for batch in BATCHES:
        for percentile in PERCENTILES:
            time = latency_ms.get(batch, {}).get(percentile, "nothing")
            if time is not None and not (isinstance(time, float) and 0 < time < math.inf):
                expected = (
                    f"{batch}.{percentile} in milliseconds (None where it was not measured), a float above 0"
                )
                raise ValueError(f"latency_ms of {what}: expected {expected}; got {time!r}")
