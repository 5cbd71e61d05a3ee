"""Refusals of students of several labels and of numbers: settings, labels and metrics of another task."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ensdistill import Rows, StudentTrainer
from ensdistill.loss.regression import RegressionSettings
from ensdistill.models import MLP
from ensdistill.student import Validation
from tests.student.task_sources import (
    INPUTS,
    MEASURED,
    OF_LABELS,
    OF_MOMENTS,
    OF_NUMBERS,
    PARTLY,
    SHORT,
    SOURCES,
    TAGGED,
    UIDS,
    X,
    Y,
    labels_source,
    numbers_source,
    without_labels,
)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("regression", {"temperature": 2.0}, r"temperature: is of probabilities.*regression"),
        ("regression", {"divergence": "jsd"}, r"divergence: is of probabilities"),
        ("with variances", {"loss": "huber"}, r"loss: 'huber' is of a student that predicts means alone"),
        ("multilabel", {"loss": "mse"}, r"loss: RegressionSettings are of the task regression"),
        ("multilabel", {"divergence": "jsd"}, r"settings.divergence: expected 'forward_kl'.*multilabel"),
    ],
)
def test_settings_of_another_task(kind, options, message):
    make, factory, rows = SOURCES[kind]
    with pytest.raises(ValueError, match=message):
        StudentTrainer(SHORT, **options).distill(factory, rows, make())


@pytest.mark.parametrize("kind", SOURCES)
def test_students_of_another_width(kind):
    make, _, rows = SOURCES[kind]
    with pytest.raises(ValueError, match=r"model: MLP: expected \d outputs per sample.*got \[2, 7\]"):
        StudentTrainer(SHORT).distill(partial(MLP, INPUTS, [8], 7), rows, make())


def test_labels_of_another_task():
    trainer, classes = StudentTrainer(SHORT), Rows(X, UIDS, np.arange(len(X)) % 3)
    with pytest.raises(
        ValueError, match=r"rows.labels: expected labels of the task multilabel; got those of"
    ):
        trainer.distill(OF_LABELS, MEASURED, labels_source())
    with pytest.raises(
        ValueError, match=r"rows.labels: expected labels of the task regression; got those of"
    ):
        trainer.distill(OF_NUMBERS, classes, numbers_source())
    with pytest.raises(ValueError, match=r"validation: expected labels of the task regression"):
        trainer.distill(
            OF_NUMBERS, MEASURED, numbers_source(), validation=replace(classes, uids=UIDS + 10_000)
        )
    with pytest.raises(ValueError, match=r"rows.labels: expected \[120, 2\] for the task regression"):
        trainer.distill(OF_NUMBERS, replace(MEASURED, labels=Y[:, :1]), numbers_source())
    with pytest.raises(
        ValueError, match=r"task: expected regression, the task of the rows' labels.*multilab"
    ):
        trainer.direct(OF_LABELS, MEASURED, task="multilabel")
    with pytest.raises(ValueError, match=r"classes: expected 2, the columns of the rows' labels; got 3"):
        trainer.direct(OF_NUMBERS, MEASURED, classes=3)
    with pytest.raises(ValueError, match=r"classes: expected the number of classes"):
        trainer.direct(OF_NUMBERS, classes)
    with pytest.raises(ValueError, match=r"rows.labels: expected at least one known label.*uid"):
        trainer.direct(OF_LABELS, TAGGED)
    with pytest.raises(ValueError, match=r"rows.labels: expected a number in each row; uid"):
        trainer.direct(OF_NUMBERS, PARTLY)
    with pytest.raises(ValueError, match=r"smoothing: expected 0 for the task regression"):
        StudentTrainer(replace(SHORT, label_smoothing=0.1)).direct(OF_NUMBERS, MEASURED)


def test_metrics_and_losses_that_are_not_there():
    trainer, source = StudentTrainer(SHORT), numbers_source()
    with pytest.raises(ValueError, match=r"validation.metric: 'accuracy' is none of the task regression"):
        trainer.distill(OF_NUMBERS, MEASURED, source, validation=Validation(rows=0.2, metric="accuracy"))
    with pytest.raises(ValueError, match=r"loss: expected one of mse, huber; got 'mae'"):
        StudentTrainer(SHORT, loss="mae")
    with pytest.raises(
        TypeError, match=r"temperature: expected one of delta, alpha, beta beside loss='huber'"
    ):
        StudentTrainer(SHORT, loss="huber", temperature=2.0)
    with pytest.raises(ValueError, match=r"delta: expected a finite number above 0; got 0"):
        RegressionSettings("huber", delta=0)
    with pytest.raises(ValueError, match=r"alpha, rows.labels: alpha = 0.5 mixes in"):
        StudentTrainer(SHORT, alpha=0.5).distill(OF_NUMBERS, without_labels(MEASURED), source)
    with pytest.raises(ValueError, match=r"model: 4 outputs are means and variances, but the targets"):
        trainer.distill(OF_MOMENTS, MEASURED, numbers_source(members=1))
    source.location = None
    with pytest.raises(ValueError, match=r"cache: expected targets with location and scale"):
        trainer.distill(OF_NUMBERS, MEASURED, source)


def test_a_metric_of_variances_needs_them():
    trainer, source = StudentTrainer(SHORT), numbers_source()
    with pytest.raises(ValueError, match=r"validation.metric: 'kl' is of a student with variances"):
        trainer.distill(OF_NUMBERS, MEASURED, source, validation=Validation(rows=0.2, metric="kl"))
