"""Exported files: figures, eight bits, and programs that have neither torch nor this package."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import frame, student_of, torch_member
from sklearn.linear_model import LogisticRegression

from ensdistill.data.preprocess import HashedNgrams, ImageTransform, Tokens, default_transformer
from ensdistill.models import CNN, MLP, BagOfNgrams
from ensdistill.student.export import OnnxStudent, figures, run_onnx, to_onnx
from ensdistill.teachers.members import SklearnMember

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(40, 6)).astype(np.float32)


def test_the_page_runs_and_a_plain_program_gives_the_same(tmp_path, monkeypatch, capsys):
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "penguins.csv").write_bytes((ROOT / "examples" / "penguins.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(first, "docs/export.md", "exec"), names)
    assert names["exported"].largest_difference < 1e-6
    assert (names["found"] == names["labels"]).mean() > 0.9
    assert len(second.strip().splitlines()) <= 16
    # Only onnxruntime and its own requirements can be imported there.
    packages = tmp_path / "packages"
    packages.mkdir()
    home = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "onnxruntime", "google", "flatbuffers", "packaging"):
        if (home / name).exists():
            os.symlink(home / name, packages / name)
    check = (
        f"import sys; sys.path.append({str(packages)!r})\n{second}\n"
        "import importlib.util as u, json\n"
        "assert not any(u.find_spec(n) for n in ('torch', 'ensdistill', 'pandas', 'sklearn', 'onnx'))\n"
        "print(json.dumps([labels.tolist(), probabilities.tolist()]))"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", check], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    labels, probabilities = json.loads(run.stdout)
    assert labels == names["found"].tolist()
    np.testing.assert_array_equal(np.array(probabilities, np.float32), names["probabilities"])


PROGRAM = """
import sys
sys.modules["torch"] = None  # an import of it fails
import json, pathlib
from ensdistill.student.export.measuring import figures
from ensdistill.student.export.running import run_onnx
found = []
for path in sys.argv[1:]:
    if pathlib.Path(path + ".csv").exists():
        import pandas as pd
        samples = pd.read_csv(path + ".csv")
    elif pathlib.Path(path + ".json").exists():
        samples = json.loads(pathlib.Path(path + ".json").read_text())
    else:
        import numpy as np
        samples = np.load(path + ".npy")
    labels, probabilities = run_onnx(path, samples)
    assert figures(path, samples, labels, calls=2)["accuracy"] == 1
    found.append([labels.tolist(), probabilities.tolist()])
assert not [name for name in sys.modules if name.startswith("torch.") or name in ("sklearn", "onnx")]
print(json.dumps(found))
"""
KINDS = ("table", "ngrams", "tokens", "images", "array")


def tokens():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "fox": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokens(tokenizer, 4)


class OfTokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(10, 3)

    def forward(self, input_ids, attention_mask):
        return self.bag(input_ids) + attention_mask[:, :3]


def written(kind, folder):
    """The student of a kind of samples, these, and the names of its files."""
    folder.mkdir()
    path = folder / "student.onnx"
    if kind == "table":
        samples = frame(30)
        samples.to_csv(f"{path}.csv", index=False)
        transform = default_transformer(samples)
        member = torch_member(partial(MLP, transform(samples).shape[1], [4], 3), transform)
    elif kind in ("ngrams", "tokens"):
        samples = ["a red fox", "blue", "", "the red fox"]
        Path(f"{path}.json").write_text(json.dumps(samples))
        ngrams = HashedNgrams(buckets=100, length=8)
        member = (
            torch_member(partial(BagOfNgrams, 100, 8, outputs=3), ngrams)
            if kind == "ngrams"
            else torch_member(OfTokens, tokens())
        )
    elif kind == "images":
        samples = RNG.integers(0, 256, (6, 9, 7, 3)).astype(np.uint8)
        np.save(f"{path}.npy", samples)
        member = torch_member(partial(CNN, [4], [3, 8, 8], outputs=3), ImageTransform(size=8))
    else:
        samples = NUMBERS
        np.save(f"{path}.npy", samples)
        member = torch_member(partial(MLP, 6, [4], 3))
    student = student_of(member, samples)
    return student, samples, [one.name for one in to_onnx(student, samples).save(path)]


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """By kind, its student, samples and files, and what a program without torch made of the file."""
    folder = tmp_path_factory.mktemp("files")
    made = {kind: written(kind, folder / kind) for kind in KINDS}
    command = [sys.executable, "-c", PROGRAM, *(str(folder / kind / "student.onnx") for kind in KINDS)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout)
    return {kind: (*made[kind], *answer) for kind, answer in zip(KINDS, answers, strict=True)} | {
        "at": folder
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_runs_without_torch(kind, without_torch):
    student, samples, names, labels, probabilities = without_torch[kind]
    assert names == ["student.onnx", *["tokenizer.json"] * (kind == "tokens")]
    assert labels == student.predict(samples).tolist()
    np.testing.assert_allclose(probabilities, student.predict_proba(samples), atol=1e-5)


def linear(classes=("10", "20", "30")):
    return SklearnMember(LogisticRegression().fit(NUMBERS, np.arange(40) % 3), classes=classes)


def test_figures_are_those_of_the_given_labels():
    student = student_of(linear(), NUMBERS, (10, 20, 30))
    blob = to_onnx(student, NUMBERS).model.SerializeToString()
    truth = np.array([10, 20, 30, 10] * 10)
    found = figures(blob, NUMBERS, truth, calls=3)
    p = student.predict_proba(NUMBERS)
    np.testing.assert_allclose(found["nll"], -np.log(p[np.arange(40), truth // 10 - 1]).mean(), rtol=1e-5)
    assert found["accuracy"] == (student.predict(NUMBERS) == truth).mean()
    assert found["bytes"] == len(blob)
    assert found["rows"] == 40
    assert set(found["latency"]) == {1, 256}
    assert all(0 < one["p50"] <= one["p95"] for one in found["latency"].values())
    with pytest.raises(ValueError, match=r"labels: expected \[10, 20, 30\]; got 40"):
        figures(blob, NUMBERS, truth + 10 * (truth == 30))
    with pytest.raises(ValueError, match="labels: expected one for each of the 40 rows; got 2"):
        figures(blob, NUMBERS, [10, 20])


@pytest.mark.parametrize("kind", ["table", "images", "texts"])
def test_eight_bits_are_smaller_and_nearly_the_same(kind, tmp_path):
    if kind == "table":
        samples = frame(100)
        transform = default_transformer(samples, numbers="standard")
        member = torch_member(partial(MLP, transform(samples).shape[1], [128, 128], 3), transform)
    elif kind == "images":
        samples = list(RNG.integers(0, 256, (20, 16, 16, 3)).astype(np.uint8))
        member = torch_member(partial(CNN, [16, 32], [3, 16, 16], outputs=3), ImageTransform(size=16))
    else:
        samples = [" ".join(RNG.choice(["red", "fox", "blue", "sky"], 6)) for _ in range(30)]
        member = torch_member(
            partial(BagOfNgrams, 5000, 16, outputs=3), HashedNgrams(buckets=5000, length=16)
        )
    student = student_of(member, samples)
    exported = to_onnx(student, samples, int8=True)
    assert exported.largest_difference < 1e-5
    assert 0 < exported.int8_difference < 0.05
    assert exported.int8.ByteSize() < 0.7 * exported.size
    written = exported.save(tmp_path / "student.onnx")
    assert [one.name for one in written] == ["student.onnx", "student.int8.onnx"]
    labels, probabilities = run_onnx(written[1], samples)
    assert abs(probabilities - student.predict_proba(samples)).max() == pytest.approx(
        exported.int8_difference, abs=1e-3
    )
    assert set(labels.tolist()) <= {"a", "b", "c"}


def test_a_graph_without_weights_has_no_eight_bits():
    from sklearn.tree import DecisionTreeClassifier

    tree = SklearnMember(DecisionTreeClassifier(max_depth=2).fit(NUMBERS, np.arange(40) % 3))
    with pytest.raises(ValueError, match="int8: expected a graph with a matrix product"):
        to_onnx(student_of(tree, NUMBERS, (0, 1, 2)), NUMBERS, int8=True)


def test_other_files_are_refused(tmp_path):
    import onnx

    exported = to_onnx(student_of(linear(("a", "b", "c")), NUMBERS), NUMBERS)
    with pytest.raises(ValueError, match="there is no file"):
        run_onnx(tmp_path / "none.onnx", NUMBERS)
    with pytest.raises(ValueError, match="onnxruntime can't run it"):
        run_onnx(b"no model", NUMBERS)
    foreign = onnx.ModelProto.FromString(exported.model.SerializeToString())
    (entry,) = foreign.metadata_props
    about = json.loads(entry.value)
    entry.value = json.dumps(about | {"format": 3, "version": "9.9"})
    with pytest.raises(ValueError, match=r"written by ensdistill 9\.9 \(format 3\).*pip install --upgrade"):
        OnnxStudent(foreign.SerializeToString())
    del foreign.metadata_props[:]
    with pytest.raises(ValueError, match="expected a student that ensdistill exported"):
        OnnxStudent(foreign.SerializeToString())
    with pytest.raises(ValueError, match=r"samples: expected float32 \[N, 6\]; got float32 \[40, 5\]"):
        run_onnx(exported.model.SerializeToString(), NUMBERS[:, :5])


def test_a_tokenizers_file_has_to_stand_beside(without_torch):
    file = without_torch["at"] / "tokens" / "student.onnx"
    samples = without_torch["tokens"][1]
    blob = file.read_bytes()
    with pytest.raises(ValueError, match=r"expected tokenizer\.json beside the model"):
        run_onnx(blob, samples)
    files = {"tokenizer.json": (file.parent / "tokenizer.json").read_bytes()}
    labels, _ = run_onnx(blob, samples, files)
    assert labels.tolist() == without_torch["tokens"][3]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    from ensdistill.student import export

    for module in [name for name in sys.modules if name.startswith("ensdistill.student.export.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnx: pip install 'ensdistill\[export\]'"):
        _ = export.to_onnx
