"""Member classes of other packages: saved and loaded with public names only, and only if they are trusted."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ensdistill.models import MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import (
    ArrayMember,
    Member,
    SklearnMember,
    TorchMember,
    load_member,
    write_description,
)

SOURCE = """
from pathlib import Path

import numpy as np

from ensdistill.teachers.members import Member, SklearnMember, TorchMember, write_description


class Nearest:
    '''Logits from the distance to one point of each class.'''

    parameters = 0

    def __init__(self, centres, name, classes=None, scale=1.0):
        self.centres, self.name, self.classes, self.scale = centres, name, classes, scale

    @property
    def bytes(self):
        return self.centres.nbytes

    def predict_logits(self, inputs):
        return -self.scale * np.square(inputs[:, None] - self.centres).sum(-1).astype(np.float32)

    def fingerprint(self):
        return f"{self.centres.tolist()} {self.scale} {self.classes}"

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.save(Path(folder) / "centres.npy", self.centres)
        write_description(folder, self, scale=self.scale)

    @classmethod
    def load(cls, folder, description, trusted):
        centres, classes = np.load(folder / "centres.npy", allow_pickle=False), description["classes"]
        named = None if classes is None else tuple(classes)
        return cls(centres, description["name"], named, description["scale"])


class Mirrored(TorchMember):
    '''The mean of the logits for the rows and for their mirror images.'''

    def predict_logits(self, inputs):
        return (super().predict_logits(inputs) + super().predict_logits(inputs[:, ::-1].copy())) / 2


class Sharper(SklearnMember):
    def predict_logits(self, inputs):
        return 2 * super().predict_logits(inputs)


class WithoutLoad:
    parameters = bytes = 0
    name, classes = "w", None

    def predict_logits(self, inputs):
        return inputs

    def fingerprint(self):
        return "w"

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_description(folder, self)
"""
X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    (tmp_path / "strangers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("strangers", None)
    yield __import__("strangers")
    sys.modules.pop("strangers", None)


def made(strangers, kind):
    if kind == "Nearest":
        return strangers.Nearest(X[:3].copy(), "own", ("a", "b", "c"), 0.5)
    if kind == "Mirrored":
        torch.manual_seed(0)
        return strangers.Mirrored(
            MLP(4, [5], 3), name="own", factory=functools.partial(MLP, inputs=4, hidden=[5], outputs=3)
        )
    from sklearn.linear_model import LogisticRegression

    return strangers.Sharper(LogisticRegression().fit(X, np.arange(30) % 3), name="own")


@pytest.mark.parametrize("kind", ["Nearest", "Mirrored", "Sharper"])
def test_a_class_of_another_package_is_saved_and_loaded_if_it_is_trusted(tmp_path, strangers, kind):
    member = made(strangers, kind)
    assert isinstance(member, Member)
    ensemble = Ensemble.from_members([member])
    ensemble.save(tmp_path / "e")
    folder, path = tmp_path / "e" / "members" / "own", f"strangers.{kind}"
    words = rf"the member's class {path} is not trusted, .* pass trusted=\['{path}'\]"
    for load in (load_member, Ensemble.load):
        with pytest.raises(ValueError, match=words):
            load(folder if load is load_member else tmp_path / "e")
    loaded = load_member(folder, trusted=[path])
    assert type(loaded) is type(member)
    np.testing.assert_array_equal(loaded.predict_logits(X), member.predict_logits(X))
    assert (loaded.fingerprint(), loaded.classes, loaded.name) == (
        member.fingerprint(),
        member.classes,
        "own",
    )
    again = Ensemble.load(tmp_path / "e", trusted=[path])
    np.testing.assert_array_equal(again.predict_proba(X), ensemble.predict_proba(X))


def test_a_class_that_is_not_trusted_is_not_imported(tmp_path, strangers):
    made(strangers, "Nearest").save(tmp_path / "m")
    code = (
        "import sys; from ensdistill.teachers.members import load_member\n"
        f"try: load_member({str(tmp_path / 'm')!r}, trusted=['strangers.Nearer'])\n"
        "except ValueError as error: print(error)\n"
        "print('strangers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "strangers.Nearest is not trusted, because another package defines it; trusted has 'strangers.Nearer'"
        in run.stdout
    )
    assert run.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_path": "strangers.Gone"}, "class strangers.Gone cannot be imported"),
        ({"class_path": "nowhere.Gone"}, "class nowhere.Gone cannot be imported"),
        ({"class_path": "Gone"}, "class Gone cannot be imported"),
        (
            {"class_path": "strangers.WithoutLoad"},
            r"expected a class with a class method load\(folder, description, trusted\)",
        ),
        ({"scale": 2.0}, "the files are not those that were saved"),
    ],
)
def test_a_class_that_can_not_be_loaded_is_named(tmp_path, strangers, change, words):
    made(strangers, "Nearest").save(tmp_path)
    about = json.loads((tmp_path / "member.json").read_text()) | change
    (tmp_path / "member.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=words):
        load_member(tmp_path, trusted=[about["class_path"]])


def test_a_class_within_a_function_is_refused_when_it_is_saved(tmp_path):
    class Within(ArrayMember):
        pass

    with pytest.raises(
        ValueError,
        match=r"Within can't be imported when the member is loaded; define the class at the top of a module",
    ):
        Within(X, logits=np.ones((30, 2)), name="m").save(tmp_path)
    assert not (tmp_path / "member.json").exists()


def test_own_code_of_a_subclass_is_in_its_fingerprint(strangers):
    members = [made(strangers, "Mirrored"), TorchMember(made(strangers, "Mirrored").module, name="own")]
    one, other = (member.fingerprint_parts() for member in members)
    assert {name for name in {**one, **other} if one.get(name) != other.get(name)} == {
        "source of strangers.Mirrored",
        "source of strangers.Mirrored.predict_logits",
    }
    assert members[0].fingerprint() != members[1].fingerprint()


def test_a_subclass_with_predictions_of_its_own_is_not_stacked(strangers):
    members = [made(strangers, "Mirrored"), strangers.Mirrored(MLP(4, [5], 3), name="other")]
    ensemble = Ensemble.from_members(members)
    np.testing.assert_allclose(ensemble.raw_logits(X, way="stacked"), ensemble.raw_logits(X), atol=1e-6)


def test_write_description_is_public_and_notes_no_class_of_this_package(tmp_path):
    member = SklearnMember.__new__(SklearnMember)
    member.name, member.classes = "m", None
    write_description(tmp_path, member, "sklearn", "0")
    assert json.loads((tmp_path / "member.json").read_text()) == {
        "format": 1,
        "kind": "sklearn",
        "name": "m",
        "classes": None,
        "fingerprint": "0",
    }
