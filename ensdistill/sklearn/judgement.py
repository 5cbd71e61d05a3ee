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
from ensdistill.job.predictions import HeldOut, Prediction, fields_of, of_ensemble, others_of
from ensdistill.job.scaling import ROWS
from ensdistill.report.cells import gain_cell, gains_over, kept_cell, metric_cell
from ensdistill.report.judge import judge
from ensdistill.report.measures import MEASURES
from ensdistill.report.results import SCALED, MemberResult, ModelResult, RunResults, StudentResults
from ensdistill.report.table import as_text
from ensdistill.report.verdict import KIND_LABELS
from ensdistill.sklearn.students import Baseline, Lesson, Student
from ensdistill.sklearn.teachers import Taught
from ensdistill.teachers.fitting.scaling import Scaling, closest_scaling
from ensdistill.teachers.members import Member
from ensdistill.teachers.predict import outputs_of

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
        """By metric (such as ``accuracy``, ``nll``, ``brier``) the share of the ensemble's gain over direct
        training that the student kept: ``mean``, ``ci95`` (None where the ensemble's gain is not beyond its
        interval) and ``meaningful``."""
        return dict(self.figures["retained_gain"])

    def __str__(self) -> str:
        console = Console(file=(file := io.StringIO()), width=100, color_system=None, legacy_windows=False)
        console.print(as_text(self.figures))
        return file.getvalue()

    def _repr_html_(self) -> str:
        """A short table: the two deciding metrics of each model, and the share of the gain that was kept."""
        models, measures = self.figures["models"], MEASURES[self.figures.get("task", "classification")]
        shown = measures.deciding
        rows = [
            [KIND_LABELS[kind], *(metric_cell(models[kind], one.name) for one in shown)] for kind in SHOWN
        ]
        gains = gains_over(self.figures, "direct")
        kept = [
            [one.label, gain_cell(m, gains[m][0]), gain_cell(m, gains[m][1]), kept_cell(gains[m][2])]
            for one in shown
            if (m := one.name) in gains
        ]
        count = self.figures["dataset"]["test"]
        return (
            f"<p>{html.escape(self.verdict)}</p>"
            + _table([f"on {count} held-out rows", *(one.heading for one in shown)], rows)
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
    split, test, task = lesson.split, lesson.split.test.inputs, lesson.split.task
    plain, smoothed, recipe = student.baselines(lesson)
    of_best = student.distilled(lesson, taught.best)
    error = _held_out(taught, lesson).squared_error(taught.ensemble)
    trained = {
        "direct": plain,
        "direct_label_smoothing": smoothed,
        "distilled_from_best_member": Baseline(of_best, _scaling(of_best, lesson, error)),
        "student": Baseline(member, _scaling(member, lesson, error)),
    }
    cost: dict[str, Any] = {"latency_ms": NOT_MEASURED}
    own = cost | {"parameters": member.parameters, "bytes": member.bytes}
    models = {}
    for kind, one in trained.items():
        if one is None:
            continue
        outputs = outputs_of(one.member, test)
        note = recipe if kind == "direct" else ""
        given = fields_of([Prediction.of(task, outputs)])
        models[kind] = ModelResult(kind, **given, note=note, **own)
        scaled = fields_of([Prediction.of(task, outputs, one.scaling)])
        models[SCALED[kind]] = ModelResult(SCALED[kind], **scaled, **own)
    ensemble = taught.ensemble
    mixed = of_ensemble(ensemble, test, _held_out(taught, lesson))
    members = [
        MemberResult(
            one.name,
            [float(ensemble.weights[k])],
            [] if task == "regression" else [float(ensemble.temperatures[k])],
            **fields_of([mixed.members[k]]),
            others=others_of([mixed], k),
            parameters=one.parameters,
            bytes=one.bytes,
            latency_ms=NOT_MEASURED,
        )
        for k, one in enumerate(ensemble.members)
    ]
    best = members[ensemble.names.index(taught.best)]
    results = RunResults(
        name="DistilledRegressor" if task == "regression" else "DistilledClassifier",
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
            "ensemble",
            **fields_of([mixed.mixture]),
            parameters=ensemble.parameters,
            bytes=ensemble.bytes,
            latency_ms=NOT_MEASURED,
        ),
        best_member=ModelResult(
            "best_member",
            **fields_of([mixed.members[ensemble.names.index(taught.best)]]),
            parameters=best.parameters,
            bytes=best.bytes,
            latency_ms=NOT_MEASURED,
            note=taught.best,
        ),
        members=members,
        students=[StudentResults("student", student.description, models, {})],
        environment=environment(),
        timings=timings,
        copies=[count_copies(split, _synthetic(lesson))],
        weights=[] if split.test.weights is None else [split.test.weights],
        baselines=student.about_baselines,
        task=task,
        outputs=list(split.classes),
    )
    return Report(judge(results))


def _synthetic(lesson: Lesson) -> Any:
    first = len(lesson.split.labelled) + len(lesson.split.pool)
    return subset(lesson.rows.inputs, np.arange(first, len(lesson.rows)))


def _held_out(taught: Taught, lesson: Lesson) -> HeldOut:
    """The members' held-out predictions; none where they may have seen the rows."""
    rows, members = lesson.split.labelled, len(taught.ensemble)
    if taught.held_out is not None:
        return HeldOut(taught.held_out, rows.labels)
    return HeldOut(np.full((members, len(rows), len(lesson.split.classes)), np.nan), rows.labels)


def _scaling(member: Member, lesson: Lesson, error: np.ndarray | None) -> Scaling:
    """The calibration that brings a distilled model nearest to the mixture on rows without a label; see
    :mod:`ensdistill.job.scaling`, also for the ``error``."""
    labelled, pool = len(lesson.split.labelled), len(lesson.split.pool)
    chosen = np.arange(labelled, labelled + pool if pool else len(lesson.rows))[:ROWS]
    if not len(chosen):
        return Scaling()
    outputs = outputs_of(member, subset(lesson.rows.inputs, chosen))
    return closest_scaling(lesson.split.task, outputs, lesson.targets(chosen), error=error)


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table><tr>{names}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
