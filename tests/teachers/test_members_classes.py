"""Names and order of members' classes: labels of any kind, classes that a member never saw, and indices that
look like names."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import ArrayMember, BoostedMember, SklearnMember, load_member
from ensdistill.teachers.members.base import align, arranged, as_classes

SEEN, ALL = ["ant", "zebra"], ["zebra", "mouse", "ant"]


def rows(labels, seed=0):
    index = np.arange(60) % len(labels)
    return np.random.default_rng(seed).normal(size=(60, 4)) + 2 * np.eye(60, 4)[index], np.array(labels)[
        index
    ]


def boosted(x, y):
    return pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1).fit(x, y)


def filled(p, columns):
    """Probabilities with a column for each class, 0 where the model never saw it."""
    return np.stack([p[:, c] if c is not None else np.zeros(len(p)) for c in columns], 1)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("make", [GaussianNB().fit, SVC().fit, boosted])
def test_a_class_that_a_member_never_saw_has_probability_zero_and_a_warning_once(tmp_path, make):
    x, y = rows(SEEN)
    model = make(x, y)
    kind = BoostedMember if make is boosted else SklearnMember
    own = softmax(kind(model).predict_logits(x).astype(float), -1)
    expected = filled(own, [1, None, 0])
    with pytest.warns(
        UserWarning, match=r"was fitted without the classes \['mouse'\]: it gives them probability 0"
    ) as caught:
        member = kind(model, name="few", classes=ALL, smoothing=1e-4)
    assert (len(caught), caught[0].filename) == (1, __file__)
    np.testing.assert_allclose(softmax(member.predict_logits(x), -1), expected, atol=5e-4)
    np.testing.assert_allclose(softmax(member.predict_logits(x), -1)[:, 1], 1e-4, rtol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        member.predict_logits(x)
        member.save(tmp_path)
        loaded = load_member(tmp_path)
    np.testing.assert_array_equal(loaded.predict_logits(x), member.predict_logits(x))
    assert (loaded.classes, loaded.fingerprint()) == (tuple(ALL), member.fingerprint())


def test_an_ensemble_takes_members_that_lack_classes_and_none_that_have_others(tmp_path):
    x, y = rows(ALL)
    keep = y != "mouse"
    full, few = GaussianNB().fit(x, y), LogisticRegression().fit(x[keep], y[keep])
    known = ArrayMember(
        logits=np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32), name="array", classes=SEEN
    )
    for members, order in (([full, few, known], None), ([few, full, known], ALL)):
        with pytest.warns(UserWarning, match=r"was fitted without the classes \['mouse'\]") as caught:
            ensemble = Ensemble.from_members(members, classes=order)
        assert [w.filename for w in caught] == [__file__] * 2
        places = {name: i for i, name in enumerate(ensemble.classes)}
        p = softmax(ensemble.predict_logits(x).numpy(), -1)
        for found, model in zip(p[:2], members[:2], strict=True):
            expected = np.zeros((60, 3))
            expected[:, [places[c] for c in model.classes_]] = model.predict_proba(x)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(
            p[2][:, [places["ant"], places["zebra"]]], softmax(known.logits, -1), atol=1e-5
        )
    with pytest.raises(
        ValueError,
        match=r"members: gaussiannb has the classes .*; expected \['ant', 'zebra'\]; name the classes of all",
    ):
        Ensemble.from_members([few, full])
    with pytest.raises(
        ValueError,
        match=(
            r"members: gaussiannb has the classes \['ant', 'mouse', 'zebra'\]; expected \['ant', 'mouse'\]$"
        ),
    ):
        Ensemble.from_members([full], classes=["ant", "mouse"])
    with pytest.warns(UserWarning, match=r"without the classes \['mouse'\]"):
        saved = Ensemble.from_members([full, few])
    saved.save(tmp_path / "e")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(Ensemble.load(tmp_path / "e").predict_proba(x), saved.predict_proba(x))


def test_indices_that_lack_classes():
    x, y = rows([0, 2])
    model = GaussianNB().fit(x, y)
    with pytest.warns(UserWarning, match=r"without the classes \['b'\]"):
        ensemble = Ensemble.from_members([model], classes=["a", "b", "c"])
    np.testing.assert_allclose(
        ensemble.predict_proba(x), filled(model.predict_proba(x), [0, None, 1]), atol=1e-5
    )


def test_integers_that_could_be_indices_or_names_are_refused_unless_they_are_named():
    x, y = rows([0, 1, 2])
    model = GaussianNB().fit(x, y)
    for make in (lambda **k: SklearnMember(model, **k), lambda **k: Ensemble.from_members([model], **k)):
        with pytest.raises(ValueError, match=r"\['?0'?, '?1'?, '?2'?\]; expected \['1', '2', '3'\]"):
            make(classes=["1", "2", "3"])
    with pytest.raises(ValueError, match=r"; name its classes, in the order of its classes_, by columns="):
        SklearnMember(model, classes=["1", "2", "3"])
    member = SklearnMember(model, classes=["3", "2", "1"], columns=["1", "2", "3"])
    np.testing.assert_allclose(
        softmax(member.predict_logits(x), -1), model.predict_proba(x)[:, ::-1], atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"columns: gaussiannb: expected 3 names, one for each class of .*got \['a'\]"
    ):
        SklearnMember(model, columns=["a"])


@pytest.mark.filterwarnings("ignore:.*answers just as")
@pytest.mark.parametrize("factory", [DecisionTreeClassifier(), GaussianNB()])
def test_names_that_are_numbers_are_not_taken_for_indices_in_training(tmp_path, factory):
    """Sorted as strings, "10" stands before "2": by name, index 2 would be another class."""
    labels = [str(i) for i in range(12)]
    index = np.arange(240) % 12
    x = np.eye(12, dtype=np.float32)[index]
    y = np.array(labels)[index]
    ensemble = Ensemble.train(factory, (x, y), members=2, method="bagging", folder=tmp_path)
    for one in (ensemble, Ensemble.load(tmp_path)):
        assert (np.array(one.classes)[one.predict_proba(x).argmax(1)] == y).all()


def test_labels_that_are_equal_have_one_name():
    names = as_classes("m", np.array([1.0, 2.0, 2.5]))
    assert (
        names
        == as_classes("m", [1, np.float64(2), 2.5])
        == as_classes("m", np.array(["1", "2", "2.5"], object))
        == ("1", "2", "2.5")
    )
    pandas = pytest.importorskip("pandas")
    x, y = rows(["b", "a"])
    for kind in (pandas.Series(y), pandas.Series(y, dtype="category"), pandas.Series(y, dtype="string")):
        assert SklearnMember(GaussianNB().fit(x, kind)).classes == ("a", "b")
    with pytest.raises(ValueError, match=r"m: expected different names; '1' stands 2 times"):
        align("m", [1, "1"], None)


def test_a_model_of_one_class():
    for library, kind in (("xgboost", "XGBClassifier"), ("lightgbm", "LGBMClassifier")):
        quiet = {"verbose": -1} if library == "lightgbm" else {}
        x = rows(["a"])[0]
        model = getattr(pytest.importorskip(library), kind)(n_estimators=2, n_jobs=1, **quiet).fit(
            x, np.zeros(60, int)
        )
        with pytest.warns(UserWarning, match=r"without the classes \['b', 'c'\]"):
            member = BoostedMember(model, classes=["a", "b", "c"])
        np.testing.assert_allclose(softmax(member.predict_logits(x), -1), [[1, 0, 0]] * 60, atol=1e-5)


def test_arranged_is_the_same_for_arrays_and_tensors():
    z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    columns = np.array([2, -1, 0, 1])
    found = arranged(z, columns)
    np.testing.assert_allclose(found, arranged(torch.from_numpy(z), columns).numpy(), rtol=1e-6)
    np.testing.assert_allclose(softmax(found, -1), filled(softmax(z, -1), [2, None, 0, 1]), atol=2e-6)
    np.testing.assert_array_equal(arranged(z, None), z)
