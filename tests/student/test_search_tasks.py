"""Searches for students of several labels and of numbers: figures, choice, variances, YAML, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from search_tasks import TaskMaterial
from sklearn.metrics import average_precision_score

from ensdistill.data import Rows
from ensdistill.job.search_config import found_student
from ensdistill.job.student_config import StudentConfig
from ensdistill.report.multilabel_metrics import LabelProbabilities, expected_map_resampler, map_resampler
from ensdistill.student.search import search_student
from ensdistill.student.search.boosted import Boosted
from ensdistill.student.search.families import About
from ensdistill.student.search.figures import ensemble_figures, figures_of, objective
from ensdistill.student.search.journal import JOURNAL
from ensdistill.student.search.judging import kept
from ensdistill.student.search.latency import Latency, latency_of
from ensdistill.student.search.rows import Judged, lessons, mixture_of
from ensdistill.teachers.members import Moments, SklearnMember

pytest.importorskip("optuna")
GOALS = {"multilabel": ["bce", "map"], "regression": ["nll", "rmse"]}


@pytest.fixture(scope="module", autouse=True)
def no_export():
    """Making a graph of each candidate takes seconds."""
    with mock.patch("ensdistill.student.search.ladders.latency_of", return_value=Latency(2e-5, "none")):
        yield


@pytest.fixture(scope="module", params=GOALS)
def material(request, tmp_path_factory):
    return TaskMaterial(tmp_path_factory.mktemp(request.param) / "cache", request.param)


@pytest.fixture(scope="module")
def found(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    return material.search(keep=0.5, folder=folder), folder


def test_the_goals_are_those_of_the_task_and_the_chosen_student_keeps_them(material, found):
    result, task = found[0], material.ensemble.task
    assert result.task == task
    assert list(result.chosen.kept) == list(result.gain) == GOALS[task]
    assert all(one.share > 0.5 and one.basis == "labels" for one in result.chosen.kept.values())
    assert all(low > 0 for _, low, _ in result.gain.values())
    labels = {"multilabel": ("BCE", "mAP"), "regression": ("NLL", "RMSE")}[task]
    assert all(f"kept {label}" in str(result) for label in labels)
    assert f"of the gain in {labels[0]} and" in result.verdict
    assert {t.get_text() for t in result.figure().axes[0].get_legend().get_texts()} >= {
        f"kept in {label}" for label in labels
    }


def test_the_yaml_of_the_chosen_student_makes_it_without_a_search(found):
    one = found[0].chosen
    section = yaml.safe_load(found[0].yaml("small"))["distill"]["students"]["small"]
    student = StudentConfig(**found_student(section))
    assert student.variance == one.values.get("variance", False)
    assert student.optimization.learning_rate == one.values["rate"]
    assert student.network.keywords["hidden"] == section["model"]["init_args"]["hidden"]


def test_a_finished_search_trains_nothing_again(material, found):
    before = (found[1] / JOURNAL).read_bytes()
    again = material.search(keep=0.5, folder=found[1])
    assert (found[1] / JOURNAL).read_bytes() == before
    assert [one.figures for one in again.points] == [one.figures for one in found[0].points]


def test_rows_of_the_cache_judge_where_too_few_have_a_label(material):
    few = material.validation.take(np.arange(100))
    asked = material.asked[:100] if material.ensemble.task == "multilabel" else Moments(
        *(part[:100] for part in material.asked)
    )  # fmt: skip
    made = lessons({"given": (material.rows, material.cache)}, few, asked, None, 0)
    assert len(made.judged.rows) == 203
    assert made.judged.labelled.sum() == 100
    learned = made.mixtures["given"][0]
    assert len(learned) == len(material.rows) - 103
    assert len(made.direct) == 60
    method = material.ensemble.predict_proba if material.ensemble.task == "multilabel" else (
        lambda x: np.stack(material.ensemble.predict_distribution(x))
    )  # fmt: skip
    own, stored = method(made.judged.rows.inputs[100:]), made.judged.ensemble
    stored = stored[100:] if material.ensemble.task == "multilabel" else np.stack(stored)[:, 100:]
    np.testing.assert_allclose(stored, own, atol=0.01, rtol=1e-5)
    cached = mixture_of(material.cache, learned.uids[:3])
    assert np.shape(cached)[-1] == len(material.ensemble.classes)


def test_the_latency_of_either_task_is_measured(material):
    classes = tuple(material.ensemble.classes)
    with mock.patch("ensdistill.student.search.latency.find_spec", return_value=None):
        found = latency_of(material.ensemble.members[0], material.validation.inputs[:2], classes)
    assert found.seconds > 0
    assert found.runtime == "sklearn"
    assert isinstance(material.ensemble.members[0], SklearnMember)


def test_labels_of_another_task_and_predictions_of_another_form_are_refused(material):
    rows, numbers = material.validation, material.ensemble.task == "regression"
    other = replace(rows, labels=np.zeros(len(rows), np.int64))
    with pytest.raises(ValueError, match=r"^validation: expected labels of the task"):
        material.search(validation=other)
    with pytest.raises(ValueError, match=r"^ensemble: expected the ensemble's .* pass ensemble.predict_"):
        material.search(ensemble=None)
    wrong = np.zeros((len(rows), 7)) if numbers else np.full((len(rows), 3), 1.5)
    with pytest.raises(ValueError, match=r"^ensemble: expected (means|probabilities)"):
        material.search(ensemble=wrong)
    with pytest.raises(TypeError, match=r"^cache: expected a TargetCache; got Ensemble: store"):
        search_student(material.rows, type("Ensemble", (), {})(), keep=0.5)


def judged_numbers(rows=400, variance=1.0):
    generator = np.random.default_rng(0)
    mean = generator.normal(size=(rows, 2)) * [1.0, 30.0]
    scale = np.array([1.0, 30.0])
    labels = mean + np.sqrt(variance) * scale * generator.normal(size=mean.shape)
    spread = np.broadcast_to(variance * scale**2, mean.shape)
    return Judged(Rows(np.zeros((rows, 1)), np.arange(rows), labels), Moments(mean, spread))


def test_numbers_keep_half_of_the_likelihood_and_of_the_error_where_they_lie_between():
    judged = judged_numbers(variance=0.25)
    truth, labels = judged.ensemble.mean, judged.rows.labels
    flat = figures_of(Moments(np.zeros_like(truth), None), judged)
    ensemble = ensemble_figures(judged)
    unit = labels.std(0)
    assert ensemble.means["rmse"] == pytest.approx(np.sqrt(np.mean(((labels - truth) / unit) ** 2)))
    # A constant's best Gaussian has the labels' own variance.
    v = np.square(labels).mean(0)
    assert flat.means["nll"] == pytest.approx(0.5 * np.log(2 * np.pi * v).sum() + 1)
    near = figures_of(Moments(0.9 * truth, None), judged)
    shares = kept(near, flat, ensemble)
    gain = flat.means["rmse"] - ensemble.means["rmse"]
    assert shares["rmse"].share == pytest.approx((flat.means["rmse"] - near.means["rmse"]) / gain)
    assert shares["rmse"].low < shares["rmse"].share < shares["rmse"].high
    assert all(one.basis == "labels" for one in shares.values())
    assert kept(ensemble, flat, ensemble)["nll"].share == 1
    assert objective(near, "direct") == pytest.approx(near.means["nll"] + np.log(near.means["rmse"]))


def test_without_labels_numbers_are_judged_by_the_ensemble_and_the_equal_mean_has_no_divergence():
    judged = judged_numbers()
    silent = replace(judged, rows=judged.rows.without_labels())
    same = figures_of(judged.ensemble, silent)
    assert same.by_labels is None
    assert same.means["kl"] == pytest.approx(0, abs=1e-3)  # but for the prior of its factor
    off = figures_of(Moments(judged.ensemble.mean + 1.0, judged.ensemble.variance), silent)
    assert off.means["distance"] == pytest.approx(np.mean(1 / judged.ensemble.mean.std(0) ** 2))
    flat = figures_of(Moments(np.zeros_like(judged.ensemble.mean), None), silent)
    found = kept(off, flat, same)
    assert all(one.basis == "ensemble" and 0 < one.share < 1 for one in found.values())
    assert objective(off, "student") == off.means["kl"]
    # An ensemble without variances: Gaussians of an equal variance.
    bare = Judged(silent.rows, Moments(judged.ensemble.mean, None))
    assert figures_of(Moments(judged.ensemble.mean, None), bare).means["kl"] == 0


def test_expected_precision_is_that_of_doubled_weighted_rows():
    generator = np.random.default_rng(1)
    p, shares = generator.random((50, 3)).round(1), generator.random((50, 3))
    weights = generator.integers(0, 3, (4, 50)).astype(float)
    found = expected_map_resampler(LabelProbabilities(p), shares)(weights)
    for row, value in zip(weights, found, strict=True):
        parts = [
            average_precision_score(
                np.r_[np.ones(50), np.zeros(50)],
                np.r_[p[:, c], p[:, c]],
                sample_weight=np.r_[row * shares[:, c], row * (1 - shares[:, c])],
            )
            for c in range(3)
        ]
        assert value == pytest.approx(np.mean(parts), rel=1e-5)
    sure = (shares > 0.5).astype(np.int8)
    own, by_shares = (
        make(LabelProbabilities(p), given)(weights)
        for make, given in ((map_resampler, sure), (expected_map_resampler, sure.astype(float)))
    )
    np.testing.assert_allclose(own, by_shares, rtol=1e-6)


def test_labels_keep_what_lies_between_and_unknown_ones_are_left_out():
    generator = np.random.default_rng(0)
    odds = 3 * generator.normal(size=(400, 3))
    p = 1 / (1 + np.exp(-odds))
    labels = (generator.random(p.shape) < p).astype(np.int8)
    labels[:100, 0] = -1
    judged = Judged(Rows(np.zeros((400, 1)), np.arange(400), labels), p)
    ensemble, flat = ensemble_figures(judged), figures_of(np.zeros_like(odds), judged)
    near = figures_of(odds + 2 * generator.normal(size=odds.shape), judged)
    assert flat.means["bce"] == pytest.approx(np.log(2))
    known = labels >= 0
    right = np.where(labels == 1, p, 1 - p)
    each = (-np.log(right) * known).sum(1) / known.sum(1)
    assert ensemble.means["bce"] == pytest.approx(each.mean(), abs=0.01)
    assert ensemble.means["kl"] == pytest.approx(0, abs=0.01)
    found = kept(near, flat, ensemble)
    assert all(0 < one.share < 1 and one.basis == "labels" for one in found.values())
    silent = Judged(judged.rows.without_labels(), p)
    others = kept(*(figures_of(z, silent) for z in (odds + 1, 0 * odds, odds)))
    assert all(one.basis == "ensemble" for one in others.values())
    assert 0.5 < others["bce"].share < 1
    assert others["map"].share == pytest.approx(1, abs=1e-6)  # a shift changes no order


def test_boosted_trees_are_regressors_for_numbers():
    about = About("array", (4,), 100, 50, 2)
    kinds = [
        {one.estimator["class_path"] for one in Boosted().candidates(replace(about, task=task))}
        for task in ("multilabel", "regression")
    ]
    assert kinds == [{"lightgbm.LGBMClassifier"}, {"lightgbm.LGBMRegressor"}]


@pytest.mark.slow
def test_boosted_trees_are_searched_for_either_task(material):
    result = material.search(keep=0.2, families=["boosted"], trials=2)
    assert result.points[0].candidate.startswith("boosted/")
    assert result.points[0].bytes > 0
    section = result.points[0].section
    assert StudentConfig(**found_student(section)).estimator is not None


@pytest.mark.slow
def test_a_killed_search_for_numbers_goes_on(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from search_tasks import TaskMaterial\nimport tempfile\n"
        "material = TaskMaterial(tempfile.mkdtemp() + '/cache', 'regression')\n"
        f"material.search(keep=0.5, folder={str(tmp_path)!r}, trials=int(sys.argv[1]))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen([sys.executable, "-c", code, "40"], env=environment)
    journal = tmp_path / JOURNAL
    while not journal.exists() or journal.read_bytes().count(b'"state"') < 4:
        time.sleep(0.05)
        assert begun.poll() is None
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    judged = journal.read_bytes().count(b'"state"')
    assert subprocess.run([sys.executable, "-c", code, "6"], env=environment, timeout=300).returncode == 0
    assert journal.read_bytes().count(b'"state"') >= max(12, judged)
    result = TaskMaterial(tmp_path / "cache", "regression").search(keep=0.5, folder=tmp_path, trials=6)
    assert min(result.cost.trials.values()) >= 6
