"""What the report has of the members' disagreement that students keep."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from job_helpers import write_job
from scipy.special import digamma, xlogy
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from ensdistill import Ensemble
from ensdistill.cli.settings import load_config
from ensdistill.common.errors import WrongArgument
from ensdistill.data import Table
from ensdistill.job.evaluate import evaluate
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.spreads import SHUFFLED, Spreads, check_ood, strange_rows
from ensdistill.job.stages import run_unit
from ensdistill.job.unit import Unit
from ensdistill.report.judge import judge
from ensdistill.student.serving import Student
from ensdistill.teachers.members import load_member

DIGITS = {"class_path": "ensdistill.data.Digits", "init_args": {"labelled": 50, "pool": 50}}
CLASSES, KINDS = 10, ("small", "wide")


def folder_of(copy, **change):
    return RunFolder(load_config(["--config", str(write_job(copy.parents[1], change))]))


def entropy(p):
    return -xlogy(p, p).sum(-1)


def softmax(z):
    z = np.asarray(z, np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.usefixtures("one_thread")
def test_the_figures_are_those_of_the_heads_and_of_the_dirichlet_distribution(copy):
    methods = {"distill.students.small.method": "hydra", "distill.students.wide.method": "proxy_dirichlet"}
    run = folder_of(copy, **methods)
    for name in KINDS:
        run_unit(run, Unit("distill", 0, name))
    students = judge(evaluate(run, timed=False), resamples=2000)["students"]
    test, strange = run.config.split(0).test.inputs, strange_rows(run.config, 0)
    truth = np.r_[np.zeros(len(test)), np.ones(len(strange))]
    both = np.concatenate([test, strange])

    ensemble = Ensemble.load(run.of(Unit("teachers", 0)) / "ensemble")
    p, w = softmax(ensemble.predict_logits(both)), ensemble.weights[:, None]
    of_members = entropy((w[..., None] * p).sum(0)) - (w * entropy(p)).sum(0)
    found = students["small"]["spread"]
    assert found["rows"] == SHUFFLED
    assert found["ensemble"]["ood_auroc"]["mean"] == pytest.approx(roc_auc_score(truth, of_members), abs=1e-6)

    of = {name: load_member(run.of(Unit("distill", 0, name)) / "student") for name in KINDS}
    network = of["small"].module
    with torch.no_grad():
        heads = softmax(network.heads(torch.from_numpy(both)).numpy())
    w = network.weights.numpy()[:, None]
    knowledge = {"small": entropy((w[..., None] * heads).sum(0)) - (w * entropy(heads)).sum(0)}
    alpha = np.exp(np.float64(of["wide"].predict_logits(both)))
    mean = alpha / alpha.sum(-1, keepdims=True)
    data = digamma(alpha.sum(-1) + 1) - (mean * digamma(alpha + 1)).sum(-1)
    knowledge["wide"] = entropy(mean) - data
    for name in KINDS:
        own = students[name]["spread"]["student"]
        assert own["keeps_members"]
        assert own["ood_auroc"]["mean"] == pytest.approx(roc_auc_score(truth, knowledge[name]), abs=1e-5)
        rank = spearmanr(knowledge[name][: len(test)], of_members[: len(test)]).statistic
        assert own["rank_with_members"]["mean"] == pytest.approx(rank, abs=1e-3)
        assert own["nll"] == students[name]["models"]["student"]["nll"]["mean"]
        direct = load_member(run.of(Unit("direct", 0, name)) / "direct").predict_logits(both)
        total = roc_auc_score(truth, entropy(softmax(direct)))
        assert students[name]["spread"]["direct"]["ood_auroc"]["mean"] == pytest.approx(total, abs=1e-6)

    served = Student.load(run.of(Unit("distill", 0, "small")) / "student")
    told = served.predict_uncertainty(test)
    np.testing.assert_allclose(told.knowledge, knowledge["small"][: len(test)], atol=1e-6)
    np.testing.assert_allclose(told.total, served.entropy(test), atol=1e-5)
    plain = Student.load(run.of(Unit("distill", 0, "wide")) / "student")
    with pytest.raises(ValueError, match=r"^student: expected one with a head for each member .* got MLP"):
        plain.predict_uncertainty(test)


def test_nothing_is_computed_where_no_student_keeps_the_members_and_no_rows_are_named(copy):
    assert Spreads(folder_of(copy)).rows == []
    assert Spreads(folder_of(copy)).of_student("small") == {}
    named = folder_of(copy, ood=DIGITS)
    spreads = Spreads(named)
    assert spreads.about == "Digits under ood"
    assert len(spreads.rows[0]) == 1797
    assert [one.knowledge for one in spreads.of_student("small")["student"]] == [None]
    assert folder_of(copy).report_digest() != named.report_digest()


def test_a_file_that_is_not_there_is_refused_with_the_setting(tmp_path):
    split = SimpleNamespace(task="classification")
    ood = Table(tmp_path / "none.csv", target="species")
    with pytest.raises(WrongArgument, match=r"^ood\.path: there is no file"):
        check_ood(SimpleNamespace(ood=ood, split=lambda seed: split))


def test_rows_of_another_form_are_refused(copy, monkeypatch):
    run = folder_of(copy)
    object.__setattr__(run.config, "ood", _Other())
    with pytest.raises(
        ValueError, match=r"^ood: expected samples like those of data, .*\[1, 8, 8\].*; got .*\[3\]"
    ):
        check_ood(run.config)
    numbers = type("Numbers", (), {"task": "regression"})()
    monkeypatch.setattr(type(run.config), "split", lambda *_: numbers)
    with pytest.raises(ValueError, match=r"^ood: expected none for the task regression"):
        check_ood(run.config)


def test_texts_have_no_columns_to_shuffle_which_is_said(copy, monkeypatch):
    run = folder_of(copy, **{"distill.students.small.method": "hydra"})
    monkeypatch.setattr("ensdistill.job.spreads.shuffled_columns", lambda *_: None)
    with pytest.warns(UserWarning, match="^ood: the samples have no columns to shuffle"):
        assert Spreads(run).rows == []


class _Other:
    """A data set of three numbers a row."""

    def split(self, seed):
        from ensdistill.data import Rows, Split

        x = np.random.default_rng(seed).normal(size=(9, 3)).astype(np.float32)
        parts = [Rows(x[i : i + 3], np.arange(i, i + 3), np.array([0, 1, 0])) for i in (0, 3, 6)]
        return Split(parts[0], parts[1].take(np.zeros(3, bool)), parts[2], ("a", "b"))


@pytest.mark.usefixtures("one_thread")
def test_the_report_says_that_a_training_collapsed(copy, monkeypatch):
    monkeypatch.setattr("ensdistill.student.methods.distribution.LARGEST", -100.0)
    run = folder_of(copy, **{"distill.students.small.method": "endd"})
    with pytest.warns(UserWarning, match="endd collapsed at step 0"):
        run_unit(run, Unit("distill", 0, "small"))
    students = judge(evaluate(run, timed=False), resamples=2000)["students"]
    note = students["small"]["models"]["student"]["note"]
    assert note == "endd collapsed at step 0; trained on by proxy_dirichlet"
    assert students["wide"]["models"]["student"]["note"] == ""
