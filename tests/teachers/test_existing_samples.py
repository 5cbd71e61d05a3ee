"""Members that exist already, on raw samples: files with a preprocess that is named beside them."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from safetensors.torch import save_file
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xgboost import XGBClassifier

from ensdistill.data import Rows
from ensdistill.data.preprocess import Categories, HashedNgrams, TableDefaults
from ensdistill.models import MLP
from ensdistill.teachers import train_ensemble
from ensdistill.teachers.existing import MemberFile, SavedMembers
from ensdistill.teachers.members import TorchMember
from ensdistill.teachers.prepared import prepare_recipes

CLASSES = ("no", "yes")


def halved(batch):
    return np.asarray(batch, np.float32) / 2


def table(rows=80):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"city": generator.choice(["Rome", "Oslo"], rows), "age": generator.normal(40, 9, rows)}
    )
    return frame, ((frame["city"] == "Rome") | (frame["age"] > 45)).to_numpy(int)


def as_rows(inputs, labels):
    return Rows(inputs, np.arange(len(labels)), np.asarray(labels, np.int64))


def loaded(recipe, rows, **more):
    for own in prepare_recipes([recipe], rows.inputs, 2, 0):
        own.check(rows, CLASSES)
    return train_ensemble([recipe], rows, CLASSES, folds=2, **more)[0]


def test_a_network_and_its_scaler_in_two_files(tmp_path):
    frame, labels = table()
    columns = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["city"]), (StandardScaler(), ["age"])
    )
    skops.io.dump(columns.fit(frame), tmp_path / "columns.skops")
    torch.manual_seed(0)
    net = MLP(3, [8], 2)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    recipe = MemberFile(
        tmp_path / "net.safetensors",
        model=partial(MLP, inputs=3, hidden=[8], outputs=2),
        output="logits",
        preprocess=str(tmp_path / "columns.skops"),
    )
    ensemble = loaded(recipe, as_rows(frame, labels))
    inputs = torch.from_numpy(columns.transform(frame).astype(np.float32))
    with torch.no_grad():
        np.testing.assert_allclose(ensemble.raw_logits(frame)[0], net.eval()(inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("held_out", [False, True])
def test_pipelines_and_boosters_take_the_frame_itself(held_out, tmp_path):
    frame, labels = table()
    columns = make_column_transformer((OneHotEncoder(), ["city"]), (StandardScaler(), ["age"]))
    model = make_pipeline(columns, LogisticRegression()).fit(frame, np.array(CLASSES)[labels])
    skops.io.dump(model, tmp_path / "model.skops")
    booster = XGBClassifier(n_estimators=4, n_jobs=1, enable_categorical=True)
    booster.fit(frame.assign(city=frame["city"].astype("category")), labels).save_model(
        tmp_path / "trees.ubj"
    )
    rows = as_rows(frame, labels)
    for file, expected in (("model.skops", model.predict_proba(frame)), ("trees.ubj", None)):
        ensemble = loaded(MemberFile(tmp_path / file, held_out=held_out), rows)
        p = np.exp(ensemble.raw_logits(frame)[0])
        p /= p.sum(1, keepdims=True)
        if expected is None:
            expected = booster.predict_proba(frame.assign(city=frame["city"].astype("category")))
        np.testing.assert_allclose(p, expected, rtol=0, atol=4e-6)


def test_saved_members_get_a_preprocess_by_its_path(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    member = TorchMember(MLP(4, [8], 2), name="net", classes=CLASSES, output="logits")
    member.recipe = {
        "class_path": "ensdistill.models.MLP",
        "init_args": {"inputs": 4, "hidden": [8], "outputs": 2},
    }
    member.save(tmp_path / "net")
    monkeypatch.chdir(tmp_path / "net")
    assert SavedMembers(".").name == "net"  # as where it is run from the members' own folder
    recipe = SavedMembers(tmp_path / "net", preprocess=f"{__name__}.halved")
    assert f"{__name__}.halved" in recipe.trusted
    ensemble = loaded(recipe, as_rows(x, np.arange(40) % 2), folder=tmp_path / "t")
    np.testing.assert_array_equal(ensemble.raw_logits(x)[0], member.predict_logits(x / 2))
    HashedNgrams(buckets=9).save(tmp_path / "grams")
    assert SavedMembers(tmp_path / "net", preprocess=str(tmp_path / "grams")).preprocess == HashedNgrams(
        buckets=9
    )


@pytest.mark.parametrize("setting", ["auto", TableDefaults(), Categories(), StandardScaler()])
def test_one_that_is_yet_to_be_fitted_is_refused(setting, tmp_path):
    with pytest.raises(
        ValueError, match="preprocess: expected one that is fitted, because members that exist"
    ):
        SavedMembers(tmp_path, preprocess=setting)
