"""Results that don't fit together are refused, by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from report_cases import labels_of, latency, model, run_results

from ensdistill.report import MemberResult, ModelResult, RunResults, StudentResults


def member(**changes: Any) -> MemberResult:
    results = run_results(seeds=(0, 1))
    fields = {
        "name": "svc",
        "weights": [1.0, 1.0],
        "temperatures": [1.0, 1.0],
        "probabilities": results.ensemble.probabilities,
    }
    return MemberResult(**{**fields, "parameters": 1, "bytes": 1, "latency_ms": latency(1.0), **changes})


def two_seeds(**changes: Any) -> RunResults:
    return run_results(seeds=(0, 1), **changes)


LABELS = [labels_of(0), labels_of(1)]
CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: model("teacher", 0.9, LABELS), ValueError, "kind: expected one of ensemble, .*; got 'teacher'"),
    (
        lambda: model("student", 0.9, LABELS, bytes=-1),
        ValueError,
        "bytes of student: expected an integer of at least 0; got -1",
    ),
    (lambda: model("student", 0.9, LABELS, parameters=2.5), ValueError, "parameters of student: .*; got 2.5"),
    (
        lambda: model("student", 0.9, LABELS, latency_ms={"batch_1": {"p50": 1.0}}),
        ValueError,
        "student: expected batch_1.p95 .*; got 'nothing'",
    ),
    (
        lambda: member(latency_ms=latency(float("nan"))),
        ValueError,
        "member 'svc': expected batch_1.p50 .* above 0; got nan",
    ),
    (
        lambda: StudentResults("mlp", "", {"student": model("student", 0.9, LABELS)}, {}),
        ValueError,
        "'mlp' needs direct, .*; got student",
    ),
    (
        lambda: StudentResults(
            "mlp", "", {**two_seeds().students[0].models, "direct": model("student", 0.9, LABELS)}, {}
        ),
        ValueError,
        "model of kind 'student' under the key 'direct'",
    ),
    (
        lambda: StudentResults("mlp", "", two_seeds().students[0].models, {"loss": []}),
        ValueError,
        "curves: .* got 'loss'",
    ),
    (
        lambda: two_seeds(dataset={"name": "digits"}),
        ValueError,
        "dataset: .* labelled, pool, transfer, test, classes missing",
    ),
    (
        lambda: two_seeds(dataset={**two_seeds().dataset, "pool": "900"}),
        TypeError,
        "dataset: expected an int as pool; got '900'",
    ),
    (lambda: run_results(seeds=()), ValueError, r"seeds: expected at least one, each once; got \[\]"),
    (lambda: run_results(seeds=(1, 1)), ValueError, r"seeds: .* got \[1, 1\]"),
    (
        lambda: two_seeds(best_member=two_seeds().ensemble),
        ValueError,
        "best_member: expected .* 'best_member'; got 'ensemble'",
    ),
    (
        lambda: two_seeds(students=[]),
        ValueError,
        r"students: expected at least one, with different names; got \[\]",
    ),
    (
        lambda: two_seeds(students=list(two_seeds().students) * 2),
        ValueError,
        r"different names; got \['mlp', 'mlp'\]",
    ),
    (lambda: two_seeds(labels=[labels_of(0)]), ValueError, "labels: expected 2, one for each seed; got 1"),
    (
        lambda: two_seeds(members=[member(weights=[1.0])]),
        ValueError,
        "weights of member 'svc': expected 2, .*; got 1",
    ),
    (
        lambda: two_seeds(members=[member(temperatures=[1.0, np.inf])]),
        ValueError,
        r"temperatures of member 'svc': .* got \[1.0, inf\]",
    ),
    (
        lambda: two_seeds(ensemble=model("ensemble", 0.9, LABELS[:1])),
        ValueError,
        "probabilities of ensemble: expected 2, .*; got 1",
    ),
    (
        lambda: two_seeds(labels=[labels_of(0), labels_of(1)[:-1]]),
        ValueError,
        r"labels: expected \[697\], one for each row of probabilities of ensemble, seed 1; got \[696\]",
    ),
    (
        lambda: two_seeds(
            ensemble=model(
                "ensemble", 0.9, LABELS, probabilities=[np.log(p) for p in two_seeds().ensemble.probabilities]
            )
        ),
        ValueError,
        r"probabilities of ensemble, seed 0: expected values in \[0, 1\]",
    ),
    (
        lambda: two_seeds(
            ensemble=model(
                "ensemble", 0.9, LABELS, probabilities=[p.astype(np.float32) for p in member().probabilities]
            )
        ),
        TypeError,
        "probabilities of ensemble, seed 0: expected a float64 array; got float32",
    ),
    (
        lambda: two_seeds(dataset={**two_seeds().dataset, "classes": 11}),
        ValueError,
        "probabilities of ensemble, seed 0: expected 11 classes; got 10",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), CASES)
def test_bad_results_are_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_model_without_a_note_has_an_empty_one() -> None:
    assert ModelResult("student", [], 1, 1, latency(1.0)).note == ""
