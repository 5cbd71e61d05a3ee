"""A cache that is refused names the part of a member that differs."""

import copy
import functools
import inspect
import json

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill.cache import CacheMismatch, TargetCache, cache_targets
from ensdistill.cache.fingerprint import differences
from ensdistill.common.source import Used, source_digest
from ensdistill.data import Rows
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import CallableMember, TorchMember

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
ROWS = Rows(X, np.arange(20), np.zeros(20, np.int64))
SOURCE = """
from torch import nn

SCALE = 2.0


def scaled(x):
    return SCALE * x


class Net(nn.Module):
    def __init__(self, factor=1.5):
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 3), factor

    def forward(self, x):
        return scaled(self.layer(x)) * self.factor
"""


def ensemble_of(module, seed=0, **arguments):
    torch.manual_seed(seed)
    factory = functools.partial(module.Net, **arguments)
    return Ensemble.from_members([TorchMember(factory(), name="net", factory=factory)])


@pytest.mark.parametrize(
    ("old", "new", "more", "line"),
    [
        ("SCALE * x", "SCALE + x", {}, "net: source of users_own.scaled differs"),
        ("SCALE = 2.0", "SCALE = 3.0", {}, "net: value of users_own.SCALE differs"),
        ("* self.factor", "/ self.factor", {}, "net: source of users_own.Net.forward differs"),
        (
            "return SCALE * x",
            "return SCALE * x + other(x)\n\n\ndef other(x):\n    return x",
            {},
            "net: source of users_own.other is not in",
        ),
        ("", "", {"seed": 1}, "net: weights differ"),
        ("", "", {"factor": 3.0}, "net: attributes of users_own.Net differs"),
    ],
)
def test_a_stale_cache_names_the_differences(module_of, tmp_path, old, new, more, line):
    before = ensemble_of(module_of(SOURCE))
    cache_targets(before, ROWS, tmp_path / "cache", codec="fp32")
    cache_targets(
        ensemble_of(module_of(SOURCE + "\n\nclass Unrelated:\n    pass\n")),
        ROWS,
        tmp_path / "cache",
        codec="fp32",
    )
    now = ensemble_of(module_of(SOURCE.replace(old, new, 1)), **more)
    with pytest.raises(CacheMismatch, match=line) as caught:
        cache_targets(now, ROWS, tmp_path / "cache", codec="fp32")
    assert not any(now.fingerprint()["members"]["net"] in text for text in caught.value.differences)
    with pytest.raises(CacheMismatch, match=line):
        TargetCache.open(tmp_path / "cache", expect={"ensemble": now.fingerprint()})
    with pytest.raises(CacheMismatch, match=line):
        now.calibrate(TargetCache.open(tmp_path / "cache"), np.arange(20) % 3, uids=np.arange(20))
    with pytest.raises(CacheMismatch, match=rf"(?s)the stored target differs.*{line}"):
        TargetCache.open(tmp_path / "cache").verify_against(now, ROWS, share=1.0)


def test_another_version_of_a_library_is_named_with_both(tmp_path, monkeypatch):
    torch.manual_seed(0)
    ensemble = Ensemble.from_members([TorchMember(nn.Linear(4, 3), name="net")])
    cache_targets(ensemble, ROWS, tmp_path)
    here = torch.__version__
    monkeypatch.setattr(torch, "__version__", "99.0")
    with pytest.raises(
        CacheMismatch,
        match=rf"members\.net: version of torch: the cache has '{here.replace('+', '.')}', expected '99\.0'",
    ):
        cache_targets(ensemble, ROWS, tmp_path)


def test_a_cache_without_parts_stays_valid_and_is_refused_without_hashes(tmp_path):
    """As one that an earlier version wrote."""

    class Earlier(Ensemble):
        def fingerprint(self):
            return {key: value for key, value in super().fingerprint().items() if key != "parts"}

    def made(version):
        return [CallableMember(lambda x: np.log1p(np.abs(x)) - x, name="f", version=version, output="logits")]

    cache_targets(Earlier.from_members(made("1")), ROWS, tmp_path, codec="fp32")
    assert "parts" not in json.loads((tmp_path / "manifest.json").read_text())["fingerprint"]["ensemble"]
    cache_targets(Ensemble.from_members(made("1")), ROWS, tmp_path, codec="fp32")
    with pytest.raises(
        CacheMismatch, match=r"members\.f: the model or its settings differ \(no parts of it are noted\)$"
    ):
        cache_targets(Ensemble.from_members(made("2")), ROWS, tmp_path, codec="fp32")


def test_parts_alone_make_no_difference():
    one = {"members": {"a": "1"}, "parts": {"a": {"weights": "x"}}, "weights": [1.0]}
    assert (
        differences(one, {**one, "parts": {"a": {"weights": "y"}}})
        == differences(one, {**one, "parts": {}})
        == []
    )
    assert differences({"members": ["a"], "parts": 1}, {"members": ["b"], "parts": 2}) != []
    assert differences(one, {"members": {"b": "1"}, "weights": [1.0]}) == [
        "members: 'a' of the cache is called 'b' now"
    ]
    assert differences(one, {"members": {"b": "2"}, "weights": [1.0]}) == [
        "members.b: the cache has no such member",
        "members.a: is in the cache alone",
    ]


def test_a_signature_that_a_wrapper_keeps_is_content(recwarn):
    one, same, other = (inspect.signature(f) for f in (lambda x: x, lambda x: x, lambda x, y=1: x))
    found = [Used().refer(signature, "predict.sig") for signature in (one, same, other)]
    assert found[0] == found[1] != found[2]
    assert not recwarn.list


def test_copies_and_pickles_of_an_object_leave_its_class_as_it_was(module_of):
    """Python keeps the names of slots in the class of the first object that it copies."""
    plain = module_of("class Plain:\n    def value(self):\n        return 1\n").Plain
    before = source_digest(plain)
    copy.deepcopy(plain())
    assert "__slotnames__" in vars(plain)
    assert source_digest(plain) == before
