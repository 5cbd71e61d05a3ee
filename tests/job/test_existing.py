"""Members that exist already, named in a job's YAML: every kind, the changes that make a stage stale,
and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import skops.io
from catboost import CatBoostClassifier
from job_helpers import mlp, run, succeed, write_job
from lightgbm import LGBMClassifier
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from xgboost import XGBClassifier

from ensdistill.common.files import read_json
from ensdistill.data import Digits
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble

SPLIT = Digits(labelled=100, pool=100).split(seed=0)

EVERY = np.concatenate([SPLIT.labelled.inputs, SPLIT.pool.inputs, SPLIT.test.inputs])
UIDS = np.concatenate([SPLIT.labelled.uids, SPLIT.pool.uids, SPLIT.test.uids])
X, Y = SPLIT.labelled.inputs.reshape(100, 64), SPLIT.labelled.labels


def named(kind, **arguments):
    return {"class_path": f"ensdistill.teachers.existing.{kind}", "init_args": arguments}


def write_onnx(linear, file):
    """A linear model of images as an ONNX file."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
    ]
    values = {"w": linear.coef_.T.astype(np.float32), "b": linear.intercept_.astype(np.float32)}
    weights = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "linear", [image], [logits], weights)
    file.write_bytes(
        helper.make_model(
            graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
        ).SerializeToString()
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of every kind; the members behind them, by name."""
    folder = tmp_path_factory.mktemp("files")
    nb = GaussianNB().fit(X.astype(np.float64), Y)
    skops.io.dump(nb, folder / "nb.skops")
    xgb = XGBClassifier(n_estimators=3, n_jobs=1).fit(X, Y)
    xgb.save_model(folder / "xgb.ubj")
    xgb.get_booster().save_model(folder / "booster.json")
    LGBMClassifier(n_estimators=3, n_jobs=1, verbose=-1).fit(X, Y).booster_.save_model(folder / "lgbm.txt")
    cat = CatBoostClassifier(iterations=3, thread_count=1, verbose=False, allow_writing_files=False).fit(X, Y)
    cat.save_model(str(folder / "cat.cbm"))
    cat.save_model(str(folder / "cat2.json"), format="json")
    net = MLP(64, [8], 10)
    save_tensors(net.state_dict(), folder / "net.safetensors")
    linear = LogisticRegression(max_iter=20).fit(X, Y)
    write_onnx(linear, folder / "linear.onnx")
    Ensemble.from_members([nb, linear], classes=SPLIT.classes).save(folder / "ensemble")
    saved = Ensemble.load(folder / "ensemble")
    saved.temperature = 2.0
    saved.save(folder / "ensemble")
    shutil.copytree(folder / "ensemble" / "members", folder / "members")
    answers = xgb.predict_proba(EVERY.reshape(-1, 64))
    order = np.argsort(UIDS)
    save_file({"probabilities": answers, "uids": UIDS}, folder / "stored.safetensors")
    np.save(folder / "logits.npy", np.log(answers[order] + 1e-6))
    np.save(folder / "uids.npy", UIDS[order])
    return folder


MEMBERS = {
    "nb": ("MemberFile", {"file": "nb.skops"}),
    "xgb": ("MemberFile", {"file": "xgb.ubj"}),
    "booster": ("MemberFile", {"file": "booster.json"}),
    "lgbm": ("MemberFile", {"file": "lgbm.txt"}),
    "cat": ("MemberFile", {"file": "cat.cbm"}),
    "cat2": ("MemberFile", {"file": "cat2.json"}),
    "net": ("MemberFile", {"file": "net.safetensors", "model": mlp(8), "output": "logits"}),
    "linear": ("MemberFile", {"file": "linear.onnx"}),
    "stored": ("StoredPredictions", {"file": "stored.safetensors"}),
    "logits": ("StoredPredictions", {"file": "logits.npy", "uids": "uids.npy", "output": "logits"}),
    "e": ("SavedEnsemble", {"folder": "ensemble", "prefix": "e "}),
    "m": ("SavedMembers", {"folder": "members", "prefix": "m "}),
}


def entry(files, key, **more):
    kind, arguments = MEMBERS[key]
    paths = {
        name: str(files / value) for name, value in arguments.items() if name in ("file", "folder", "uids")
    }
    return named(kind, **{**arguments, **paths, **more})


def job(tmp_path, members, **change):
    return write_job(tmp_path, {"teachers.members": members, "cache.transfer.synthetic": [], **change})


def ensemble_of(tmp_path, name="tiny"):
    return Ensemble.load(tmp_path / "runs" / name / "seed-0" / "teachers" / "ensemble")


def test_every_kind_of_existing_member_in_one_job(tmp_path, files):
    succeed("teachers", job(tmp_path, [entry(files, key) for key in MEMBERS]))
    ensemble = ensemble_of(tmp_path).for_uids(SPLIT.test.uids)
    own = ["e gaussiannb", "e logisticregression", "m gaussiannb", "m logisticregression"]
    assert ensemble.names == (*list(MEMBERS)[:-2], *own)
    found = dict(zip(ensemble.names, ensemble.raw_logits(SPLIT.test.inputs), strict=True))
    np.testing.assert_array_equal(found["xgb"], found["booster"])
    np.testing.assert_allclose(found["cat"], found["cat2"], atol=1e-5)
    np.testing.assert_array_equal(found["e gaussiannb"], found["m gaussiannb"])
    np.testing.assert_array_equal(found["nb"], found["m gaussiannb"])

    def probabilities(z):
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    np.testing.assert_allclose(
        probabilities(found["linear"]), probabilities(found["m logisticregression"]), atol=1e-4
    )
    for name in ("stored", "logits"):
        np.testing.assert_allclose(probabilities(found[name]), probabilities(found["xgb"]), atol=1e-3)
    # None of them is known not to have been trained on the labelled rows.
    np.testing.assert_array_equal(ensemble.weights, np.full(14, 1 / 14))
    assert ensemble.temperatures.tolist() == [1.0] * 10 + [2.0, 2.0] + [1.0, 1.0]
    assert ensemble.temperature == 1
    record = read_json(tmp_path / "runs" / "tiny" / "seed-0" / "teachers" / "stage.json")
    assert set(record["held_out_nll"].values()) == {None}


def test_trained_members_share_the_weight_that_existing_ones_leave(tmp_path, files):
    trained = {
        "class_path": "ensdistill.teachers.recipes.SklearnMembers",
        "init_args": {"estimator": {"class_path": "sklearn.tree.DecisionTreeClassifier"}, "count": 2},
    }
    succeed("teachers", job(tmp_path, [trained, entry(files, "nb"), entry(files, "net", held_out=True)]))
    ensemble = ensemble_of(tmp_path)
    assert ensemble.names == ("decisiontreeclassifier-1", "decisiontreeclassifier-2", "nb", "net")
    assert ensemble.weights[2] == 0.25
    assert ensemble.weights[[0, 1, 3]].sum() == pytest.approx(0.75)
    assert ensemble.temperatures[2] == 1
    assert (ensemble.temperatures[[0, 1, 3]] != 1).all()
    record = read_json(tmp_path / "runs" / "tiny" / "seed-0" / "teachers" / "stage.json")
    assert record["held_out_nll"]["nb"] is None
    assert record["held_out_nll"]["net"] == pytest.approx(np.log(10), abs=0.5)  # it was never trained
    assert record["best_member"].startswith("decisiontree")


def test_a_whole_job_of_stored_predictions(tmp_path, files):
    file = job(tmp_path, [entry(files, "stored", held_out=True), entry(files, "logits", held_out=True)])
    succeed("run", file)
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert (
        report["models"]["ensemble"]["latency_ms"]["batch_1"]["p50"] is None
    )  # stored predictions have no latency
    assert report["models"]["ensemble"]["accuracy"]["mean"] > 0.5
    assert report["students"]["small"]["models"]["student"]["latency_ms"]["batch_1"]["p50"] > 0
    succeed("run", file, "--cache.mixture_at", "1")


def test_a_changed_file_makes_the_stage_stale(tmp_path, files):
    folder = tmp_path / "files"
    shutil.copytree(files, folder)
    file = job(tmp_path, [entry(folder, "nb"), entry(folder, "m")])
    succeed("teachers", file)
    assert "unchanged" in succeed("teachers", file)
    skops.io.dump(GaussianNB().fit(X[:90].astype(np.float64), Y[:90]), folder / "nb.skops")
    before = ensemble_of(tmp_path).fingerprint()["members"]
    assert "✓" in run("teachers", file)[2]
    after = ensemble_of(tmp_path).fingerprint()["members"]
    assert {name for name in before if before[name] != after[name]} == {"nb"}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            [("nb", {"file": "no.skops"})],
            "teachers.members.0.init_args.file: no.skops cannot be read (No such file",
        ),
        (
            [("nb", {"file": "model.pkl"})],
            "model.pkl: reading .pkl files can run code that is in them; save an estimator by skops",
        ),
        ([("nb", {"file": "model.h5"})], "file: expected a file that ends in .onnx, .skops"),
        (
            [("net", {"model": None})],
            "model: net.safetensors: expected the class of the torch module; got None",
        ),
        ([("net", {"model": mlp(9)})], "teachers.members.0.init_args.file: "),
        ([("e", {"folder": "nowhere"})], "teachers.members.0.init_args.folder: expected a saved ensemble"),
        ([("m", {"folder": "nowhere"})], "teachers.members.0.init_args.folder: expected saved members"),
        ([("nb", {}), ("nb", {})], "teachers.members: expected different names; 2 are called 'nb'"),
        ([("nb", {}), ("nb", {"name": "b", "classes": ["a", "b"]})], "teachers.members.1.init_args.file: "),
    ],
)
def test_unusable_members_are_named_before_any_work(tmp_path, files, members, words):
    status, _, err = run("teachers", job(tmp_path, [entry(files, key, **more) for key, more in members]))
    assert status == 2
    assert words in err.replace("\n", " ")
    assert not list((tmp_path / "runs").rglob("member.json"))


def test_stored_predictions_have_to_be_there_for_every_row(tmp_path, files):
    np.save(tmp_path / "few.npy", np.load(files / "logits.npy")[:900])
    few = named("StoredPredictions", file=str(tmp_path / "few.npy"), output="logits")
    status, _, err = run("teachers", job(tmp_path, [few]))
    assert status == 2
    assert "teachers.members.0.init_args.uids: few has no output for uid" in err.replace("\n", " ")
    mixup = [{"class_path": "ensdistill.data.transfer.Mixup", "init_args": {"rows": 20}}]
    status, _, err = run(
        "teachers", job(tmp_path, [entry(files, "logits")], **{"cache.transfer.synthetic": mixup})
    )
    assert status == 2
    assert "cache.transfer.synthetic: expected none, because logits has stored predictions" in err.replace(
        "\n", " "
    )
    assert not list((tmp_path / "runs").rglob("member.json"))


def test_the_example_runs_as_it_stands(tmp_path, monkeypatch):
    examples = Path(__file__).parents[2] / "examples"
    monkeypatch.chdir(tmp_path)
    exec(
        compile((examples / "existing_members.py").read_text(), "existing_members.py", "exec"),
        {"__name__": "__main__"},
    )
    succeed("teachers", examples / "existing_members.yaml")
    ensemble = Ensemble.load(tmp_path / "runs" / "existing_members" / "seed-0" / "teachers" / "ensemble")
    trees = ("bagged_trees-1", "bagged_trees-2", "bagged_trees-3")
    assert ensemble.names == (
        "extra_trees",
        "xgboost",
        "mlp",
        "saved-mlp-2",
        "saved-logisticregression",
        "svc",
        *trees,
    )
    test = Digits().split(seed=0).test
    assert (ensemble.for_uids(test.uids).predict_proba(test.inputs).argmax(1) == test.labels).mean() > 0.93
    succeed("cache", "build", examples / "existing_members.yaml")
