"""The judgement of a fit on rows that were held out, by the report's own rules."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from ensdistill.data.copies import count_copies
from ensdistill.data.samples import subset
from ensdistill.job.evaluate import NOT_MEASURED, environment
from ensdistill.job.predictions import predict
from ensdistill.job.scaling import ROWS, fit_temperature_to
from ensdistill.report.judge import judge
from ensdistill.report.results import SCALED, MemberResult, ModelResult, RunResults, StudentResults
from ensdistill.report.table import as_text, gain_cell, gains_over, kept_cell, metric_cells
from ensdistill.report.verdict import KIND_LABELS, METRIC_LABELS
from ensdistill.sklearn.students import Baseline, Lesson, Student
from ensdistill.sklearn.teachers import Taught
from ensdistill.teachers.fitting.calibration import probabilities
from ensdistill.teachers.members import Member

SHOWN = ("ensemble", "best_member", "direct", "distilled_from_best_member", "student")


@dataclass(frozen=True)
class Report:
    """The figures of teachers, ensemble, student and the models it is compared with, on held-out rows.

    ``print(report)`` shows the tables.

    Parameters
    ----------
    figures : dict
        Plain JSON values, as :mod:`ensdistill.report.judge` describes them.
    """

    figures: dict[str, Any]

    @property
    def verdict(self) -> str:
        """The judgement in words."""
        return str(self.figures["verdict"])

    @property
    def retained_gain(self) -> dict[str, Any]:
        """By metric (``accuracy``, ``nll``, ``brier``) the share of the ensemble's gain over direct training
        that the student kept: ``mean``, ``ci95`` (None where the ensemble's gain is not beyond its interval)
        and ``meaningful``."""
        return dict(self.figures["retained_gain"])

    def __str__(self) -> str:
        console = Console(file=(file := io.StringIO()), width=100, color_system=None, legacy_windows=False)
        console.print(as_text(self.figures))
        return file.getvalue()

    def _repr_html_(self) -> str:
        """A short table: accuracy and NLL of each model, and the share of the gain that was kept."""
        models = self.figures["models"]
        rows = [[KIND_LABELS[kind], *metric_cells(models[kind])[:2]] for kind in SHOWN]
        gains = gains_over(self.figures, "direct")
        kept = [
            [METRIC_LABELS[m], gain_cell(m, gains[m][0]), gain_cell(m, gains[m][1]), kept_cell(gains[m][2])]
            for m in ("accuracy", "nll")
        ]
        count = self.figures["dataset"]["test"]
        return (
            f"<p>{html.escape(self.verdict)}</p>"
            + _table([f"on {count} held-out rows", "accuracy %", "NLL"], rows)
            + _table(["gain over direct", "ensemble", "student", "kept"], kept)
        )


def report_of(
    taught: Taught,
    student: Student,
    member: Member,
    lesson: Lesson,
    timings: dict[str, float],
) -> Report:
    """Train the models that the student is compared with, and judge all on the test rows of the split.

    Parameters
    ----------
    taught : Taught
    student : Student
    member : Member
        The trained student.
    lesson : Lesson
    timings : dict of str to float
        Seconds of each stage.
    """
    split, test = lesson.split, lesson.split.test.inputs
    plain, smoothed, recipe = student.baselines(lesson)
    of_best = student.distilled(lesson, taught.best)
    trained = {
        "direct": plain,
        "direct_label_smoothing": smoothed,
        "distilled_from_best_member": Baseline(of_best, _temperature(of_best, lesson)),
        "student": Baseline(member, _temperature(member, lesson)),
    }
    cost: dict[str, Any] = {"latency_ms": NOT_MEASURED}
    own = cost | {"parameters": member.parameters, "bytes": member.bytes}
    models = {}
    for kind, one in trained.items():
        logits = predict(one.member, test)
        note = recipe if kind == "direct" else ""
        models[kind] = ModelResult(kind, [probabilities(logits)], note=note, **own)
        scaled = SCALED[kind]
        models[scaled] = ModelResult(scaled, [probabilities(logits / one.temperature)], **own)
    ensemble = taught.ensemble
    logits = np.asarray(ensemble.predict_logits(test))
    members = [
        MemberResult(
            one.name,
            [float(ensemble.weights[k])],
            [float(ensemble.temperatures[k])],
            [probabilities(logits[k] * ensemble.temperature)],
            one.parameters,
            one.bytes,
            NOT_MEASURED,
        )
        for k, one in enumerate(ensemble.members)
    ]
    best = members[ensemble.names.index(taught.best)]
    results = RunResults(
        name="DistilledClassifier",
        dataset={
            "name": "data of the fit",
            "labelled": len(split.labelled),
            "pool": len(split.pool),
            "transfer": len(lesson.rows),
            "test": len(split.test),
            "classes": len(split.classes),
        },
        seeds=[0],
        labels=[split.test.labels],
        ensemble=ModelResult(
            "ensemble", [ensemble.combine(logits)], ensemble.parameters, ensemble.bytes, NOT_MEASURED
        ),
        best_member=ModelResult(
            "best_member", best.probabilities, best.parameters, best.bytes, NOT_MEASURED, taught.best
        ),
        members=members,
        students=[StudentResults("student", student.description, models, {})],
        environment=environment(),
        timings=timings,
        copies=[count_copies(split, _synthetic(lesson))],
        weights=[] if split.test.weights is None else [split.test.weights],
        baselines=student.about_baselines,
    )
    return Report(judge(results))


def _synthetic(lesson: Lesson) -> Any:
    first = len(lesson.split.labelled) + len(lesson.split.pool)
    return subset(lesson.rows.inputs, np.arange(first, len(lesson.rows)))


def _temperature(member: Member, lesson: Lesson) -> float:
    """The temperature that brings a distilled model nearest to the mixture on rows without a label; see
    :mod:`ensdistill.job.scaling`."""
    labelled, pool = len(lesson.split.labelled), len(lesson.split.pool)
    chosen = np.arange(labelled, labelled + pool if pool else len(lesson.rows))[:ROWS]
    if not len(chosen):
        return 1.0
    return fit_temperature_to(predict(member, subset(lesson.rows.inputs, chosen)), lesson.targets()[chosen])


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table><tr>{names}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
