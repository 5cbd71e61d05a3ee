"""Logits left on the device where torch members predict: the same bits as in main memory, the same
complaints, encoded there."""

import functools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from ensdistill.cache import cache_targets, encoding
from ensdistill.data import BadRows, Rows
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import TorchMember

X = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
Y = X[:, :3].argmax(1)


def mixed(method="temperature"):
    """Two networks, of other class orders, and a model that always predicts in main memory; calibrated."""
    torch.manual_seed(0)
    names = ("a", "b", "c")
    nets = [
        TorchMember(MLP(4, [8], 3), name=n, classes=order, batch_size=64)
        for n, order in (("n1", names), ("n2", names[::-1]))
    ]
    regression = LogisticRegression().fit(X, np.array(names)[Y])
    ensemble = Ensemble.from_members([*nets, regression], classes=names, weights=[3, 2, 1])
    return ensemble.calibrate(ensemble.raw_logits(X), Y, method=method)


def on_cpu(ensemble):
    """As on a GPU, without one."""
    return functools.partial(ensemble._logits_on, torch.device("cpu"))


@pytest.mark.parametrize("method", ["temperature", "vector", "pooled"])
def test_the_bits_are_those_in_main_memory(method):
    ensemble = mixed(method)
    for rows in (X, X[:1], X[:0]):
        there = on_cpu(ensemble)(rows)
        assert there.dtype == torch.float32
        assert torch.equal(there, ensemble.predict_logits(rows))
        assert torch.equal(there, ensemble.predict_logits_on_device(rows))


class Doubtful(nn.Linear):
    """A layer that returns ``value`` for class 0 of row 2, or of all its classes."""

    def __init__(self, value, whole=False):
        super().__init__(4, 3)
        self.value, self.whole = value, whole

    def forward(self, x):
        z = super().forward(x)
        z[2, slice(None) if self.whole else 0] = self.value
        return z


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_name_the_member_and_the_rows(value):
    ensemble = Ensemble.from_members(
        [TorchMember(nn.Linear(4, 3), name="good"), TorchMember(Doubtful(value), name="bad")]
    )
    for predict in (ensemble.predict_logits, on_cpu(ensemble)):
        with pytest.raises(
            BadRows, match=rf"bad: the logits of row 2 hold {value} \(1 such rows: \[2\]\)"
        ) as caught:
            predict(X)
        assert caught.value.rows.tolist() == [2]


def test_masked_classes_are_fine_but_not_all_of_a_row():
    masked, emptied = (TorchMember(Doubtful(-np.inf, whole), name="bad") for whole in (False, True))
    assert on_cpu(Ensemble.from_members([masked]))(X)[0, 2, 0] == -np.inf
    with pytest.raises(BadRows, match="bad: the logits of row 2 are all -inf"):
        on_cpu(Ensemble.from_members([emptied]))(X)


def test_other_numbers_of_classes_and_of_rows():
    ensemble = Ensemble.from_members(
        [TorchMember(nn.Linear(4, 3), name="three"), TorchMember(nn.Linear(4, 2), name="two")]
    )
    with pytest.raises(ValueError, match="members: two has 2 classes, three has 3"):
        on_cpu(ensemble)(X)
    with pytest.raises(
        ValueError, match=r"summed: expected outputs \[300, C\], one for each class; got \[5, 3\]"
    ):
        on_cpu(Ensemble.from_members([TorchMember(Summed(4, 3), name="summed", batch_size=64)]))(X)


class Summed(nn.Linear):
    def forward(self, x):
        return super().forward(x).sum(0, keepdim=True)


def test_out_of_memory_names_the_member():
    class Full(nn.Linear):
        def forward(self, x):
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(MemoryError, match="full: out of memory on cpu with a single row"):
        on_cpu(Ensemble.from_members([TorchMember(Full(4, 3), name="full")]))(X[:4])


def test_where_members_predict():
    assert TorchMember(nn.Linear(4, 3)).predicts_on == torch.device("cpu")
    assert TorchMember(nn.Flatten()).predicts_on == torch.device("cpu")
    assert TorchMember(nn.Linear(4, 3), device="cuda:1").predicts_on == torch.device("cuda:1")
    assert TorchMember(nn.Linear(4, 3, device="meta")).predicts_on == torch.device("meta")


class Doubled(TorchMember):
    def predict_logits(self, inputs):
        return 2 * super().predict_logits(inputs)


class DoubledEnsemble(Ensemble):
    def predict_logits(self, inputs, way="one_by_one"):
        return 2 * super().predict_logits(inputs, way)


class Around:
    """Passes on every tensor that it doesn't change."""

    def __init__(self, ensemble):
        self.ensemble = ensemble

    def __getattr__(self, name):
        return getattr(self.ensemble, name)

    def predict_logits(self, inputs):
        return 2 * self.ensemble.predict_logits(inputs)


def doubled_by_its_own(member):
    ensemble = Ensemble.from_members([member])
    ensemble.predict_logits = lambda inputs: 2 * Ensemble.predict_logits(ensemble, inputs)
    return ensemble


class Protocol:
    """A member that is no class of this package, with logits that torch doesn't take as they are."""

    name, classes, parameters, bytes = "own", None, 0, 0

    def __init__(self, change):
        self.change = change

    def predict_logits(self, inputs):
        return self.change(np.ascontiguousarray(inputs[:, :3]))

    def fingerprint(self):
        return "own"

    def save(self, folder):
        raise NotImplementedError


def test_an_override_of_predict_logits_is_called(tmp_path):
    net = nn.Linear(4, 3)
    plain = TorchMember(net).predict_logits(X)
    for i, ensemble in enumerate(
        (
            Ensemble.from_members([Doubled(net)]),
            DoubledEnsemble.from_members([TorchMember(net)]),
            Around(Ensemble.from_members([TorchMember(net)])),
            doubled_by_its_own(TorchMember(net)),
        )
    ):
        cache = cache_targets(ensemble, Rows(X, np.arange(300), Y), tmp_path / str(i), codec="fp32")
        np.testing.assert_array_equal(cache.gather(np.arange(300)).to_logits()[0], 2 * plain)
    assert torch.equal(
        on_cpu(Ensemble.from_members([Doubled(net), TorchMember(net, name="b")]))(X)[0],
        torch.from_numpy(2 * plain),
    )


@pytest.mark.parametrize(
    "change",
    [lambda z: z[:, ::-1], torch.from_numpy, lambda z: z.astype(">f4"), lambda z: z.astype(np.longdouble)],
)
def test_members_of_ones_own_may_return_any_array(tmp_path, change):
    ensemble = Ensemble.from_members([Protocol(change)])
    expected = torch.from_numpy(np.array(np.asarray(change(X[:, :3].copy())), np.float32))
    assert torch.equal(on_cpu(ensemble)(X)[0], expected)
    cache = cache_targets(ensemble, Rows(X, np.arange(300), Y), tmp_path, codec="fp32")
    assert torch.equal(cache.gather(np.arange(300)).to_logits()[0], expected)


def test_a_cache_encodes_tensors_that_stayed_on_the_device(tmp_path, monkeypatch):
    ensemble, seen, encode = mixed(), [], encoding.Encoder.__call__
    left = {}
    monkeypatch.setattr(
        ensemble,
        "predict_logits_on_device",
        lambda inputs: left.setdefault(len(left), on_cpu(ensemble)(inputs)),
    )
    monkeypatch.setattr(
        encoding.Encoder,
        "__call__",
        lambda self, logits, *rest: seen.append(logits) or encode(self, logits, *rest),
    )
    cache = cache_targets(ensemble, Rows(X, np.arange(300), Y), tmp_path, codec="fp32", batch_size=128)
    assert [id(z) for z in seen] == [id(z) for z in left.values()]
    assert len(seen) == 3
    assert torch.equal(cache.gather(np.arange(300)).to_logits(), torch.cat(seen, dim=1))
