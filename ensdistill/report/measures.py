"""The metrics of each task, and how the report shows them. All tables, gains, sentences and figures follow
this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.report import metrics, multilabel_metrics, regression_metrics

Rows = Callable[[Any, np.ndarray], np.ndarray]  # (prediction, labels) -> [N]
Value = Callable[[Any, np.ndarray, np.ndarray | None], float]  # (prediction, labels, weights [N] or None)
# (prediction, labels) -> a function from row weights [R, N] to values [R]
Resampler = Callable[[Any, np.ndarray], Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class Metric:
    """A metric. A metric of one name has one label, sign and format in all tasks.

    Parameters
    ----------
    name : str
        In report.json.
    label : str
        In sentences and tables.
    sign : int
        1 where larger is better, -1 where smaller is, 0 where neither is.
    value : callable, optional
        Of a set of rows; by default the mean of ``rows``, after ``finish``.
    rows : callable, optional
        One value per row.
    finish : callable, optional
        From means of ``rows``, an array, to the metric.
    resampler : callable, optional
        The metric for many sets of row weights, where it is no function of a mean.
    decides : bool
        Whether the headline goes by it.
    percent : bool
        Whether it is a share, shown in percent.
    unit : str
        Beside the label in figures.
    needs : str
        An attribute of the prediction that must not be None; a model without it lacks the metric.
    """

    name: str
    label: str
    sign: int
    value: Value | None = None
    rows: Rows | None = None
    finish: Callable[[Any], Any] | None = None
    resampler: Resampler | None = None
    decides: bool = False
    percent: bool = False
    unit: str = ""
    needs: str = ""

    @property
    def compared(self) -> bool:
        """Whether gains in it have intervals."""
        return (self.rows is not None and self.value is None) or self.resampler is not None

    @property
    def heading(self) -> str:
        """Of a column."""
        return f"{self.label} %" if self.percent else self.label

    @property
    def title(self) -> str:
        """Of a panel or an axis."""
        unit = "%" if self.percent else self.unit
        return f"{self.label}, {unit}" if unit else self.label

    @property
    def scale(self) -> int:
        """The factor of what is shown."""
        return 100 if self.percent else 1

    def defined(self, predictions: Sequence[Any]) -> bool:
        """Whether it can be computed from the predictions of all seeds."""
        return not self.needs or all(getattr(one, self.needs) is not None for one in predictions)

    def of(self, prediction: Any, labels: np.ndarray, weights: np.ndarray | None) -> float:
        """Its value on a set of rows, weighted where they have weights [N]."""
        if self.value is not None:
            return self.value(prediction, labels, weights)
        assert self.rows is not None
        mean = metrics.mean_of(self.rows(prediction, labels), weights)
        return mean if self.finish is None else float(self.finish(mean))

    def text(self, value: float) -> str:
        """A value as tables show it."""
        return f"{100 * value:.2f}" if self.percent else f"{value:.3f}"


@dataclass(frozen=True)
class Each:
    """A metric of each class, label or number by itself.

    Parameters
    ----------
    metric : Metric
        Its ``value`` is None.
    values : callable
        (prediction, labels, weights) -> [C]; NaN where it is undefined.
    about : str
        The name of a further column.
    describe : callable
        (labels, C) -> [C], the values of that column.
    """

    metric: Metric
    values: Callable[[Any, np.ndarray, np.ndarray | None], np.ndarray]
    about: str
    describe: Callable[[np.ndarray, int], np.ndarray]

    def change(self, one: Mapping[str, Any], of: str = "student", over: str = "direct") -> float | None:
        """By how much one model is better than another in an entry of the report's ``outputs``."""
        better, base = (one[self.metric.name][kind] for kind in (of, over))
        return None if better is None or base is None else self.metric.sign * float(better - base)

    def text(self, value: float | None) -> str:
        """A value as tables show it: in percent, or in the data's units."""
        if value is None:
            return "-"
        return self.metric.text(value) if self.metric.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Measures:
    """The metrics of one task, with the words for it.

    Parameters
    ----------
    metrics : tuple of Metric
        In the order of the tables. The first one that decides is an axis of the figures; the first four
        are shown of members, and in the figure of all models.
    check : callable
        Refuses predictions and labels that do not fit: (prediction, labels, name).
    watched : str
        The metric beside the learning curves.
    likelihood : str
        The metric that scaling is fitted by.
    floored : (str, callable, str)
        The name of a count in report.json, its function (prediction, labels) and its sentence.
    outputs, predictions : str
        The words for the C classes or D numbers, and for predictions in messages.
    gains, about : str
        Sentences for the footnotes.
    each : Each
    scaling : str
        The word for what a scaled model's fit changes.
    """

    metrics: tuple[Metric, ...]
    check: Callable[[Any, np.ndarray, str], None]
    watched: str
    likelihood: str
    floored: tuple[str, Callable[[Any, np.ndarray], int], str]
    outputs: str
    predictions: str
    gains: str
    about: str
    each: Each
    scaling: str = "temperature"
    by_name: Mapping[str, Metric] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {metric.name: metric for metric in self.metrics})

    def counted(self, count: int) -> str:
        """``3 classes``, ``1 number``."""
        noun = (
            self.outputs.removesuffix("es") if self.outputs == "classes" else self.outputs.removesuffix("s")
        )
        return f"{count} {noun if count == 1 else self.outputs}"

    @property
    def compared(self) -> tuple[Metric, ...]:
        """Those whose gains have intervals."""
        return tuple(metric for metric in self.metrics if metric.compared)

    @property
    def deciding(self) -> tuple[Metric, ...]:
        """Those that the headline goes by."""
        return tuple(metric for metric in self.metrics if metric.decides)


_CLASSES = Measures(
    metrics=(
        Metric("accuracy", "accuracy", 1, rows=metrics.correct_rows, decides=True, percent=True),
        Metric("nll", "NLL", -1, rows=metrics.nll_rows, decides=True, unit="nats"),
        Metric("brier", "Brier", -1, rows=metrics.brier_rows),
        Metric("ece", "ECE", -1, lambda p, y, w: metrics.ece(p, y, weights=w), percent=True),
        Metric(
            "adaptive_ece", "aECE", -1, lambda p, y, w: metrics.adaptive_ece(p, y, weights=w), percent=True
        ),
    ),
    check=metrics.check,
    watched="nll",
    likelihood="nll",
    floored=(
        "nll_floored_rows",
        metrics.floored_rows,
        "Rows whose label got a probability of zero, counted as 2.2e-16 (36 nats) in NLL",
    ),
    outputs="classes",
    predictions="probabilities",
    gains="accuracy in points",
    about="Brier sums over classes; ECE has 15 equal bins of the top label's confidence, aECE (adaptive) 15 "
    "bins of about as many rows each. Recall is the accuracy on the rows of one class.",
    each=Each(
        Metric("recall", "recall", 1, percent=True),
        metrics.recalls,
        "rows",
        lambda labels, count: np.bincount(labels, minlength=count),
    ),
)

_LABELS = Measures(
    metrics=(
        Metric(
            "map",
            "mAP",
            1,
            multilabel_metrics.mean_average_precision,
            resampler=multilabel_metrics.map_resampler,
            decides=True,
            percent=True,
        ),
        Metric("bce", "BCE", -1, rows=multilabel_metrics.bce_rows, decides=True, unit="nats"),
        Metric(
            "micro_f1",
            "micro F1",
            1,
            multilabel_metrics.micro_f1,
            resampler=multilabel_metrics.f1_resampler("micro"),
            percent=True,
        ),
        Metric("ece", "ECE", -1, multilabel_metrics.label_ece, percent=True),
        Metric(
            "macro_f1",
            "macro F1",
            1,
            multilabel_metrics.macro_f1,
            resampler=multilabel_metrics.f1_resampler("macro"),
            percent=True,
        ),
        Metric("lrap", "LRAP", 1, multilabel_metrics.lrap, percent=True),
    ),
    check=multilabel_metrics.check,
    watched="bce",
    likelihood="bce",
    floored=(
        "bce_floored_labels",
        multilabel_metrics.floored_labels,
        "Labels that got a probability of zero for what they are, counted as 2.2e-16 (36 nats) in BCE",
    ),
    outputs="labels",
    predictions="probabilities",
    gains="mAP and F1 in points",
    about="mAP is the mean average precision of the labels with a positive row. BCE is the binary cross "
    "entropy, the mean over known labels. F1 goes by a threshold for each label, which was tuned on other "
    "rows (0.5 where none was); micro F1 counts all labels together, macro F1 is the mean over those with a "
    "positive row. LRAP is the label ranking average precision. ECE has 15 equal bins of each label's "
    "probability, and is the mean over labels. Unknown labels are left out.",
    each=Each(
        Metric("ap", "average precision", 1, percent=True),
        multilabel_metrics.average_precisions,
        "positives",
        lambda labels, _: (labels == 1).sum(0),
    ),
)

_NUMBERS = Measures(
    metrics=(
        Metric(
            "rmse",
            "RMSE",
            -1,
            rows=regression_metrics.squared_rows,
            finish=np.sqrt,
            decides=True,
            unit="sd",
        ),
        Metric(
            "nll", "NLL", -1, rows=regression_metrics.nll_rows, decides=True, unit="nats", needs="variance"
        ),
        Metric("crps", "CRPS", -1, rows=regression_metrics.crps_rows, unit="sd", needs="variance"),
        Metric(
            "coverage",
            "coverage",
            0,
            lambda p, y, w: metrics.mean_of(regression_metrics.covered_rows(p, y), w),
            percent=True,
            needs="bounds",
        ),
        Metric(
            "width",
            "width",
            0,
            lambda p, y, w: metrics.mean_of(regression_metrics.width_rows(p, y), w),
            unit="sd",
            needs="bounds",
        ),
        Metric("mae", "MAE", -1, rows=regression_metrics.absolute_rows, unit="sd"),
        Metric("r2", "R2", 1, regression_metrics.r2),
    ),
    check=regression_metrics.check,
    watched="rmse",
    likelihood="nll",
    floored=(
        "nll_floored_rows",
        regression_metrics.floored_rows,
        "Rows with a variance below 1e-12 of the labels', counted as that in NLL",
    ),
    outputs="numbers",
    predictions="forecasts",
    gains="RMSE, CRPS and MAE in standard deviations (sd) of the test labels",
    about="RMSE, CRPS, MAE and width are over all numbers, each in units of its test labels' standard "
    "deviation. NLL is that of a Gaussian for a row's labels in the data's units. Coverage is the share of "
    "labels within the model's intervals of 90 %, whose mean width is width. A model without a variance has "
    "no NLL, no CRPS, and no interval unless it was given one.",
    each=Each(
        Metric("rmse", "RMSE in the data's units", -1),
        regression_metrics.rmse_each,
        "deviation",
        lambda labels, _: regression_metrics.deviations(labels),
    ),
    scaling="variance",
)

MEASURES: dict[Task, Measures] = {
    "classification": _CLASSES,
    "multilabel": _LABELS,
    "regression": _NUMBERS,
}
METRICS = {metric.name: metric for measures in MEASURES.values() for metric in measures.metrics}


def held_out_key(task: Task) -> str:
    """The key of a member's score on rows that it was not trained on, in its part of the report."""
    return "held_out_rmse" if task == "regression" else "held_out_nll"
