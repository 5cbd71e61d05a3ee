"""The results of one run, before the report judges them: test-set probabilities and costs of every model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ensdistill.data.copies import Copies
from ensdistill.report import metrics

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
BATCHES = ("batch_1", "batch_256")
PERCENTILES = ("p50", "p95")
DATASET_KEYS = ("name", "labelled", "pool", "transfer", "test", "classes")  # and "asked", where it is known

Latency = Mapping[str, Mapping[str, float | None]]  # {"batch_1": {"p50": ms, "p95": ms}, "batch_256": {...}}
CurvePoint = tuple[int, float, float | None]


@dataclass(frozen=True)
class ModelResult:
    """One model of the comparison.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    probabilities : list of ndarray [N_s, C], float64
        On the test rows, one array for each seed.
    parameters, bytes : int
        Of the served model: stored numbers, and the size of the file that holds them.
    latency_ms : mapping
        ``batch_1`` and ``batch_256``, each with ``p50`` and ``p95``: milliseconds for the whole batch; None
        where it was not measured (of stored answers).
    note : str
        Shown beside the model ("with augmentation", "the SVC in all seeds").
    """

    kind: str
    probabilities: Sequence[np.ndarray]
    parameters: int
    bytes: int
    latency_ms: Latency
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}; got {self.kind!r}")
        _check_cost(self.kind, self.parameters, self.bytes, self.latency_ms)


@dataclass(frozen=True)
class MemberResult:
    """One teacher: as `ModelResult`, with its weight and temperature in the ensemble.

    Parameters
    ----------
    weights : list of float
        Its share of the mixture, one for each seed.
    temperatures : list of float
        The divisors of its logits, one for each seed.
    held_out_nll : list of float
        On folds of the labelled rows that it was not trained on, one for each seed; empty where it has none.
    """

    name: str
    weights: Sequence[float]
    temperatures: Sequence[float]
    probabilities: Sequence[np.ndarray]
    parameters: int
    bytes: int
    latency_ms: Latency
    note: str = ""
    held_out_nll: Sequence[float] = ()

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
        One for each of `STUDENT_KINDS`.
    curves : dict of str to list of (step, loss, test NLL or None)
        Learning curves of the first seed, keyed by kind; may be empty. The loss is the model's own objective.
        The NLL is recorded for the eye alone: nothing is chosen by it.
    """

    name: str
    description: str
    models: Mapping[str, ModelResult]
    curves: Mapping[str, Sequence[CurvePoint]]

    def __post_init__(self) -> None:
        if set(self.models) != set(STUDENT_KINDS):
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
        (number).
    seeds : list of int
    labels : list of ndarray [N_s], int64
        Of the test rows, one array for each seed.
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

    def __post_init__(self) -> None:
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
                if copies.test.shape != labels.shape or copies.test.dtype != bool:
                    raise ValueError(
                        f"copies, seed {seed}: expected test to be bool [{len(labels)}], one for each test "
                        "row; got "
                        f"{copies.test.dtype} {list(copies.test.shape)}"
                    )
        if len(self.weights):
            self._check_seeds("weights", self.weights)
            for seed, weights, labels in zip(self.seeds, self.weights, self.labels, strict=True):
                if weights.shape != labels.shape or not (weights >= 0).all() or weights.sum() <= 0:
                    raise ValueError(
                        f"weights, seed {seed}: expected {len(labels)} numbers of at least 0 with a positive "
                        f"sum, one for each test row; got {list(weights.shape)}"
                    )
        for member in self.members:
            for what in ("weights", "temperatures"):
                values = getattr(member, what)
                self._check_seeds(f"{what} of member {member.name!r}", values)
                if not np.isfinite(values).all():
                    raise ValueError(
                        f"{what} of member {member.name!r}: expected finite numbers; got {list(values)}"
                    )
        for where, model in self._models():
            self._check_seeds(f"probabilities of {where}", model.probabilities)
            for seed, probabilities, labels in zip(self.seeds, model.probabilities, self.labels, strict=True):
                metrics.check(probabilities, labels, f"probabilities of {where}, seed {seed}")
                if probabilities.shape[1] != self.dataset["classes"]:
                    raise ValueError(
                        f"probabilities of {where}, seed {seed}: expected {self.dataset['classes']} "
                        f"classes; got {probabilities.shape[1]}"
                    )

    def without_copies(self) -> RunResults | None:
        """The same results without the test rows that equal a row that was trained on; None where a seed has
        no others."""
        keep = [~copies.test for copies in self.copies]
        if not all(rows.any() for rows in keep):
            return None

        def fewer(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            return [array[rows] for array, rows in zip(arrays, keep, strict=True)]

        def model(result: ModelResult) -> ModelResult:
            return replace(result, probabilities=fewer(result.probabilities))

        return replace(
            self,
            labels=fewer(self.labels),
            weights=fewer(self.weights) if len(self.weights) else [],
            ensemble=model(self.ensemble),
            best_member=model(self.best_member),
            members=[replace(member, probabilities=fewer(member.probabilities)) for member in self.members],
            students=[
                replace(s, models={kind: model(m) for kind, m in s.models.items()}, curves={})
                for s in self.students
            ],
            copies=[],
        )

    def weights_of(self, seed: int) -> np.ndarray | None:
        """The weights of the test rows of the seed at this position; None where all count alike."""
        return self.weights[seed] if len(self.weights) else None

    def _check_seeds(self, what: str, values: Sequence[Any]) -> None:
        if len(values) != len(self.seeds):
            raise ValueError(f"{what}: expected {len(self.seeds)}, one for each seed; got {len(values)}")

    def _models(self) -> list[tuple[str, ModelResult | MemberResult]]:
        models: list[tuple[str, ModelResult | MemberResult]] = [
            ("ensemble", self.ensemble),
            ("best_member", self.best_member),
        ]
        models += [(f"member {member.name!r}", member) for member in self.members]
        models += [
            (f"{student.name}.{kind}", model)
            for student in self.students
            for kind, model in student.models.items()
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
