"""Synthetic run results of multi-label and regression runs: models of a chosen error and cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from report_cases import latency
from scipy.special import expit

from ensdistill.common.tasks import Task
from ensdistill.data.samples import as_samples
from ensdistill.report import Forecasts, MemberResult, ModelResult, RunResults, StudentResults
from ensdistill.report.measures import MEASURES
from ensdistill.report.results import SMOOTHED, STUDENT_KINDS, Predicted

ROWS = 120
# The noise of each model: on log-odds, or on means.
NOISE = {
    "ensemble": 0.5,
    "best_member": 0.8,
    "direct": 1.3,
    "direct_label_smoothing": 1.25,
    "direct_temperature_scaled": 1.3,
    "direct_label_smoothing_temperature_scaled": 1.25,
    "distilled_from_best_member": 0.95,
    "distilled_from_best_member_temperature_scaled": 0.95,
    "student": 0.65,
    "student_temperature_scaled": 0.65,
}
LABELS = ("cat", "dog", "a label with quite a long name, as tags have", "bird", "never seen")
NUMBERS = ("price", "weight")


def label_parts(seed: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [N, C] with a few unknown ones, true log-odds and a unit of noise. The last label is never
    positive."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 3, (rows, len(LABELS))) + np.array([0, -1, -2, 1, -20])
    labels = (rng.random(odds.shape) < expit(odds)).astype(np.int8)
    labels[:, -1] = 0
    labels[rng.random(odds.shape) < 0.05] = -1
    labels[:, 0] = np.maximum(labels[:, 0], 0)
    return labels, odds, rng.normal(0, 2, odds.shape)


def number_parts(seed: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N, D] in thousands and in hundredths, and a unit of noise."""
    rng = np.random.default_rng(seed)
    scale = np.array([3000.0, 0.02])
    return rng.normal(2, 1, (rows, 2)) * scale, rng.normal(0, 0.3, (rows, 2)) * scale


def own_noise(level: float, shape: tuple[int, ...]) -> np.ndarray:
    """The part of a model's errors that other models lack."""
    return np.random.default_rng(round(1000 * level)).normal(0, 0.3, shape)


def label_results(
    seeds: tuple[int, ...] = (0, 1), noise: dict[str, float] | None = None, **changes: Any
) -> RunResults:
    parts = [label_parts(seed) for seed in seeds]
    levels = NOISE | (noise or {})

    def predicted(level: float) -> dict[str, Any]:
        own = [own_noise(level, odds.shape) for _, odds, _ in parts]
        return {
            "probabilities": [
                expit(odds + level * (unit + o)) for (_, odds, unit), o in zip(parts, own, strict=True)
            ],
            "thresholds": [np.full(len(LABELS), 0.4)] * len(parts),
        }

    fields = {"labels": [labels for labels, _, _ in parts], "outputs": LABELS, **changes}
    return _results("multilabel", seeds, levels, predicted, fields)


def number_results(
    seeds: tuple[int, ...] = (0, 1),
    noise: dict[str, float] | None = None,
    without_variance: tuple[str, ...] = (),
    **changes: Any,
) -> RunResults:
    """The models of the kinds ``without_variance`` predict a mean alone."""
    parts = [number_parts(seed) for seed in seeds]
    levels = NOISE | (noise or {})
    spread = np.array([900.0, 0.006])

    def predicted(level: float, variance: bool = True) -> dict[str, Any]:
        shape = parts[0][0].shape
        own = np.broadcast_to(np.square(level * spread), shape).copy()
        errors = [unit + spread * own_noise(level, shape) for _, unit in parts]
        return {
            "probabilities": [],
            "forecasts": [
                Forecasts(y + level * error, own if variance else None)
                for (y, _), error in zip(parts, errors, strict=True)
            ],
        }

    fields = {"labels": [labels for labels, _ in parts], "outputs": NUMBERS, **changes}
    return _results("regression", seeds, levels, predicted, fields, without_variance)


def _samples(task: Task, rows: int) -> Any:
    """Texts of labels, and rows of numbers."""
    if task == "multilabel":
        return as_samples([f"text {i}: a tool that reads & writes <files>" for i in range(rows)])
    return np.random.default_rng(0).normal(size=(rows, 5))


def _results(
    task: Task,
    seeds: tuple[int, ...],
    levels: dict[str, float],
    predicted: Callable[..., dict[str, Any]],
    fields: dict[str, Any],
    without_variance: tuple[str, ...] = (),
) -> RunResults:
    def model(kind: str, cost: float = 1.0) -> ModelResult:
        more = {"variance": False} if kind in without_variance else {}
        own = predicted(levels[kind], **more)
        return ModelResult(
            kind, parameters=int(5000 * cost), bytes=int(20000 * cost), latency_ms=latency(0.02 * cost), **own
        )

    kinds = [kind for kind in STUDENT_KINDS if task != "regression" or kind not in SMOOTHED]
    curve = [(step, 1 / (1 + step), 2 / (1 + step)) for step in range(0, 200, 20)]
    student = StudentResults(
        "mlp",
        "MLP 64-64",
        {kind: model(kind) for kind in kinds},
        {"direct": curve, "student": curve},
        [Predicted(**predicted(levels[kind])) for kind in ("distilled_from_best_member", "student")],
    )
    temperatures = [] if task == "regression" else [1.1] * len(seeds)
    members = [
        MemberResult(
            name,
            [0.5] * len(seeds),
            temperatures,
            parameters=9,
            bytes=9,
            latency_ms=latency(0.3),
            held_out=[0.4] * len(seeds),
            others=Predicted(**predicted(1.05 + 0.1 * i)),
            shapley={MEASURES[task].likelihood: [(0.2, 0.0) for _ in seeds]},
            **predicted(1.0 + 0.1 * i),
        )
        for i, name in enumerate(("forest", "booster"))
    ]
    whole = {
        "name": task,
        "dataset": {
            "name": task,
            "labelled": 200,
            "pool": 900,
            "transfer": 3300,
            "asked": 3300,
            "test": len(fields["labels"][0]),
            "classes": fields["labels"][0].shape[1],
        },
        "seeds": list(seeds),
        "ensemble": model("ensemble", 40),
        "best_member": model("best_member", 10),
        "members": members,
        "students": [student],
        "environment": {"cpu": "Xeon"},
        "timings": {"teachers": 31.4},
        "storage": {"teachers": 1_240_000},
        "inputs": [_samples(task, len(labels)) for labels in fields["labels"]],
        "uids": [np.arange(len(labels)) for labels in fields["labels"]],
        "forecast": {
            "over_best_member": {
                metric.name: {"mean": 0.01, "low": 0.0, "high": 0.02} for metric in MEASURES[task].deciding
            },
            "expected": {},
            "source": "no share is learned for this task",
        },
        "task": task,
        "auto": {"minutes": 4.0, "seconds": 200.0, "left_out": {"wide": "it takes longer than its share"}},
    }
    return RunResults(**{**whole, **fields})
