"""Served and exported students of several labels and of numbers: the same predictions in every format."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from ensdistill.data.preprocess import Transformer
from ensdistill.data.samples import as_samples, form
from ensdistill.models import MLP
from ensdistill.student.export import OnnxStudent, figures, run_onnx, to_onnx
from ensdistill.student.serving import Student, load_student
from ensdistill.student.serving.as_torch import to_torch
from ensdistill.student.units import Units
from ensdistill.teachers.members import Preprocessed, SklearnMember, TorchMember
from tests.student.task_sources import INPUTS, LABELS, NUMBERS, TAGGED, X, Y

TAGS, SIZES = [f"tag {i}" for i in range(LABELS)], ["price", "weight"]
SHIFT = np.array([1e9, 0.0])  # float32 has no digits left for the differences of such numbers
UNITS = Units.of_labels(Y + SHIFT)


def network(outputs):
    torch.manual_seed(0)
    return partial(MLP, inputs=INPUTS, hidden=[8], outputs=outputs)


def student_of(kind, **settings):
    if kind == "multilabel":
        factory = network(LABELS)
        member = TorchMember(factory(), classes=TAGS, output="logits", task="multilabel", factory=factory)
        return Student(member, TAGS, TAGS, form(X), **settings)
    factory = network(NUMBERS * (2 if kind == "with variances" else 1))
    output = "mean_and_variance" if kind == "with variances" else "mean"
    member = TorchMember(
        UNITS.restored(factory()),
        classes=SIZES,
        output=output,
        task="regression",
        factory=UNITS.factory(factory),
    )
    return Student(member, SIZES, SIZES, form(X), **settings)


SETTINGS = {
    "multilabel": {"temperature": 1.7, "thresholds": [0.5, 0.3, 0.6, 0.45]},
    "regression": {"noise": [0.5, 30.0]},
    "with variances": {"variance_factor": 1.5},
    "means alone": {},
}


SLOW = {"regression", "means alone"}
KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in SETTINGS]


def outputs(student, samples):
    if student.task == "multilabel":
        return [student.predict_proba(samples), student.predict(samples)]
    return [part for part in student.predict_distribution(samples) if part is not None]


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A student, and the paths of its files in all formats."""
    folder = tmp_path_factory.mktemp("student")
    student = student_of(request.param, **SETTINGS[request.param])
    student.save(folder / "own")
    exported = to_onnx(student, X)
    exported.save(folder / "student.onnx")
    program = to_torch(student, X)
    program.save(folder / "student.pt2")
    assert max(exported.largest_difference, program.largest_difference) < 1e-5
    return request.param, student, folder


@pytest.mark.parametrize("file", ["own", "student.onnx", "student.pt2"])
def test_every_format_predicts_as_the_student(saved, file):
    kind, student, folder = saved
    loaded = load_student(folder / file, trusted=["torch.export.load"])
    assert (loaded.task, loaded.classes) == (student.task, student.classes)
    assert (loaded.thresholds, loaded.scaling) == (student.thresholds, student.scaling)
    found, expected = outputs(loaded, X), outputs(student, X)
    assert len(found) == len(expected) == (1 if kind == "means alone" else 2)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        spread = np.ptp(other, axis=0)
        assert (np.abs(one - other) <= 1e-5 * np.where(spread > 0, spread, 1)).all()
    np.testing.assert_allclose(loaded.predict(X[:1]), student.predict(X[:1]), rtol=1e-6)


def test_probabilities_are_sigmoids_and_labels_those_at_their_thresholds():
    student = student_of("multilabel", **SETTINGS["multilabel"])
    z = student.member.predict_logits(X)
    p = student.predict_proba(X)
    np.testing.assert_allclose(p, expit(z / 1.7), rtol=1e-6)
    present = student.predict(X)
    assert present.dtype == np.int8
    np.testing.assert_array_equal(present, p >= np.float32([0.5, 0.3, 0.6, 0.45]))
    assert student.names_of(np.array([[1, 0, 1, 0], [0, 0, 0, 0]])) == [("tag 0", "tag 2"), ()]
    q = p.astype(np.float64)
    np.testing.assert_allclose(
        student.entropy(X), -(q * np.log(q) + (1 - q) * np.log1p(-q)).sum(1), rtol=1e-4
    )
    with pytest.raises(TypeError, match=r"predict_distribution: expected predict_proba"):
        student.predict_distribution(X)


def test_numbers_are_in_the_datas_units_and_calibrated():
    student = student_of("with variances", variance_factor=1.5)
    with torch.no_grad():
        z = student.member.module.model(torch.from_numpy(X)).double().numpy()
    mean, variance = student.predict_distribution(X)
    np.testing.assert_allclose(mean, UNITS.location + UNITS.scale * z[:, :NUMBERS], rtol=1e-12)
    np.testing.assert_allclose(variance, 1.5 * UNITS.scale**2 * np.exp(z[:, NUMBERS:]), rtol=1e-12)
    np.testing.assert_array_equal(student.predict(X), mean)
    assert student_of("regression").predict_distribution(X).variance is None
    noisy = student_of("regression", noise=[0.5, 30.0]).predict_distribution(X)
    np.testing.assert_array_equal(noisy.variance, np.tile([0.5, 30.0], (len(X), 1)))
    with pytest.raises(TypeError, match=r"predict_logits: expected predict or predict_distribution"):
        student.predict_proba(X)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_eight_bits_stay_near(kind):
    exported = to_onnx(student_of(kind, **SETTINGS[kind]), X, int8=True)
    assert 0 < exported.int8_difference < 0.3
    runner = OnnxStudent(exported.int8.SerializeToString())
    assert runner.task == ("multilabel" if kind == "multilabel" else "regression")


def test_figures_are_those_of_the_task(saved):
    kind, student, folder = saved
    labels = TAGGED.labels if kind == "multilabel" else Y + SHIFT
    found = figures(folder / "student.onnx", X, labels, calls=1)
    if kind == "multilabel":
        p, known = student.predict_proba(X).astype(float), labels >= 0
        right = student.predict(X) == labels
        nll = -np.log(np.where(labels == 1, p, 1 - p))[known].sum() / known.any(1).sum()
        assert (found["accuracy"], found["nll"]) == pytest.approx((right[known].mean(), nll), rel=1e-4)
        return
    mean, variance = student.predict_distribution(X)
    error = labels - mean
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-5)
    if variance is not None:
        nll = 0.5 * (np.log(2 * np.pi * variance) + error**2 / variance).sum(1).mean()
        assert found["nll"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.slow
def test_columns_may_be_named_as_the_outputs():
    frame = pd.DataFrame(X.astype(float), columns=["mean", "variance", "label", "probabilities", "a", "b"])
    scaler = Transformer(StandardScaler().fit(frame))
    member = Preprocessed(student_of("with variances").member, scaler)
    student = Student(member, SIZES, SIZES, form(as_samples(frame)))
    exported = to_onnx(student, frame)
    mean, variance = run_onnx(exported.model.SerializeToString(), frame)
    expected = student.predict_distribution(frame)
    np.testing.assert_allclose(mean, expected.mean, rtol=0, atol=1e-4)
    np.testing.assert_allclose(variance, expected.variance, rtol=1e-5)


@pytest.mark.parametrize("estimator", [LinearRegression(), Ridge(0.5)])
@pytest.mark.parametrize("count", [1, 2])
def test_linear_regressors_are_exported_exactly(estimator, count):
    names = SIZES[:count]
    target = Y[:, :count] if count > 1 else Y[:, 0]
    member = SklearnMember(estimator.fit(X.astype(np.float64), target), task="regression", classes=names)
    student = Student(member, names, names, form(X))
    exported = to_onnx(student, X)
    assert exported.largest_difference < 1e-6
    assert run_onnx(exported.model.SerializeToString(), X)[0].shape == (len(X), count)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("multilabel", {"thresholds": [0.5]}, r"thresholds: expected 4 numbers in 0..1"),
        ("multilabel", {"thresholds": [0.5, 2, 0, 0]}, r"thresholds: expected 4 numbers in 0..1"),
        ("multilabel", {"noise": [1.0]}, r"noise: expected none for the task multilabel"),
        ("multilabel", {"task": "regression"}, r"task: expected multilabel, that of the member; got regr"),
        ("regression", {"temperature": 2.0}, r"temperature: expected none for the task regression"),
        ("regression", {"noise": [1.0]}, r"noise: expected 2, one for each number; got 1"),
        ("regression", {"variance_factor": -1.0}, r"variance_factor: expected a positive number; got -1"),
    ],
)
def test_settings_of_another_task_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        student_of(kind, **settings)
