"""Networks of every kind of samples in ONNX: the student's own probabilities, for any number of rows."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from export_helpers import student_of, torch_member
from sklearn.linear_model import LogisticRegression
from torch import nn

from ensdistill.data.preprocess import (
    Categories,
    HashedNgrams,
    ImageTransform,
    ModuleTransform,
    Named,
    Tokens,
)
from ensdistill.models import CNN, MLP, BagOfNgrams, TabM, TabularMLP, TextTransformer
from ensdistill.student.export import run_onnx, to_onnx
from ensdistill.teachers.members import SklearnMember

RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(30, 6)).astype(np.float32)
IMAGES = [RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8) for _ in range(12)]
GRAY = [RNG.integers(0, 256, (8, 8)).astype(np.uint8) for _ in range(12)]
TEXTS = ["a red fox", "blue", "the quick brown fox jumps over", "", "Ärger über Öl"] * 3
FIELDS = {"ids": RNG.integers(0, 50, (20, 4)), "number": RNG.normal(size=(20, 1)).astype(np.float32)}


class OfFields(nn.Module):
    def __init__(self, kind="tensor"):
        super().__init__()
        self.embedding, self.layer, self.kind = nn.Embedding(50, 8), nn.Linear(9, 3), kind

    def forward(self, ids, number):
        logits = self.layer(torch.cat([self.embedding(ids).mean(1), number], 1))
        if self.kind == "object":

            class Output:
                pass

            output = Output()
            output.logits = logits
            return output
        return {"dict": {"logits": logits}, "tuple": (logits,), "tensor": logits}[self.kind]


class Scaled(nn.Module):
    def forward(self, x):
        return x.float() / 255 - 0.5


def tokens():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    return Tokens(tokenizer, 12)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(2).float()
        return self.layer((self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1))


TABULAR = partial(TabularMLP, 6, 2, [4], hidden=[8], outputs=3)
CODES = np.concatenate([RNG.random((20, 2)), RNG.integers(0, 2, (20, 3)), RNG.integers(-1, 3, (20, 1))], 1)
KINDS = {
    "numbers": (partial(MLP, 6, [8], 3), None, NUMBERS),
    "float64": (partial(MLP, 6, [8], 3), None, NUMBERS.astype(np.float64)),
    "several in one": (partial(TabM, 6, hidden=[8], outputs=3), None, NUMBERS),
    "integers": (partial(MLP, 6, [8], 3), None, (10 * NUMBERS).astype(np.int64)),
    "bytes": (
        partial(MLP, 6, [8], 3, activation="silu"),
        None,
        RNG.integers(0, 255, (9, 6)).astype(np.uint8),
    ),
    "arrays of images": (
        partial(CNN, [4], [1, 8, 8], outputs=3),
        None,
        np.stack(GRAY)[:, None].astype(np.float32),
    ),
    "images": (
        partial(CNN, [4, [6, 6]], [3, 8, 8], outputs=3, hidden=[5], activation="gelu"),
        ImageTransform(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5)),
        IMAGES,
    ),
    "gray images": (partial(CNN, [4], [1, 8, 8], outputs=3, pooling="average"), ImageTransform(), GRAY),
    "an array of pixels": (partial(CNN, [4], [1, 8, 8], outputs=3), ImageTransform(), np.stack(GRAY)),
    "channels first": (
        partial(CNN, [4], [3, 8, 8], outputs=3),
        ImageTransform(layout="channels_first"),
        np.stack(IMAGES).transpose(0, 3, 1, 2).copy(),
    ),
    "n-grams": (
        partial(BagOfNgrams, 1000, 16, [8], outputs=3),
        HashedNgrams(buckets=1000, length=16, characters=(2, 3)),
        TEXTS,
    ),
    "words": (
        partial(TextTransformer, 1000, 16, 16, 2, 1, outputs=3),
        HashedNgrams(buckets=1000, length=16, words=1),
        TEXTS,
    ),
    "tokens": (Masked, tokens(), TEXTS),
    "ids": (lambda: nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(16, 3)), None, FIELDS["ids"]),
    "fields": (OfFields, None, FIELDS),
    "fields, a dict": (partial(OfFields, "dict"), None, FIELDS),
    "fields, a tuple": (partial(OfFields, "tuple"), None, FIELDS),
    "fields, an object": (partial(OfFields, "object"), None, FIELDS),
    "a module before": (
        partial(MLP, 6, [8], 3),
        ModuleTransform(Scaled()),
        RNG.integers(0, 255, (9, 6)).astype(np.uint8),
    ),
    "a module before images": (partial(CNN, [4], [3, 8, 8], outputs=3), ModuleTransform(Scaled()), IMAGES),
    "embeddings": (TABULAR, None, CODES.astype(np.float32)),
    "piecewise embeddings": (partial(TABULAR, numbers="piecewise"), None, CODES.astype(np.float32)),
    "periodic embeddings": (partial(TABULAR, numbers="periodic"), None, CODES.astype(np.float32)),
    "float64 parameters": (lambda: MLP(6, [8], 3).double(), None, NUMBERS.astype(np.float64)),
    "recurrent": (lambda: Recurrent(), None, NUMBERS),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)),
        None,
        NUMBERS,
    ),
}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.layer = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(self.rnn(x.unsqueeze(2))[0][:, -1])


LONG = {
    "float64", "several in one", "integers", "bytes", "arrays of images", "gray images", "channels first",
    "words", "fields, a dict", "fields, a tuple", "a module before", "piecewise embeddings", "periodic embeddings", "float64 parameters", "recurrent",
    "batch norm",
}  # fmt: skip


@cache
def exported_of(name):
    """A student of a kind of samples, and its graph; to be read only."""
    factory, preprocess, samples = KINDS[name]
    student = student_of(torch_member(factory, preprocess), samples, temperature=0.6)
    return student, to_onnx(student, samples)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in KINDS]
)
def test_the_graph_has_the_students_probabilities(name, tmp_path):
    samples = KINDS[name][2]
    student, exported = exported_of(name)
    assert exported.largest_difference < 2e-6
    exported.save(tmp_path / "student.onnx")
    labels, probabilities = run_onnx(tmp_path / "student.onnx", samples)
    np.testing.assert_allclose(probabilities, student.predict_proba(samples), atol=2e-6)
    assert labels.tolist() == student.predict(samples).tolist()
    assert exported.model.graph.output[1].type.tensor_type.shape.dim[0].dim_param  # any number of rows
    assert not any(node.metadata_props or node.doc_string for node in exported.model.graph.node)


@pytest.mark.parametrize(
    ("labels", "stored"),
    [
        (("no", "yes"), ["no", "yes"]),
        ((3, -7), [3, -7]),
        ((False, True), [0, 1]),
        ((1.0, 2.0), [1, 2]),
        ((0.5, 2.0), ["0.5", "2.0"]),
        ((2**63, 1), [str(2**63), "1"]),
    ],
)
def test_labels_are_those_of_the_data(labels, stored):
    import onnxruntime

    names = [str(label) for label in labels]
    linear = LogisticRegression().fit(NUMBERS, np.array(names)[(NUMBERS[:, 0] > 0).astype(int)])
    student = student_of(SklearnMember(linear, classes=names), NUMBERS, labels)
    blob = to_onnx(student, NUMBERS).model.SerializeToString()
    found, _ = run_onnx(blob, NUMBERS)
    expected = student.predict(NUMBERS)
    assert len(set(expected.tolist())) == 2
    assert found.tolist() == expected.tolist()
    assert [type(one) for one in found.tolist()] == [type(one) for one in expected.tolist()]
    raw = onnxruntime.InferenceSession(blob).run(["label"], {"inputs": NUMBERS})[0]
    own = [stored[list(labels).index(one)] for one in expected.tolist()]
    assert raw.tolist() == own


@pytest.mark.parametrize(
    ("output", "outputs", "layers"),
    [("auto", 3, [nn.Softmax(1)]), ("margin", 1, []), ("probabilities", 1, [nn.Sigmoid()])],
)
def test_outputs_of_other_kinds_are_read_as_the_member_reads_them(output, outputs, layers):
    def factory():
        return nn.Sequential(MLP(6, [8], outputs), *layers)

    labels = ("a", "b", "c") if outputs == 3 else ("no", "yes")
    student = student_of(torch_member(factory, output=output), NUMBERS, labels)
    assert to_onnx(student, NUMBERS).largest_difference < 1e-6


def test_classes_in_another_order_are_put_in_order():
    from ensdistill.student.serving import Student

    member = torch_member(partial(MLP, 6, [8], 3), classes=("c", "a", "b"))
    student = Student(
        member, ("a", "b", "c"), ("a", "b", "c"), {"kind": "array", "dtype": "float32", "shape": [6]}
    )
    exported = to_onnx(student, NUMBERS)
    labels, _ = run_onnx(exported.model.SerializeToString(), NUMBERS)
    assert labels.tolist() == student.predict(NUMBERS).tolist()


class Exponential(nn.Module):
    def forward(self, x):
        return torch.linalg.matrix_exp(x.reshape(-1, 1, 1)).reshape(x.shape)


class Branch(nn.Module):
    def forward(self, x):
        return 2 * x if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        pytest.param(
            Exponential,
            r"the layer '1\.1' \(.*Exponential\) \(No ONNX function found for .*linalg_matrix_exp",
            marks=pytest.mark.slow,
        ),
        (Branch, r"the layer '1\.1' \(.*Branch\) \(Could not guard on data-dependent expression"),
    ],
)
def test_a_layer_that_onnx_cannot_express_is_named(layer, words):
    def factory():
        return nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.ReLU(), layer()), nn.Linear(8, 3))

    student = student_of(torch_member(factory), NUMBERS)
    with pytest.raises(ValueError, match=rf"ONNX can't express {words}.*--to torch"):
        to_onnx(student, NUMBERS)


class ByKeyword(nn.Module):
    """Calls its layer by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(6, 8), Exponential(), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(input=self.odd(x=self.first(input=x)))


@pytest.mark.slow
def test_a_layer_that_is_called_by_keyword_is_named():
    with pytest.raises(ValueError, match=r"the layer 'odd' \(.*Exponential\)"):
        to_onnx(student_of(torch_member(ByKeyword), NUMBERS), NUMBERS)


@pytest.mark.slow
def test_a_module_before_that_onnx_cannot_express_is_named():
    student = student_of(torch_member(partial(MLP, 6, [8], 3), ModuleTransform(Exponential())), NUMBERS)
    with pytest.raises(ValueError, match=r"the preprocess's module .*Exponential"):
        to_onnx(student, NUMBERS)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def test_a_student_that_looks_at_other_rows_is_refused():
    student = student_of(torch_member(lambda: nn.Sequential(Centred(), nn.Linear(6, 3))), NUMBERS)
    with pytest.raises(ValueError, match=r"row \d+ has other probabilities by itself than among 30 rows"):
        to_onnx(student, NUMBERS)


def test_a_graph_that_onnxruntime_cannot_run_is_refused(monkeypatch):
    from ensdistill.student.export import graph

    monkeypatch.setattr(graph.helper, "make_opsetid", lambda domain, version: _opset(domain, version))
    estimator = LogisticRegression().fit(NUMBERS, np.arange(30) % 3)
    student = student_of(SklearnMember(estimator, classes=("a", "b", "c")), NUMBERS)
    with pytest.raises(ValueError, match=r"onnxruntime can't run the graph \(.*--to torch"):
        to_onnx(student, NUMBERS)


def _opset(domain, version):
    """An opset of operators that no runtime has."""
    from onnx import OperatorSetIdProto

    return OperatorSetIdProto(domain=domain, version=version if domain == "" else 99)


def test_preprocessing_in_python_is_refused_by_name():
    student = student_of(torch_member(partial(MLP, 6, [8], 3), Named("numpy.square")), NUMBERS)
    with pytest.raises(ValueError, match=r"ONNX can't express numpy\.square, which is Python code: apply it"):
        to_onnx(student, NUMBERS)
    import pandas as pd

    frame = pd.DataFrame(NUMBERS, columns=list("abcdef"))

    class Own:
        def __init__(self):
            self.first = Categories().fit(frame)

        def __call__(self, batch):
            return self.first(batch).to_numpy()

        def fingerprint(self):
            return ""

        def save(self, folder):
            pass

    student = student_of(torch_member(partial(MLP, 6, [8], 3), Own()), frame)
    with pytest.raises(ValueError, match=r"ONNX can't express .*Own, which is Python code"):
        to_onnx(student, frame)


def test_half_precision_is_refused_with_the_remedy():
    student = student_of(torch_member(lambda: MLP(6, [8], 3).bfloat16()), NUMBERS)
    with pytest.raises(ValueError, match=r"expected float32 parameters; got bfloat16.*module\.float\(\)"):
        to_onnx(student, NUMBERS)


def test_a_graph_that_differs_is_refused(monkeypatch):
    from ensdistill.student.export import networks

    student = student_of(torch_member(partial(MLP, 6, [8], 3)), NUMBERS)
    whole = networks.without_bags

    def changed(module):
        copied = whole(module)
        with torch.no_grad():
            next(copied.parameters()).add_(0.01)
        return copied

    monkeypatch.setattr(networks, "without_bags", changed)
    with pytest.raises(
        ValueError, match=r"differ from the student's by .*, beyond 0\.0001, in row \d+ \(\d+ of 30"
    ):
        to_onnx(student, NUMBERS)


@pytest.mark.parametrize(("size", "resize"), [(8, None), (12, 16)])
def test_images_of_any_size_are_resized_in_the_graph(size, resize):
    transform = ImageTransform(size=size, resize=resize, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
    sizes = [(8, 8), (9, 7), (64, 100), (33, 47), (1, 5), (12, 12), (16, 16), (9, 7), (100, 64), (17, 400)]
    images = [RNG.integers(0, 256, (*one, 3)).astype(np.uint8) for one in sizes]
    student = student_of(torch_member(partial(CNN, [4], [3, size, size], outputs=3), transform), images)
    exported = to_onnx(student, images)
    assert exported.largest_difference < 1e-5
    _, probabilities = run_onnx(exported.model.SerializeToString(), images[::-1])
    np.testing.assert_allclose(probabilities, student.predict_proba(images[::-1]), atol=1e-5)


def test_images_of_other_channels_or_of_another_size_are_refused():
    samples, blob = KINDS["images"][2], exported_of("images")[1].model.SerializeToString()
    with pytest.raises(ValueError, match=r"expected uint8 images \[any, any, 3\]; got uint8 \[9, 8\]"):
        run_onnx(blob, [samples[0], np.zeros((9, 8), np.uint8)])
    samples, blob = KINDS["gray images"][2], exported_of("gray images")[1].model.SerializeToString()
    with pytest.raises(ValueError, match=r"expected uint8 images \[8, 8, 1\]; got uint8 \[9, 8, 1\]"):
        run_onnx(blob, [samples[0], np.zeros((9, 8), np.uint8)])


@pytest.mark.parametrize("name", ["numbers", "images", "n-grams", "fields"])
def test_no_rows_have_no_labels(name):
    samples, blob = KINDS[name][2], exported_of(name)[1].model.SerializeToString()
    none = {k: v[:0] for k, v in samples.items()} if name == "fields" else samples[:0]
    labels, probabilities = run_onnx(blob, none)
    assert labels.shape == (0,)
    assert probabilities.shape == (0, 3)
