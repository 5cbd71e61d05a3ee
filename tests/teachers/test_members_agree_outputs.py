"""ONNX files, functions and arrays, drawn at random: the member predicts as the session, the function or the
array does."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from ensdistill.teachers.members import ArrayMember, CallableMember, OnnxMember, as_member, load_member

PROPERTY = {"deadline": None, "derandomize": True, "database": None}
KINDS = {
    "float32": ("FLOAT", 1e-5),
    "float64": ("DOUBLE", 1e-5),
    "float16": ("FLOAT16", 5e-3),
    "int64": ("INT64", 1e-5),
    "int32": ("INT32", 1e-5),
}
ENDS = {"logits": None, "probabilities": "Softmax", "log": "LogSoftmax", "margin": None, "sigmoid": "Sigmoid"}


def write(path, weight, kind, end, fixed, external, names, others):
    """x @ weight, then ``end``; floats are taken and returned in ``kind``, integers are cast."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    element = getattr(TensorProto, KINDS[kind][0])
    inner = np.dtype(kind) if kind.startswith("float") else np.dtype(np.float32)
    real = helper.np_dtype_to_tensor_dtype(inner)
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=real),
        helper.make_node("MatMul", ["c", "w"], ["z" if ENDS[end] else names[0]]),
    ]
    if ENDS[end]:
        nodes.append(
            helper.make_node(ENDS[end], ["z"], [names[0]], **({} if end == "sigmoid" else {"axis": -1}))
        )
    outputs = [helper.make_tensor_value_info(names[0], real, [fixed or "n", weight.shape[1]])]
    if others:
        nodes.append(helper.make_node("Identity", ["c"], ["hidden"]))
        outputs.insert(0, helper.make_tensor_value_info("hidden", real, [fixed or "n", len(weight)]))
    inputs = [helper.make_tensor_value_info("x", element, [fixed or "n", len(weight)])]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(weight.astype(inner), "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = {"save_as_external_data": True, "location": external, "size_threshold": 0} if external else {}
    onnx.save(model, path, **options)


files = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(KINDS)),
        "end": st.sampled_from(list(ENDS)),
        "fixed": st.sampled_from([None, 1, 4]),
        "external": st.sampled_from([None, "m.onnx.data", "weights.bin"]),
        "named": st.booleans(),
        "others": st.booleans(),
        "rows": st.integers(0, 11),
        "batch_size": st.sampled_from([1, 3, 1024]),
        "classes": st.sampled_from([2, 5]),
        "seed": st.integers(0, 99),
    }
)


def check_file(kind, end, fixed, external, named, others, rows, batch_size, classes, seed):
    runtime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(seed)
    single = end in ("margin", "sigmoid")
    weight = rng.normal(size=(6, 1 if single else classes))
    x = (
        rng.integers(-3, 4, (rows, 6)).astype(kind)
        if kind.startswith("int")
        else rng.normal(size=(rows, 6)).astype(np.float32)
    )
    name = {"logits": "logits", "probabilities": "probabilities"}.get(end) if named else "scores"
    stated = {"margin": "margin", "log": "log_probabilities", "logits": "logits"}.get(end, "probabilities")
    more = {} if name in ("logits", "probabilities") else {"output": stated, "output_name": name or "y"}
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "m.onnx"
        write(path, weight, kind, end, fixed, external, [name or "y"], others)
        member = OnnxMember(path, batch_size=batch_size, **more)
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        own = [np.zeros((0, weight.shape[1]))]
        for start in range(0, rows, fixed or 1):
            part = x[start : start + (fixed or 1)]
            filled = np.concatenate(
                [part, np.zeros((max(0, (fixed or 1) - len(part)), 6), part.dtype)]
            ).astype(kind)
            own.append(session.run([name or "y"], {"x": filled})[0][: len(part)].astype(np.float64))
        member.save(Path(home) / "saved")
        for file in Path(home).glob("*.*"):
            file.unlink(missing_ok=True) if file.is_file() else None
        loaded = load_member(Path(home) / "saved")
    own = np.concatenate(own)
    one = own if end == "sigmoid" else 1 / (1 + np.exp(-own))
    expected = np.hstack([1 - one, one]) if single else own if end == "probabilities" else softmax(own, -1)
    logits = member.predict_logits(x)
    np.testing.assert_allclose(softmax(logits.astype(np.float64), -1), expected, atol=KINDS[kind][1])
    np.testing.assert_array_equal(loaded.predict_logits(x), logits)
    assert (loaded.fingerprint(), loaded.bytes) == (member.fingerprint(), member.bytes)
    assert member.bytes >= weight.size * np.dtype(kind if kind.startswith("float") else np.float32).itemsize


@settings(max_examples=40, **PROPERTY)
@given(files)
def test_odd_onnx_files_predict_as_their_session_does(case):
    check_file(**case)


@pytest.mark.slow
@settings(max_examples=1000, **PROPERTY)
@given(files)
def test_many_odd_onnx_files_predict_as_their_session_does(case):
    check_file(**case)


answers = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["logits", "probabilities", "log_probabilities", "margin", "second"]),
        "stated": st.booleans(),
        "rounded": st.sampled_from([None, "two decimals", "bfloat16", "float16"]),
        "container": st.sampled_from(
            ["array", "float32", "tensor", "function", "function of tensors", "list"]
        ),
        "rows": st.integers(1, 40),
        "classes": st.sampled_from([2, 3, 10]),
        "scale": st.sampled_from([3.0, 30.0]),
        "seed": st.integers(0, 999),
    }
)


def logits_or_error(make, arguments, x):
    try:
        return make(*arguments).predict_logits(x)
    except ValueError as error:
        return str(error)


def check_outputs(kind, stated, rounded, container, rows, classes, scale, seed):
    """The right probabilities come, or an error that names ``output``; the error comes only for outputs
    whose kind is not stated."""
    z = np.random.default_rng(seed).normal(size=(rows, classes)) * scale
    if kind in ("margin", "second"):
        z = np.stack([np.zeros(rows), z[:, 0]], 1)
    right = softmax(z, -1)
    values = {
        "logits": z,
        "probabilities": right,
        "log_probabilities": log_softmax(z, -1),
        "margin": z[:, 1:],
        "second": right[:, 1:],
    }[kind]
    if rounded == "two decimals":
        values = values.round(2)
    elif rounded is not None:
        values = torch.from_numpy(values).to(getattr(torch, rounded)).double().numpy()
    error = 0.06 if rounded == "two decimals" else 1e-5
    if rounded in ("bfloat16", "float16"):
        error = max(0.01, np.abs(z).max() * (2**-8 if rounded == "bfloat16" else 2**-11))
    output = {"second": "probabilities"}.get(kind, kind) if stated else "auto"
    x = np.arange(rows, dtype=np.float32)[:, None]
    given = {"float32": lambda: values.astype(np.float32), "tensor": lambda: torch.from_numpy(values)}.get(
        container, lambda: values
    )()
    if container.startswith("function") or container == "list":
        told = {
            "function of tensors": torch.from_numpy(values).bfloat16()
            if rounded == "bfloat16"
            else torch.from_numpy(values)
        }
        told = told.get(container, values.tolist() if container == "list" else values)
        given = CallableMember(lambda x: told, name="f", version="1", output=output)
    logits = logits_or_error(as_member, (given, "m", output), x)
    if isinstance(logits, str):
        assert not stated, logits
        assert "output" in logits
        assert rounded is not None or kind in ("margin", "second") or (kind == "logits" and rows < 4)
        return
    assert kind not in ("margin", "second") or stated
    np.testing.assert_allclose(softmax(logits.astype(np.float64), -1), right, atol=error)


@settings(max_examples=300, **PROPERTY)
@given(answers)
def test_outputs_are_read_rightly_or_refused(case):
    check_outputs(**case)


@pytest.mark.slow
@settings(max_examples=10_000, **PROPERTY)
@given(answers)
def test_many_outputs_are_read_rightly_or_refused(case):
    check_outputs(**case)


@settings(max_examples=40, **PROPERTY)
@given(answers.filter(lambda a: a["kind"] in ("logits", "probabilities") and a["rounded"] is None))
def test_arrays_come_back_as_they_were(case):
    z = np.random.default_rng(case["seed"]).normal(size=(case["rows"], case["classes"])) * case["scale"]
    x = np.random.default_rng(case["seed"] + 1).normal(size=(case["rows"], 2)).astype(np.float32)
    values = softmax(z, -1) if case["kind"] == "probabilities" else z
    member = ArrayMember(x, name="m", **{case["kind"]: values})
    order = np.random.default_rng(case["seed"]).permutation(case["rows"])
    with tempfile.TemporaryDirectory() as folder:
        member.save(folder)
        loaded = load_member(folder)
    np.testing.assert_allclose(softmax(loaded.predict_logits(x[order]), -1), softmax(z[order], -1), atol=2e-5)
    assert loaded.fingerprint() == member.fingerprint()
