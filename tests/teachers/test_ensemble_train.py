"""Ensemble.train: every method, every kind of factory, in memory, on disk, and its errors."""

import copy
import functools
import json
import warnings

import numpy as np
import pytest
import torch
from sklearn.ensemble import (
    ExtraTreesClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from ensdistill.common.optimization import Optimization
from ensdistill.models import CNN, MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.methods import Bagging, FastGeometric, Snapshot

QUICK = Optimization(steps=120, batch_size=32, learning_rate=5e-3)


def train(digits, factory=MLP, **options):
    options.setdefault("members", 4)
    options.setdefault("optimization", QUICK)
    options.setdefault("way", "auto")
    return Ensemble.train(factory, digits.labelled, **options)


def accuracy(ensemble, digits):
    return (ensemble.predict_proba(digits.test.inputs).argmax(1) == digits.test.labels).mean()


def states(ensemble):
    return [{k: v.clone() for k, v in m.module.state_dict().items()} for m in ensemble.members]


def difference(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.mark.parametrize("method", ["seeds", "bagging", "subsample", "snapshot", "fast_geometric"])
def test_every_method_makes_members_that_differ_and_know_something(digits, method):
    steps = 480 if method in ("snapshot", "fast_geometric") else 120  # of one training, from which all come
    ensemble = train(
        digits, method=method, optimization=Optimization(steps=steps, batch_size=32, learning_rate=5e-3)
    )
    assert ensemble.names == ("mlp-1", "mlp-2", "mlp-3", "mlp-4")
    found = states(ensemble)
    assert min(difference(found[i], found[j]) for i in range(4) for j in range(i)) > 1e-3
    members = [
        (ensemble.predict_logits(digits.test.inputs)[k].argmax(1).numpy() == digits.test.labels).mean()
        for k in range(4)
    ]
    assert min(members) > 0.8
    assert accuracy(ensemble, digits) >= np.mean(members)


def test_members_can_be_trained_alone(digits):
    """Member 3 of 8, with rows of its own: one by one the same bits; in a stack the tolerance of
    test_training's stacks."""
    options = {"factory": functools.partial(MLP, dropout=0.3), "method": "bagging"}
    (alone,) = states(train(digits, members=[3], **options))
    among = train(digits, members=8, way="one_by_one", **options)
    assert among.names[3] == "mlp-4"
    assert difference(alone, states(among)[3]) == 0
    assert difference(alone, states(train(digits, members=8, way="stacked", **options))[3]) < 1e-4


def test_bootstraps_keep_every_class_and_its_share():
    labels = np.repeat([0, 1, 2], [90, 9, 1])
    rows = [Bagging().rows(labels, seed) for seed in range(20)]
    assert all(np.bincount(labels[r]).tolist() == [90, 9, 1] for r in rows)
    assert len({tuple(r) for r in rows}) == 20
    half = Bagging(share=0.5, replace=False).rows(labels, 0)
    assert np.bincount(labels[half]).tolist() == [45, 4, 1]
    assert len(np.unique(half)) == 50
    with pytest.raises(ValueError, match=r"at least two classes to draw from; all are of class \[1\]"):
        Bagging().rows(np.ones(5, np.int64), 0)
    with pytest.raises(ValueError, match="share: expected less than 1 without replacement"):
        Bagging(replace=False)


def rates(optimization):
    optimizer, scheduler = optimization.build([torch.zeros(1, requires_grad=True)])
    out = []
    for _ in range(optimization.steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(out)


@pytest.mark.parametrize(("steps", "members"), [(120, 4), (100, 3), (10, 5)])
def test_snapshots_are_taken_at_the_end_of_each_cycle(steps, members):
    optimization, ends = Snapshot().plan(Optimization(steps=steps, learning_rate=1.0), members)
    rate = rates(optimization)
    assert ends[-1] == steps
    assert len(ends) == members
    for first, end in zip([0, *ends], ends, strict=False):
        assert rate[first] > 0.9 if steps > 10 else rate[first] > 0.7  # a cycle begins at the top
        assert (np.diff(rate[first:end]) < 0).all()
    if steps == 120:  # Huang et al., equation 2
        t = np.arange(120)
        np.testing.assert_allclose(rate, 0.5 * (np.cos(np.pi * (t % 30) / 30) + 1), atol=1e-12)


@pytest.mark.parametrize(("steps", "members"), [(200, 4), (101, 3)])
def test_fast_geometric_members_are_taken_where_the_rate_is_lowest(steps, members):
    optimization, taken = FastGeometric(share=0.7, high=0.5, low=0.01).plan(
        Optimization(steps=steps, learning_rate=1.0), members
    )
    rate = rates(optimization)
    first = round(0.7 * steps)
    assert rate[:first].max() == pytest.approx(1.0)
    assert rate[first - 1] == pytest.approx(0.5, abs=0.01)
    assert (rate[first:] <= 0.5 + 1e-12).all()
    for end in taken:
        assert first < end <= steps
        assert rate[end - 1] == pytest.approx(0.01)  # the last step before it is kept
    assert len(set(taken)) == members


def test_methods_refuse_settings_that_they_cannot_follow(digits):
    with pytest.raises(
        ValueError, match=r"optimization\.steps: expected at least 8, two for each cycle; got 5"
    ):
        train(digits, method="snapshot", optimization=Optimization(steps=5))
    with pytest.raises(ValueError, match=r"optimization\.steps: expected at least \d+, for 4 cycles"):
        train(digits, method="fast_geometric", optimization=Optimization(steps=10))
    with pytest.raises(
        ValueError, match="method: expected one of seeds, bagging, subsample, snapshot, fast_geometric"
    ):
        train(digits, method="boosting")
    for factory, members in ((GaussianNB(), 3), ([MLP, CNN], 2), (MLP, [0, 2])):
        with pytest.raises(
            ValueError, match="Snapshot takes all its members from one training of one torch module"
        ):
            train(digits, factory, members=members, method="snapshot")


def test_different_factories_make_one_ensemble(digits):
    narrow = functools.partial(MLP, hidden=[16])
    ensemble = train(digits, [narrow, CNN, ExtraTreesClassifier(10)], members=None)
    assert ensemble.names == ("mlp-1", "cnn-2", "extratreesclassifier-3")
    six = train(digits, [narrow, CNN, ExtraTreesClassifier(10)], members=6)
    assert [n.rpartition("-")[0] for n in six.names] == ["mlp", "cnn", "extratreesclassifier"] * 2
    x = digits.test.inputs
    # Estimators are the same bits; the modules of a stack differ by rounding.
    np.testing.assert_array_equal(six.members[2].predict_logits(x), ensemble.members[2].predict_logits(x))
    np.testing.assert_allclose(six.predict_logits(x)[:2], ensemble.predict_logits(x)[:2], atol=1e-3)
    assert accuracy(six, digits) > 0.85


def test_estimators_get_seeds_or_rows_of_their_own(digits):
    forests = train(digits, RandomForestClassifier(5), members=3, n_jobs=2)
    assert len(set(m.fingerprint() for m in forests.members)) == 3
    np.testing.assert_array_equal(
        forests.predict_proba(digits.test.inputs),
        train(digits, RandomForestClassifier(5), members=3).predict_proba(digits.test.inputs),
    )
    with pytest.raises(
        ValueError,
        match=(
            "GaussianNB has no random_state that is None, so its 3 members would be equal; choose "
            "method='bagging'"
        ),
    ):
        train(digits, GaussianNB(), members=3)
    bagged = train(digits, GaussianNB(), members=3, method="bagging")
    assert len(set(m.fingerprint() for m in bagged.members)) == 3
    assert train(digits, [GaussianNB(), LogisticRegression(max_iter=300)], members=None).names == (
        "gaussiannb-1",
        "logisticregression-2",
    )


class Failing(GaussianNB):
    """Fails in the way that its parameter names."""

    def __init__(self, error="memory"):
        super().__init__()
        self.error = error

    def fit(self, x, y):
        if self.error == "memory":
            raise MemoryError("9 PiB")
        if self.error == "arithmetic":
            raise ArithmeticError("it broke")
        raise json.JSONDecodeError("it broke", "", 0)  # on the way from another process it loses its notes


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_an_error_of_a_fit_names_the_member(digits, n_jobs):
    def fit(error, members=None):
        both = [GaussianNB(), Failing(error)] if members is None else Failing(error)
        train(digits, both, members=members, method="bagging", n_jobs=n_jobs)

    advice = (
        r"fit fewer at once \(n_jobs\), choose fewer rows \(method='subsample'\), or a smaller estimator$"
    )
    with pytest.raises(
        MemoryError,
        match=r"^failing-2: out of memory in its fit \(9 PiB\) to 200 rows of 64 features; " + advice,
    ):
        fit("memory")
    for error, kind, members, who in (
        *([] if n_jobs else [("arithmetic", ArithmeticError, None, "failing-2")]),
        ("json", json.JSONDecodeError, None, "failing-2"),
        (
            "json",
            json.JSONDecodeError,
            3,
            "one of failing-1, failing-2, failing-3" if n_jobs else "failing-1",
        ),
    ):
        with pytest.raises(kind, match="it broke") as caught:
            fit(error, members)
        assert caught.value.__notes__ == [f"in the fit of {who}"]


def test_members_that_came_out_equal_are_warned_of(digits):
    with pytest.warns(UserWarning, match="logisticregression-2 answers just as logisticregression-1 does"):
        train(digits, LogisticRegression(max_iter=500), members=2)
    with warnings.catch_warnings(action="error"):
        train(digits, DecisionTreeClassifier(), members=2)  # which all know their rows by heart
        train(digits, LogisticRegression(max_iter=500), members=2, method="bagging")


def test_members_may_be_optimised_differently(digits):
    options = {"members": np.int64(4), "way": "one_by_one", "factory": functools.partial(MLP, hidden=[4])}
    slow, fast = (Optimization(steps=3, batch_size=16, learning_rate=rate) for rate in (1e-4, 1e-2))
    both = states(train(digits, optimization=[slow, fast], **options))
    assert [
        difference(a, b) == 0
        for a, b in zip(both, states(train(digits, optimization=slow, **options)), strict=True)
    ] == [1, 0, 1, 0]
    assert [
        difference(a, b) == 0
        for a, b in zip(both, states(train(digits, optimization=fast, **options)), strict=True)
    ] == [0, 1, 0, 1]
    assert len(train(digits, optimization=[slow, fast], members=None, way="auto")) == 2


def test_labels_may_be_names(digits):
    names = np.array([f"digit {i}" for i in range(10)])
    data = (digits.labelled.inputs, names[digits.labelled.labels])
    ensemble = Ensemble.train(MLP, data, members=2, optimization=QUICK, way="auto")
    assert ensemble.classes == tuple(sorted(names))
    assert accuracy(ensemble, digits) > 0.8
    turned = Ensemble.train(GaussianNB(), data, members=1, classes=list(names[::-1]))
    assert turned.classes == tuple(names[::-1])
    assert (names[::-1][turned.predict_proba(digits.labelled.inputs).argmax(1)] == data[1]).mean() > 0.8


def test_labels_have_to_show_the_number_of_classes(digits, monkeypatch):
    """Before anything is trained."""
    monkeypatch.setattr("ensdistill.teachers.networks.train_stack", lambda *a, **k: pytest.fail("trained"))
    monkeypatch.setattr("ensdistill.teachers.estimators.fit", lambda jobs, *a: pytest.fail("fitted"))
    x = digits.labelled.inputs[:12]
    for factory in (GaussianNB(), MLP):
        for values, shown in (
            ([1, 2, 3], r"3 .*, \[1, 2, 3\], up to 3"),
            ([0, 2], r"2 .*, \[0, 2\], up to 2"),
        ):
            y = np.resize(values, 12)
            with pytest.raises(
                ValueError,
                match=rf"data: expected labels in 0\.\.C-1, .*got {shown}\. .*labels\.astype\(str\)",
            ):
                Ensemble.train(factory, (x, y), members=1)
    with pytest.raises(
        ValueError, match=r"data: expected labels in 0\.\.C-1, .*\[0, 1, 2, 3, 4\] \.\.\., up to 1000000000"
    ):
        Ensemble.train(MLP, (x, np.array([*range(11), 10**9])), members=1)


def test_classes_may_have_no_rows_where_outputs_are_there_anyway(digits):
    x, few = digits.labelled.inputs[:12], Optimization(steps=2, batch_size=4)
    net = functools.partial(MLP, outputs=3)
    for labels in (np.resize([0, 2], 12), np.resize(["a", "c"], 12)):
        for method in ("seeds", "bagging"):
            ensemble = Ensemble.train(
                net, (x, labels), members=2, method=method, classes=("a", "b", "c"), optimization=few
            )
            assert (ensemble.classes, ensemble.predict_proba(x).shape) == (("a", "b", "c"), (12, 3))
    numbers = Ensemble.train(
        [net, GaussianNB()], (x, np.resize([1, 2, 10], 12).astype(str)), optimization=few
    )
    assert numbers.classes == ("1", "10", "2")
    assert numbers.predict_proba(x).shape == (12, 3)


def test_bad_data_and_factories(digits):
    x, y = digits.labelled.inputs, digits.labelled.labels
    rows = digits.labelled
    cases = [
        (
            {"data": (x, y[:5])},
            ValueError,
            r"data: expected inputs \[N, \.\.\.\] and labels \[N\]; got \[200, 1, 8, 8\] and \[5\]",
        ),
        ({"data": x}, TypeError, "data: expected Rows, or a tuple of inputs and labels; got numpy.ndarray"),
        (
            {"data": (x, np.zeros_like(y))},
            ValueError,
            "data: expected rows of at least two classes; all are of class '0'",
        ),
        ({"data": (x, y - 1)}, ValueError, r"data: expected labels in 0\.\.8; row \d+ has -1"),
        ({"data": (x.astype(object), y)}, ValueError, "data: expected inputs that are numbers; got object"),
        (
            {"data": ((x * 2**30).astype(int) + 1, y)},
            ValueError,
            r"data: expected numbers that float32 can hold; row \d+ has others",
        ),
        (
            {"data": (x.astype(np.float16), y)},
            ValueError,
            "data: expected float32, float64 or integer inputs for a module; got float16",
        ),
        (
            {"data": (x * np.float64(1e300), y)},
            ValueError,
            r"expected numbers that float32 can hold; row 0 has others \(200 such rows\)",
        ),
        (
            {"data": (np.where(np.arange(200)[:, None, None, None] == 7, np.nan, x), y)},
            ValueError,
            "data: expected finite numbers; row 7",
        ),
        ({"data": rows.without_labels()}, ValueError, r"row 0 has -100"),
        ({"members": 0}, ValueError, "members: expected a number of at least 1"),
        ({"members": [1, 1]}, ValueError, "members: expected a number of at least 1, or different numbers"),
        ({"members": None}, ValueError, "members: expected how many"),
        ({"factory": []}, ValueError, "factory: expected at least one"),
        ({"factory": MLP()}, TypeError, r"factory: expected what makes a new module .*; got the MLP itself"),
        ({"factory": 3}, TypeError, r"factory: expected what makes .*; got builtins\.int"),
        (
            {"members": 2.0},
            TypeError,
            r"members: expected a number, or numbers of members; got builtins\.float",
        ),
        (
            {"factory": GaussianNB},
            TypeError,
            r"factory: expected an estimator that is to be fitted, GaussianNB\(\.\.\.\); got its class",
        ),
        (
            {"optimization": [QUICK] * 3, "factory": [MLP, CNN]},
            ValueError,
            "one for each of the 2 factories; got 3",
        ),
        (
            {"optimization": [3]},
            TypeError,
            r"optimization: expected an Optimization, or a list of them; got builtins\.int",
        ),
        ({"way": "nope", "method": "snapshot"}, ValueError, "way: expected"),
        ({"way": "nope", "factory": GaussianNB(), "members": 1}, ValueError, "way: expected"),
        (
            {"way": "both"},
            ValueError,
            "way: expected auto, measured, stacked, one_by_one or side_by_side; got 'both'",
        ),
    ]
    for change, kind, words in cases:
        with pytest.raises(kind, match=words):
            Ensemble.train(**{"factory": MLP, "data": rows, "members": 2, "optimization": QUICK, **change})


def test_a_module_that_exists_already_is_refused_and_stays_as_it_was(digits, monkeypatch):
    shared, before = MLP(), MLP().state_dict()
    shared.load_state_dict(before)
    own = [lambda: shared] * 2
    cases = [
        (own[0], {"members": 1}),
        (own[0], {"way": "one_by_one"}),
        (own[0], {"method": "snapshot"}),
        ([MLP, *own], {"members": None}),
    ]
    monkeypatch.setattr("ensdistill.teachers.stack.train.Job", lambda *a, **k: pytest.fail("trained"))
    for factory, options in cases:
        with pytest.raises(
            ValueError,
            match=r"a second call for member-\d shares 1\.weight with member-\d\. .*copy\.deepcopy\(module\)",
        ):
            train(digits, factory, optimization=Optimization(steps=8), **options)
    monkeypatch.undo()
    copies = train(digits, lambda: copy.deepcopy(shared), members=2, optimization=Optimization(steps=2))
    assert difference(states(copies)[0], before) > 0
    assert difference(shared.state_dict(), before) == 0


def test_a_module_without_shapes_is_refused_before_training(digits):
    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

    def known():
        module = lazy()
        module(torch.zeros(2, 1, 8, 8))
        return module

    for options in ({}, {"members": 1}, {"method": "snapshot"}):
        with pytest.raises(
            ValueError,
            match=(
                r"factory: .*1\.weight of LazyLinear gets one by a first batch: name its inputs \(Linear in"
            ),
        ):
            train(digits, lazy, optimization=Optimization(steps=8), **options)
    assert len(train(digits, known, members=2, optimization=Optimization(steps=2))) == 2


def test_the_default_way_has_the_same_bits_each_time_and_looks_at_no_clock(digits, monkeypatch):
    monkeypatch.setattr("ensdistill.teachers.stack.train.fastest", lambda *a: pytest.fail("was timed"))
    long = Optimization(steps=210, batch_size=8)
    one, other = (
        states(Ensemble.train(MLP, digits.labelled, members=5, optimization=long)) for _ in range(2)
    )
    assert [difference(a, b) for a, b in zip(one, other, strict=True)] == [0.0] * 5
