"""Fingerprints of members: everything that their logits depend on, and nothing else."""

import dataclasses
import functools
import gc
import importlib
import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn

from ensdistill.models import MLP
from ensdistill.teachers.members import SklearnMember, TorchMember, load_member


@pytest.fixture(scope="module")
def rows(digits):
    return digits.labelled.inputs.reshape(200, -1), digits.labelled.labels


FINGERPRINTS = """
import sys; sys.path.insert(0, "tests")
import numpy as np, torch
junk = [np.random.random(n) for n in range(int(sys.argv[1]))]  # other memory addresses
import member_cases as t
from ensdistill.data import Digits
s = Digits().split(seed=0)
torch.manual_seed(0)
print([(m.fingerprint(), m.parameters, m.bytes) for m in t.members((s.labelled.inputs.reshape(200, -1), s.labelled.labels))])
"""


def test_fingerprints_are_of_content_not_of_addresses(rows):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "MALLOC_PERTURB_": "85"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", FINGERPRINTS, junk],
            env={**environment, "PYTHONHASHSEED": junk},
            capture_output=True,
            text=True,
            check=True,
        )
        for junk in ("1", "99")
    ]
    assert runs[0].stdout == runs[1].stdout != ""


def test_fingerprints_change_with_every_part_of_a_prediction(rows):
    x, y = rows
    base, other = SVC(C=3).fit(x, y), SVC(C=3).fit(x[1:], y[1:])
    assert SklearnMember(base).fingerprint() == SklearnMember(SVC(C=3).fit(x, y)).fingerprint()
    assert SklearnMember(base).fingerprint() != SklearnMember(other).fingerprint()
    forest = RandomForestClassifier(5, random_state=0).fit(x, y)
    assert SklearnMember(forest).fingerprint() != SklearnMember(forest, smoothing=0.1).fingerprint()
    module = MLP(4, [], 2)
    before = TorchMember(module).fingerprint()
    with torch.no_grad():
        module[1].bias[0] += 1e-6
    assert TorchMember(module).fingerprint() != before


def test_an_estimator_that_was_read_for_its_fingerprint_leaves_nothing_for_the_garbage_collector(rows):
    """It would leave all of the estimator in memory, gigabytes of a large forest."""
    member = SklearnMember(RandomForestClassifier(5, random_state=0).fit(*rows))
    member.fingerprint()  # imports
    gc.collect()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        member.fingerprint()
        gc.collect()
        assert not [
            found for found in gc.garbage if isinstance(found, zipfile.ZipFile | io.BytesIO | np.ndarray)
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def test_a_refitted_estimator_is_another_one(tmp_path, rows):
    x, y = rows
    member = SklearnMember(LinearDiscriminantAnalysis().fit(x, y))
    before, answer = member.fingerprint(), member.predict_logits(x[:1])
    member.estimator.fit(x[50:], y[50:])
    assert not np.array_equal(member.predict_logits(x[:1]), answer)
    assert member.fingerprint() != before
    member.save(tmp_path)
    np.testing.assert_array_equal(load_member(tmp_path).predict_logits(x[:1]), member.predict_logits(x[:1]))


@dataclasses.dataclass
class Settings:
    width: int


class Scaled(nn.Module):
    """Everything that a prediction can depend on beside the parameters."""

    def __init__(self, buffer=1.0, **attributes):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.register_buffer("factor", torch.tensor(buffer), persistent=False)
        vars(self).update(attributes)

    def forward(self, x):
        return self.linear(x) * self.factor


def test_a_vocabulary_may_hold_any_word(tmp_path):
    """The archive's own keys, such as "file", are words of the vocabulary here."""
    texts, labels = ["a file of content", "another __id__ of __class__", "content and file"], [0, 1, 0]

    def member(words):
        pipeline = make_pipeline(CountVectorizer(), MultinomialNB()).fit([*texts, words], [*labels, 1])
        return SklearnMember(pipeline, classes=("a", "b"))

    fingerprints = [member(words).fingerprint() for words in ("file", "file", "id", "__id__ __module__ file")]
    assert fingerprints[0] == fingerprints[1]
    assert len({json.dumps(one) for one in fingerprints}) == 3
    member("file").save(tmp_path)
    loaded = load_member(tmp_path)
    assert loaded.fingerprint() == fingerprints[0]
    np.testing.assert_array_equal(loaded.predict_logits(texts), member("file").predict_logits(texts))


def twice(x):
    return 2 * x


def halved(x):
    return x / 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale": 1}, {"scale": 100}),
        ({"_scale": 1.0}, {"_scale": True}),
        ({"buffer": 1.0}, {"buffer": 2.0}),
        ({"steps": [{"a": (1, 2)}]}, {"steps": [{"a": (1, 3)}]}),
        ({"names": {"a", "b"}}, {"names": {"a", "c"}}),
        ({"table": np.arange(3)}, {"table": np.arange(3) + 1}),
        ({"parts": [torch.zeros(2)]}, {"parts": [torch.ones(2)]}),
        ({"act": twice}, {"act": halved}),
        ({"act": functools.partial(twice, x=1)}, {"act": functools.partial(twice, x=2)}),
        ({"act": torch.relu}, {"act": torch.tanh}),
        ({"kind": nn.ReLU}, {"kind": nn.GELU}),
        ({"hidden": [nn.ELU(0.5)]}, {"hidden": [nn.ELU(0.25)]}),
        ({"dtype": torch.float32}, {"dtype": torch.bfloat16}),
        ({"config": Settings(1)}, {"config": Settings(2)}),
    ],
)
def test_computation_beside_the_weights_is_in_a_modules_fingerprint(one, other):
    print_of = lambda how: TorchMember(nn.Sequential(Scaled(**how))).fingerprint()  # noqa: E731
    assert print_of(one) == print_of(one)
    assert print_of(one) != print_of(other)


def test_code_and_hooks_are_in_a_module_s_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    # Bytecode goes by the second and the file's size, which two of the edits share.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for name, source in (("first", "x * 1"), ("second", "x * 9"), ("third", "x * 9")):
        (tmp_path / "edited.py").write_text(
            "from torch import nn\nclass Edited(nn.Module):\n    def forward(self, x):\n        return "
            f"{source}\n"
        )
        typed = {"__name__": "typed"}
        exec((tmp_path / "edited.py").read_text(), typed)  # as in a shell: there is no file
        sys.modules.pop("edited", None)
        importlib.invalidate_caches()
        module = importlib.import_module("edited")
        found.append(
            [TorchMember(cls(), name=name).fingerprint() for cls in (module.Edited, typed["Edited"])]
        )
    first, second, third = found
    assert second == third
    assert all(a != b for a, b in zip(first, second, strict=True))
    hooked = Scaled()
    plain = TorchMember(hooked).fingerprint()
    hooked.register_forward_hook(halved)
    assert TorchMember(hooked).fingerprint() != plain


def test_a_fingerprint_warns_of_parts_that_it_can_not_see():
    module = Scaled(generator=torch.Generator())
    with pytest.warns(
        UserWarning, match=r"Scaled\.generator: a torch\._C\.Generator has no content .*only its type counts"
    ):
        member = TorchMember(module).fingerprint()
    with pytest.warns(UserWarning, match=r"Scaled\.generator"):
        assert TorchMember(Scaled(generator=object())).fingerprint() != member
