"""Synthetic run results for the report's tests: models of a chosen accuracy, confidence and cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from ensdistill.report import figures, html
from ensdistill.report.results import (
    STUDENT_KINDS,
    MemberResult,
    ModelResult,
    Predicted,
    RunResults,
    StudentResults,
)
from ensdistill.report.spread import Spread

ROWS, CLASSES = 697, 10
HELPED = {
    "ensemble": 0.971,
    "best_member": 0.960,
    "direct": 0.925,
    "direct_label_smoothing": 0.930,
    "direct_temperature_scaled": 0.925,
    "direct_label_smoothing_temperature_scaled": 0.930,
    "distilled_from_best_member": 0.950,
    "distilled_from_best_member_temperature_scaled": 0.950,
    "student": 0.966,
    "student_temperature_scaled": 0.966,
}


@contextmanager
def without_drawing() -> Iterator[None]:
    """Within, a report's figures are made and not drawn."""
    with (
        mock.patch.object(figures, "lay_out", return_value=None),
        mock.patch.object(html, "png", return_value=b"not drawn"),
        mock.patch.object(html, "svg", return_value="<svg></svg>"),
    ):
        yield


def latency(base: float) -> dict[str, dict[str, float]]:
    return {"batch_1": {"p50": base, "p95": 1.3 * base}, "batch_256": {"p50": 9 * base, "p95": 11 * base}}


def labels_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(CLASSES, size=ROWS)


def predict(labels: np.ndarray, accuracy: float, seed: int) -> np.ndarray:
    """Right on exactly the easiest ``accuracy`` of the rows, so that models with equal accuracy err on the
    same rows."""
    order = np.random.default_rng(1000 + seed).permutation(len(labels))
    wrong = np.zeros(len(labels), bool)
    wrong[order[round(accuracy * len(labels)) :]] = True
    confidence = np.random.default_rng(2000 + seed).uniform(0.6, 0.999, len(labels))
    top = np.where(wrong, (labels + 1 + order % (CLASSES - 1)) % CLASSES, labels)
    probabilities = np.repeat((1 - confidence)[:, None] / (CLASSES - 1), CLASSES, axis=1)
    probabilities[np.arange(len(labels)), top] = confidence
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def model(
    kind: str, accuracy: float, labels: list[np.ndarray], cost: float = 1.0, **changes: Any
) -> ModelResult:
    probabilities = [predict(y, accuracy - 0.003 * s, s) for s, y in enumerate(labels)]
    fields = {"parameters": int(4810 * cost), "bytes": int(19600 * cost), "latency_ms": latency(0.021 * cost)}
    return ModelResult(**{"kind": kind, "probabilities": probabilities, **fields, **changes})


def spread_of(seed: int, *, keeps: bool = True) -> Spread:
    """Uncertainties of which those of strange rows are larger, those of the members the most."""
    draws = np.random.default_rng(3000 + seed).gamma(1.0, size=(2, ROWS))
    total, knowledge = draws[0], 0.1 * draws[1]
    if not keeps:
        return Spread(total, total[:300] + 0.2)
    return Spread(total, total[:300] + 0.2, knowledge, knowledge[:300] + 0.1)


def run_results(*levels: dict[str, float], seeds: tuple[int, ...] = (0, 1, 2), **changes: Any) -> RunResults:
    """One student for each mapping of kind to accuracy; kinds that a mapping lacks are as in `HELPED`."""
    labels = [labels_of(seed) for seed in seeds]
    all_levels = [HELPED | level for level in levels] or [HELPED]
    students = []
    for (name, description), level in zip(
        (("mlp", "MLP 64-64-10"), ("cnn", "CNN 8-16")), all_levels, strict=False
    ):
        curves = {
            kind: [
                (step, 2.3 * 0.99 ** (step / 5) + 0.05, 0.4 + offset + 1.9 * 0.99 ** (step / 5))
                for step in range(0, 2501, 50)
            ]
            for kind, offset in (("direct", 0.0), ("student", -0.25))
        }
        models = {kind: model(kind, level[kind], labels) for kind in STUDENT_KINDS}
        of_first = [models["distilled_from_best_member"], models["student"]] if name == "mlp" else []
        generations = [Predicted(one.probabilities) for one in of_first]
        spreads = {
            kind: [spread_of(seed, keeps=kind == "student") for seed in seeds]
            for kind in ("direct", "student")
        }
        students.append(StudentResults(name, description, models, curves, generations, spreads))
    members = [
        MemberResult(
            name,
            [weight + 0.01 * s for s in range(len(seeds))],
            [1.2] * len(seeds),
            model("ensemble", accuracy, labels).probabilities,
            30_000,
            120_000,
            latency(0.4),
            held_out=[0.2] * len(seeds),
            shapley={
                "accuracy": [(weight / 2 + 0.01 * s, 0.0) for s in range(len(seeds))],
                "nll": [(weight, 0.003) for _ in seeds],
            },
            others=Predicted(
                model("ensemble", all_levels[0]["ensemble"] - weight / 20, labels).probabilities
            ),
        )
        for name, weight, accuracy in (
            ("cnn-0", 0.24, 0.955),
            ("cnn-1", 0.22, 0.950),
            ("svc", 0.40, 0.960),
            ("extra-trees", 0.02, 0.90),
        )
    ]
    fields: dict[str, Any] = {
        "name": "digits",
        "dataset": {
            "name": "digits",
            "labelled": 200,
            "pool": 900,
            "transfer": 3300,
            "asked": 3300,
            "test": ROWS,
            "classes": CLASSES,
        },
        "seeds": list(seeds),
        "auto": {"minutes": 4.0, "seconds": 200.0, "left_out": {"wide": "it takes longer than its share"}},
        "labels": labels,
        "ensemble": model("ensemble", all_levels[0]["ensemble"], labels, 40),
        "best_member": model(
            "best_member", all_levels[0]["best_member"], labels, 10, note="svc in every seed"
        ),
        "members": members,
        "students": students,
        "environment": {"cpu": "Xeon", "threads": 2, "torch": "2.13.0"},
        "timings": {"teachers": 31.4, "cache": 1.2, "student": 80.0},
        "storage": {"teachers": 1_240_000, "cache": 330_000},
        "spreads": [spread_of(seed) for seed in seeds],
        "strange": "rows of another table",
        "inputs": [np.random.default_rng(seed).random((ROWS, 1, 8, 8)) for seed in seeds],
        "uids": [7 * np.arange(ROWS) + seed for seed in seeds],
        "forecast": {
            "over_best_member": {
                "accuracy": {"mean": 0.012, "low": 0.003, "high": 0.021},
                "nll": {"mean": 0.04, "low": 0.01, "high": 0.07},
            },
            "expected": {"mlp": {"share": 0.6, "error": 0.2}},
            "source": "the mean of 72 students on 9 data sets",
        },
    }
    return RunResults(**{**fields, **changes})
