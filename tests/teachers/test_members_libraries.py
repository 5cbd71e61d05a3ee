"""Adapters of models that other libraries made. Each part runs where its library is installed (``pip install
'ensdistill[members]'``)."""

import json
import warnings

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import BoostedMember, OnnxMember, TorchMember, load_member, pretrained

NAMES = np.array(["zebra", "ant", "mouse"])


def data(classes):
    x, y = make_classification(300, 8, n_informative=6, n_classes=classes, random_state=0)
    return x.astype(np.float32), y


def boosted(library, classes, **more):
    if library == "xgboost":
        return pytest.importorskip("xgboost").XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1, **more)
    if library == "lightgbm":
        return pytest.importorskip("lightgbm").LGBMClassifier(
            n_estimators=8, num_leaves=6, n_jobs=1, verbose=-1, **more
        )
    module = pytest.importorskip("catboost")
    return module.CatBoostClassifier(
        iterations=8, depth=3, thread_count=1, verbose=False, allow_writing_files=False, **more
    )


LIBRARIES = ["xgboost", "lightgbm", "catboost"]


def predicted(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightgbm: features without names
        return model.predict_proba(x)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("classes", [2, 3])
def test_boosted_trees_predict_as_they_do_themselves_and_come_back_as_they_were(tmp_path, library, classes):
    x, y = data(classes)
    model = boosted(library, classes).fit(x, y)
    member = BoostedMember(model)
    logits = member.predict_logits(x)
    assert (logits.dtype, logits.shape, member.classes) == (
        np.float32,
        (300, classes),
        tuple(map(str, range(classes))),
    )
    # float32 scores: 1e-7 times a few, through exp.
    np.testing.assert_allclose(softmax(logits, -1), predicted(model, x), atol=2e-6)
    member.save(tmp_path)
    loaded = load_member(tmp_path)
    np.testing.assert_array_equal(loaded.predict_logits(x), logits)
    assert (loaded.fingerprint(), loaded.bytes, loaded.classes) == (
        member.fingerprint(),
        member.bytes,
        member.classes,
    )
    assert not [f for f in tmp_path.iterdir() if f.suffix in (".pkl", ".joblib", ".bin")]


@pytest.mark.parametrize("library", LIBRARIES)
def test_boosted_trees_that_are_trained_on_are_other_ones(tmp_path, library):
    x, y = data(3)
    member = BoostedMember(boosted(library, 3).fit(x, y))
    member.save(tmp_path / "a")
    for trees in (
        (member,) if library == "catboost" else (member, load_member(tmp_path / "a"))
    ):  # a loaded CatBoost isn't fitted on
        before, answer = trees.fingerprint(), trees.predict_logits(x)
        model = trees._model.booster
        if library == "xgboost":
            model.update(pytest.importorskip("xgboost").DMatrix(x, y), 99)
        elif library == "catboost":
            model.fit(x, (y + 1) % 3, verbose=False)
        else:
            model.set_leaf_output(0, 0, 1.0)
        assert not np.array_equal(trees.predict_logits(x), answer)
        assert trees.fingerprint() != before
        trees.save(tmp_path / "b")
        np.testing.assert_array_equal(load_member(tmp_path / "b").predict_logits(x), trees.predict_logits(x))


@pytest.mark.parametrize("library", ["lightgbm", "catboost"])  # XGBoost's own estimator takes integers only
def test_boosted_trees_are_aligned_by_class_name(tmp_path, library):
    x, y = data(3)
    model = boosted(library, 3).fit(x, NAMES[y])  # classes_ are sorted: ant, mouse, zebra
    member = BoostedMember(model, classes=list(NAMES))
    assert (member.predict_logits(x).argmax(1) == y).mean() > 0.7  # the wrong order: a third
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(x), member.predict_logits(x))
    with pytest.raises(
        ValueError,
        match=r"classes: .*classifier has \['ant', 'mouse', 'zebra'\]; expected \['ant', 'cow', 'zebra'\]",
    ):
        BoostedMember(model, classes=["ant", "cow", "zebra"])


@pytest.mark.parametrize("library", LIBRARIES)
def test_boosted_trees_that_are_not_fitted_or_no_classifiers(library):
    with pytest.raises(ValueError, match="classifier is not fitted; call its fit first"):
        BoostedMember(boosted(library, 3))
    x, y = data(3)
    regressor = {"xgboost": "XGBRegressor", "lightgbm": "LGBMRegressor", "catboost": "CatBoostRegressor"}[
        library
    ]
    quiet = {
        "xgboost": {},
        "lightgbm": {"verbose": -1},
        "catboost": {"verbose": False, "allow_writing_files": False},
    }[library]
    model = getattr(pytest.importorskip(library), regressor)(n_estimators=3, **quiet).fit(x, y.astype(float))
    with pytest.raises(ValueError, match=r"estimator: expected an? .* classifier.*; got the"):
        BoostedMember(model)


@pytest.mark.parametrize(
    ("library", "options"),
    [("lightgbm", {"objective": "multiclassova"}), ("catboost", {"loss_function": "MultiClassOneVsAll"})],
)
def test_one_against_the_rest_is_no_softmax_of_its_scores(library, options):
    x, y = data(3)
    model = boosted(library, 3, **options).fit(x, y)
    p = predicted(model, x)
    expected = p / p.sum(1, keepdims=True)
    np.testing.assert_allclose(softmax(BoostedMember(model).predict_logits(x), -1), expected, atol=1e-5)


def test_early_stopping_is_kept(tmp_path):
    x, y = data(3)
    xgboost = pytest.importorskip("xgboost")
    model = xgboost.XGBClassifier(n_estimators=60, learning_rate=1.0, early_stopping_rounds=2, n_jobs=1)
    model.fit(x[:100], y[:100], eval_set=[(x[100:], y[100:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    member = BoostedMember(model)
    np.testing.assert_allclose(softmax(member.predict_logits(x), -1), model.predict_proba(x), atol=2e-6)
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(x), member.predict_logits(x))


@pytest.mark.parametrize("library", LIBRARIES)
def test_damaged_boosted_trees_are_noticed(tmp_path, library):
    x, y = data(3)
    member = BoostedMember(boosted(library, 3).fit(x, y))
    member.save(tmp_path)
    file = next(f for f in tmp_path.iterdir() if f.name != "member.json")
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 0x04
    file.write_bytes(blob)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_member(tmp_path)


def write_onnx(path, weight, outputs=("logits",), softmax_too=False):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "w"], [outputs[0] if not softmax_too else "z"])]
    if softmax_too:
        nodes.append(helper.make_node("Softmax", ["z"], [outputs[0]], axis=-1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weight)])],
        [helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_onnx_files_of_logits_and_of_probabilities(tmp_path):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(50, 8)).astype(np.float32)
    write_onnx(tmp_path / "raw.onnx", weight)
    write_onnx(tmp_path / "soft.onnx", weight, ("probabilities",), softmax_too=True)
    raw, soft = OnnxMember(tmp_path / "raw.onnx", batch_size=7), OnnxMember(tmp_path / "soft.onnx")
    assert (raw.output, soft.output, raw.name) == ("logits", "probabilities", "raw")
    np.testing.assert_allclose(raw.predict_logits(x), x @ weight, atol=1e-5)
    np.testing.assert_allclose(softmax(soft.predict_logits(x), -1), softmax(x @ weight, -1), atol=1e-5)
    soft.save(tmp_path / "saved")
    (tmp_path / "soft.onnx").unlink()
    loaded = load_member(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict_logits(x), soft.predict_logits(x))
    assert loaded.fingerprint() == soft.fingerprint()


def test_onnx_files_whose_outputs_are_not_stated(tmp_path):
    write_onnx(tmp_path / "m.onnx", np.ones((8, 3), np.float32), ("scores",))
    with pytest.raises(
        ValueError, match=r"output: m: expected output='logits' or .*; got 'auto' and the name 'scores'"
    ):
        OnnxMember(tmp_path / "m.onnx")
    assert OnnxMember(tmp_path / "m.onnx", output="logits").predict_logits(
        np.ones((2, 8), np.float32)
    ).shape == (2, 3)
    with pytest.raises(ValueError, match=r"output_name: m: expected one of \['scores'\]; got 'nope'"):
        OnnxMember(tmp_path / "m.onnx", output_name="nope")
    with pytest.raises(ValueError, match="m expects float32; got int64"):
        OnnxMember(tmp_path / "m.onnx", output="logits").predict_logits(np.ones((2, 8), np.int64))
    with pytest.raises(ValueError, match="there is no file"):
        OnnxMember(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"bad\.onnx: onnxruntime can't run it"):
        OnnxMember(tmp_path / "bad.onnx")


def write_external(folder, weight, location="m.onnx.data"):
    """m.onnx, with its weights in a file beside it, as torch.onnx.export writes them."""
    onnx = pytest.importorskip("onnx")
    for file in folder.glob("m.onnx*"):
        file.unlink()
    write_onnx(folder / "plain.onnx", weight)
    model = onnx.load(folder / "plain.onnx")
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location=location, size_threshold=0)
    return folder / "m.onnx"


def test_onnx_weights_in_another_file_are_part_of_the_member(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(8, 3)).astype(np.float32) for _ in range(2))
    x = rng.normal(size=(20, 8)).astype(np.float32)
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.chdir(home)
    one = OnnxMember(write_external(home, first).name)
    two = OnnxMember(write_external(home, second).name)
    assert one.blob == two.blob
    assert one.fingerprint() != two.fingerprint()
    assert one.bytes >= first.nbytes + len(one.blob)
    assert [
        name for name, part in one.fingerprint_parts().items() if two.fingerprint_parts()[name] != part
    ] == ["weights in m.onnx.data"]
    Ensemble.from_members([one]).save(tmp_path / "saved")
    monkeypatch.chdir(away)
    write_external(away, np.zeros_like(first))  # of the same name, where the process is
    np.testing.assert_allclose(OnnxMember(home / "m.onnx").predict_logits(x), x @ second, atol=1e-5)
    for file in home.glob("*"):
        file.unlink()
    loaded = Ensemble.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.raw_logits(x)[0], one.predict_logits(x))
    weights = tmp_path / "saved" / "members" / "m" / "m.onnx.data"
    weights.write_bytes(np.zeros_like(first).tobytes())
    with pytest.raises(ValueError, match="the files are not those that were saved"):
        Ensemble.load(tmp_path / "saved")
    weights.unlink()
    with pytest.raises(
        ValueError, match=r"external data 'm\.onnx\.data', a file of weights, is not beside it; copy it"
    ):
        Ensemble.load(tmp_path / "saved")


def test_onnx_weights_elsewhere_are_not_followed(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    path = write_external(tmp_path, np.ones((8, 3), np.float32))
    model = onnx.load(path, load_external_data=False)
    for location in ("../m.onnx.data", str(tmp_path / "m.onnx.data"), "member.json"):
        model.graph.initializer[0].external_data[0].value = location
        (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ValueError, match=r"external data in '.*'; expected a file in the same folder"):
            OnnxMember(tmp_path / "other.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match="its weights in other files; to find them, pip install onnx"):
        OnnxMember(path)
    OnnxMember(tmp_path / "plain.onnx")


def test_onnx_inputs_that_the_file_can_not_hold(tmp_path):
    onnx = pytest.importorskip("onnx")
    write_onnx(tmp_path / "m.onnx", np.ones((2, 3), np.float16))
    model = onnx.load(tmp_path / "m.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "half.onnx")
    half = OnnxMember(tmp_path / "half.onnx")
    assert half.predict_logits(np.ones((1, 2), np.float32)).tolist() == [[2.0, 2.0, 2.0]]
    with pytest.raises(ValueError, match=r"inputs: half expects float16, which can't hold 70000.0"):
        half.predict_logits(np.full((1, 2), 70_000, np.float32))
    with pytest.raises(ValueError, match=r"inputs: half: onnxruntime can't run it on float16 \[1, 3\]"):
        half.predict_logits(np.ones((1, 3), np.float32))


@pytest.mark.parametrize("fixed", [1, 4])
def test_onnx_files_for_a_fixed_number_of_rows(tmp_path, fixed):
    onnx = pytest.importorskip("onnx")
    weight = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    write_onnx(tmp_path / "m.onnx", weight)
    model = onnx.load(tmp_path / "m.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = fixed
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(10, 8)).astype(np.float32)
    for batch_size in (1, 3, 1024):
        member = OnnxMember(tmp_path / "m.onnx", batch_size=batch_size)
        for rows in (0, 1, 4, 10):
            np.testing.assert_allclose(member.predict_logits(x[:rows]), x[:rows] @ weight, atol=1e-5)
    with pytest.raises(ValueError, match=rf"it was exported for a fixed number of rows, {fixed}"):
        member.predict_logits(x[:, :3])


def test_hugging_face_models(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "bad", 1: "good"},
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).train()
    tokens = np.random.default_rng(0).integers(1, 30, (5, 6))
    tokens[2, 4:] = config.pad_token_id
    member = TorchMember(model, name="bert")
    assert member.classes == ("bad", "good")
    with torch.no_grad():
        one = model.eval()(torch.from_numpy(tokens[2:3, :4])).logits.numpy()
    np.testing.assert_allclose(member.predict_logits(tokens)[2:3], one, atol=1e-5)  # padding is not looked at
    member.save(tmp_path)
    loaded = load_member(tmp_path)
    np.testing.assert_array_equal(loaded.predict_logits(tokens), member.predict_logits(tokens))
    about = json.loads((tmp_path / "member.json").read_text())
    # Settings that name code, which would be fetched from the hub.
    evil = {"attn_implementation": "evil-org/evil-kernel", "_attn_implementation": "evil-org/evil-kernel"}
    evil |= {"experts_implementation": "evil-org/evil", "quantization_config": {"quant_method": "gptq"}}
    about["recipe"]["config"] |= evil | {"sub_config": dict(evil)}
    (tmp_path / "member.json").write_text(json.dumps(about))
    reached = []
    attention = transformers.integrations.hub_kernels
    monkeypatch.setattr(attention, "load_and_register_attn_kernel", lambda *a, **k: reached.append(a))
    monkeypatch.setattr(
        transformers.modeling_utils,
        "load_and_register_attn_kernel",
        lambda *a, **k: reached.append(a),
        raising=False,
    )
    built = pretrained.build(about["recipe"])
    assert reached == []
    assert built.config._attn_implementation in ("sdpa", "eager")
    assert built.config.sub_config == {}
    assert getattr(built.config, "quantization_config", None) is None
    about["recipe"]["class_path"] = "subprocess.Popen"
    (tmp_path / "member.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"subprocess\.Popen is not trusted"):
        load_member(tmp_path)


def test_an_ensemble_of_everything(tmp_path):
    x, y = data(3)
    members = [boosted(library, 3).fit(x, y) for library in LIBRARIES]
    write_onnx(tmp_path / "linear.onnx", np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    linear = LogisticRegression().fit(x, y)
    net = torch.nn.Linear(8, 3)
    everything = [
        *members,
        linear,
        net,
        tmp_path / "linear.onnx",
        linear.predict_log_proba,
        linear.predict_proba(x),
    ]
    ensemble = Ensemble.from_members(everything)
    assert len(set(ensemble.names)) == 8
    logits = ensemble.predict_logits(x)
    assert logits.shape == (8, 300, 3)
    for other in (
        6,
        7,
    ):  # logits, log-probabilities (a function's) and probabilities (an array); the smoothing moves by 3e-6
        np.testing.assert_allclose(softmax(logits[other], -1), softmax(logits[3], -1), atol=5e-6)
    kept = Ensemble.from_members([*members, linear, tmp_path / "linear.onnx"], weights=[1, 2, 3, 4, 5])
    kept.save(tmp_path / "ensemble")
    loaded = Ensemble.load(tmp_path / "ensemble")
    np.testing.assert_array_equal(loaded.predict_proba(x), kept.predict_proba(x))


class Harm:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["torch", "sklearn", "array", "onnx", *LIBRARIES])
def test_a_pickle_in_any_member_s_place_does_nothing(tmp_path, kind):
    import functools
    import pickle

    from sklearn.naive_bayes import GaussianNB

    from ensdistill.models import MLP
    from ensdistill.teachers.members import ArrayMember, SklearnMember

    x, y = data(3)
    if kind == "onnx":
        write_onnx(tmp_path / "m.onnx", np.ones((8, 3), np.float32))
    member = {
        "torch": lambda: TorchMember(
            MLP(8, [], 3), name="m", factory=functools.partial(MLP, inputs=8, hidden=[], outputs=3)
        ),
        "sklearn": lambda: SklearnMember(GaussianNB().fit(x, y), name="m"),
        "array": lambda: ArrayMember(x, logits=np.ones((300, 3)), name="m"),
        "onnx": lambda: OnnxMember(tmp_path / "m.onnx"),
    }.get(kind, lambda: BoostedMember(boosted(kind, 3).fit(x, y), name="m"))()
    folder = tmp_path / "ensemble"
    Ensemble.from_members([member]).save(folder)
    (file,) = [f for f in (folder / "members" / "m").iterdir() if f.name != "member.json"]
    file.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(ValueError, match=str(folder)):
        Ensemble.load(folder)
    about = json.loads((folder / "members" / "m" / "member.json").read_text())
    (folder / "members" / "m" / "member.json").write_text(json.dumps(about | {"kind": "pickle"}))
    with pytest.raises(ValueError, match="unknown kind 'pickle'; expected one of torch, sklearn"):
        Ensemble.load(folder)
    assert not (tmp_path / "harm").exists()
    pickle.loads(file.read_bytes())  # it would have
    assert (tmp_path / "harm").exists()
