"""Saved members name the packages that loading them needs; a missing one is named before anything is read."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from ensdistill import Ensemble
from ensdistill.data.preprocess import default_transformer
from ensdistill.models import MLP
from ensdistill.teachers.members import Preprocessed, TorchMember, load_member
from ensdistill.teachers.members.needs import needed

X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def needs(file):
    return json.loads(file.read_text())["needs"]


@pytest.fixture
def saved(tmp_path):
    factory = partial(MLP, inputs=2, hidden=[3], outputs=2)
    members = [
        TorchMember(factory(), name="mlp", factory=factory, output="logits"),
        GaussianNB().fit(X, Y),
        xgboost.XGBClassifier(n_estimators=2).fit(X, Y),
    ]
    Ensemble.from_members(members).save(tmp_path / "e")
    return tmp_path / "e"


def test_an_ensemble_names_what_all_of_its_members_need(saved):
    found = needs(saved / "ensemble.json")
    assert found.keys() == {"torch", "sklearn", "skops", "xgboost"}
    assert found["sklearn"] == f"scikit-learn=={version('scikit-learn')}"
    assert found["torch"] == f"torch=={version('torch').partition('+')[0]}"
    assert found["xgboost"] in (f"xgboost=={xgboost.__version__}", f"xgboost-cpu=={xgboost.__version__}")
    assert needs(saved / "members/mlp/member.json").keys() == {"torch"}
    assert needs(saved / "members/xgbclassifier/member.json").keys() == {"xgboost"}


def test_a_preprocess_names_what_it_needs(tmp_path):
    frame = pd.DataFrame({"a": X[:, 0], "b": np.where(X[:, 1] > 0, "x", "y")})
    scaled = default_transformer(frame)
    factory = partial(MLP, inputs=scaled(frame).shape[1], hidden=[3], outputs=2)
    Preprocessed(TorchMember(factory(), name="m", factory=factory, output="logits"), scaled).save(tmp_path)
    assert needs(tmp_path / "member.json").keys() == {"sklearn", "skops", "pandas"}
    assert needs(tmp_path / "model/member.json").keys() == {"torch"}


@pytest.mark.parametrize("blocked", ["xgboost", "skops"])
def test_a_missing_package_is_named(saved, monkeypatch, blocked):
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(
        ImportError, match=rf"e: needs {blocked}.*==.*, not installed here: pip install {blocked}"
    ):
        Ensemble.load(saved)
    folder = saved / "members" / ("xgbclassifier" if blocked == "xgboost" else "gaussiannb")
    with pytest.raises(ImportError, match=f"needs {blocked}"):
        load_member(folder)
    load_member(saved / "members/mlp")


def test_a_folder_of_an_earlier_version_names_nothing_and_is_loaded(saved):
    for file in saved.rglob("*.json"):
        about = json.loads(file.read_text())
        about.pop("needs")
        file.write_text(json.dumps(about))
    assert Ensemble.load(saved).names == ("mlp", "gaussiannb", "xgbclassifier")


def test_a_module_of_the_users_own_is_no_package_to_install(tmp_path, monkeypatch):
    import types

    own = types.ModuleType("my_models_of_mine")
    own.Own = type("Own", (MLP,), {"__module__": "my_models_of_mine"})
    monkeypatch.setitem(sys.modules, "my_models_of_mine", own)
    factory = partial(own.Own, inputs=2, hidden=[3], outputs=2)
    TorchMember(factory(), name="own", factory=factory, output="logits").save(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models_of_mine")
    with pytest.raises(ImportError, match=r"needs the module my_models_of_mine, not installed here$"):
        load_member(tmp_path, ["my_models_of_mine.Own"])


def test_an_estimator_within_another_librarys_is_named(tmp_path):
    from sklearn.pipeline import make_pipeline

    from ensdistill.teachers.members import SklearnMember

    pipeline = make_pipeline(xgboost.XGBClassifier(n_estimators=2)).fit(X, Y)
    SklearnMember(pipeline).save(tmp_path / "p")
    assert needs(tmp_path / "p/member.json").keys() == {"sklearn", "skops", "xgboost"}
    SklearnMember(LogisticRegression().fit(X, Y)).save(tmp_path / "l")
    assert needs(tmp_path / "l/member.json").keys() == {"sklearn", "skops"}


def test_a_package_that_is_installed_later_is_named(tmp_path, monkeypatch):
    assert needed(["installed_later.models.Own"]) == {"installed_later": "the module installed_later"}
    about = tmp_path / "installed_later_dist-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-later-dist\nVersion: 1.5\n")
    (about / "top_level.txt").write_text("installed_later\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert needed(["installed_later.models.Own"]) == {"installed_later": "installed-later-dist==1.5"}
