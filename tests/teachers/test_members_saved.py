"""Members as files: the same logits come back, damage is noticed, nothing that is read runs."""

import functools
import io
import json
import warnings
import zipfile

import numpy as np
import pytest
import skops.io
import torch
from member_cases import members
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC
from torch import nn

from ensdistill.data.preprocess import Transformer
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import (
    CallableMember,
    Member,
    Preprocessed,
    SklearnMember,
    TorchMember,
    inner,
    load_member,
)


@pytest.fixture(scope="module")
def rows(digits):
    return digits.labelled.inputs.reshape(200, -1), digits.labelled.labels


def test_saved_members_predict_the_same_bits(tmp_path, rows):
    x = rows[0]
    for member in members(rows):
        assert isinstance(member, Member)
        member.save(tmp_path / member.name)
        loaded = load_member(tmp_path / member.name)
        np.testing.assert_array_equal(loaded.predict_logits(x), member.predict_logits(x))
        assert (loaded.name, loaded.classes, loaded.fingerprint()) == (
            member.name,
            member.classes,
            member.fingerprint(),
        )
        assert (loaded.parameters, loaded.bytes) == (member.parameters, member.bytes)


@pytest.mark.parametrize("which", [0, 1, 2, 4])
def test_a_flipped_byte_is_noticed(tmp_path, rows, which):
    member = members(rows)[which]
    member.save(tmp_path)
    file = next(f for f in tmp_path.iterdir() if f.suffix in (".safetensors", ".skops"))
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0x40
    file.write_bytes(data)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_member(tmp_path)


def test_loading_cannot_run_code(tmp_path, rows):
    """A torch member whose class is a function that does harm, and an archive that names one."""
    evidence = tmp_path / "harm"
    TorchMember(MLP(), factory=MLP).save(tmp_path / "torch")
    about = json.loads((tmp_path / "torch" / "member.json").read_text())
    about["recipe"] = {"class_path": "os.system", "init_args": {"command": f"touch {evidence}"}}
    (tmp_path / "torch" / "member.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"os\.system is not trusted"):
        load_member(tmp_path / "torch")

    SklearnMember(SVC().fit(*rows)).save(tmp_path / "sklearn")
    schema = {
        "__class__": "system",
        "__module__": "os",
        "__loader__": "FunctionNode",
        "content": {"module_path": "os", "function": "system"},
        "__id__": 1,
        "protocol": 2,
        "_skops_version": "0.13",
    }
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    (tmp_path / "sklearn" / "estimator.skops").write_bytes(blob.getvalue())
    with pytest.raises(ValueError, match="not trusted"):
        load_member(tmp_path / "sklearn")
    assert not evidence.exists()


class Custom(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2)

    def forward(self, x):
        return self.layer(x)


def test_own_classes_load_when_trusted(tmp_path):
    member = TorchMember(Custom(4), name="own", factory=functools.partial(Custom, width=4))
    member.save(tmp_path)
    path = f"{Custom.__module__}.Custom"
    with pytest.raises(ValueError, match=rf"{path} is not trusted.*trusted=\['{path}'\]"):
        load_member(tmp_path)
    loaded = load_member(tmp_path, trusted=[path])
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(loaded.predict_logits(x), member.predict_logits(x))


def test_members_that_cannot_be_saved_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"own: cannot be saved .*factory="):
        TorchMember(Custom(), name="own").save(tmp_path)
    with pytest.raises(ValueError, match="factory: own: expected a module class"):
        TorchMember(Custom(), name="own", factory=lambda: Custom())
    with pytest.raises(TypeError, match="f: a function cannot be saved"):
        CallableMember(lambda x: x, name="f", version="1", output="logits").save(tmp_path)
    with pytest.raises(ValueError, match="no saved member"):
        load_member(tmp_path)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (
            functools.partial(MLP, inputs=64, hidden=[9]),
            r"1\.weight is torch\.float32 \[8, 64\] here and torch\.float32 \[9, 64\] there",
        ),
        (functools.partial(MLP, inputs=64, hidden=[8, 8]), "it builds another module"),
        (functools.partial(MLP, inputs=64, hidden=[8], activation="silu"), "SiLU"),
        (functools.partial(MLP, depth=3), "it can't build the module again: .*depth"),
    ],
)
def test_a_factory_of_another_module_is_refused_when_it_is_saved(tmp_path, factory, words):
    member, state = TorchMember(MLP(64, [8]), name="net", factory=factory), torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"(?s)factory: net: .*{words}"):
        member.save(tmp_path / "net")
    assert not (tmp_path / "net").exists()
    assert torch.equal(torch.get_rng_state(), state)


class Times(nn.Linear):
    def __init__(self, factor=1.0):
        super().__init__(64, 10)
        self.factor = factor

    def forward(self, x):
        return self.factor * super().forward(x.flatten(1))


def test_a_factory_of_a_module_with_other_attributes_is_warned_of(tmp_path):
    with pytest.warns(
        UserWarning, match=r"factory: net: it builds a module with other parts \(attributes of .*Times\)"
    ):
        TorchMember(Times(2.0), name="net", factory=Times).save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchMember(Times(2.0).eval(), factory=functools.partial(Times, factor=2.0)).save(tmp_path)


class Scaled(nn.Module):
    """With a buffer that isn't saved, of a value that half precision rounds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.layer.bias = nn.Parameter(torch.full((10,), 0.1))
        self.register_buffer("factor", torch.tensor(4.1), persistent=False)

    def forward(self, x):
        return self.layer(x) * self.factor


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_module_of_another_type_is_saved_and_loaded_as_it_is(tmp_path, rows, dtype):
    x = rows[0][:9]
    member = TorchMember(Scaled().to(dtype), factory=Scaled)
    with torch.no_grad():
        np.testing.assert_array_equal(
            member.predict_logits(x), member.module(torch.from_numpy(x).to(dtype)).float().numpy()
        )
    member.save(tmp_path)
    loaded = load_member(tmp_path, trusted=[f"{Scaled.__module__}.Scaled"])
    assert {t.dtype for t in (*loaded.module.parameters(), *loaded.module.buffers())} == {dtype}
    np.testing.assert_array_equal(loaded.predict_logits(x), member.predict_logits(x))
    assert (loaded.fingerprint(), loaded.bytes) == (member.fingerprint(), member.bytes)
    with pytest.raises(ValueError, match="expects float32"):
        member.predict_logits(x.astype(np.complex64))


def test_a_member_that_was_saved_without_a_word_on_its_outputs_is_loaded(tmp_path, rows):
    """As earlier versions saved them."""
    member = TorchMember(MLP(64, [8]), factory=functools.partial(MLP, inputs=64, hidden=[8]), output="logits")
    member.save(tmp_path)
    about = json.loads((tmp_path / "member.json").read_text())
    assert about.pop("output") == "logits"
    (tmp_path / "member.json").write_text(json.dumps(about))
    np.testing.assert_array_equal(
        load_member(tmp_path).predict_logits(rows[0]), member.predict_logits(rows[0])
    )


@pytest.mark.parametrize("preprocessed", [False, True])
def test_an_estimator_is_written_once_when_it_is_saved_and_once_when_it_is_read(
    preprocessed, tmp_path, rows, monkeypatch
):
    member = SklearnMember(SVC().fit(*rows), name="svc")
    if preprocessed:
        member = Preprocessed(member, Transformer(FunctionTransformer().fit(rows[0])))
    written = []
    dumps = skops.io.dumps
    monkeypatch.setattr(skops.io, "dumps", lambda one: written.append(type(one)) or dumps(one))
    Ensemble.from_members([member]).save(tmp_path)
    assert written.count(SVC) == 1
    loaded = Ensemble.load(tmp_path)
    assert written.count(SVC) == 2  # as it is written now, which other versions write otherwise
    inner(loaded.members[0]).estimator.support_vectors_[0] += 1
    assert loaded.fingerprint() != Ensemble.load(tmp_path).fingerprint()


def test_newer_formats_are_refused(tmp_path, rows):
    members(rows)[1].save(tmp_path)
    about = json.loads((tmp_path / "member.json").read_text())
    (tmp_path / "member.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(ValueError, match="format 2; this version reads 1"):
        load_member(tmp_path)


def test_a_saved_module_is_still_loaded_by_another_version_of_its_library(tmp_path, monkeypatch):
    member = TorchMember(MLP(4, [], 2), factory=functools.partial(MLP, inputs=4, hidden=[], outputs=2))
    member.save(tmp_path)
    assert load_member(tmp_path).fingerprint() == member.fingerprint()
    before = member.fingerprint()
    monkeypatch.setattr(torch, "__version__", "99.0")
    loaded = load_member(tmp_path)
    assert loaded.fingerprint() == member.fingerprint() != before  # a cache is of the version that made it
