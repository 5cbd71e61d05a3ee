"""Ensemble.train by several processes. Threads are in their place: processes share the folder alone."""

import functools
import threading
from contextlib import contextmanager

import pytest
import torch
from sklearn.naive_bayes import GaussianNB

from ensdistill.common.optimization import Optimization
from ensdistill.common.processes import Processes
from ensdistill.models import MLP
from ensdistill.teachers import Ensemble
from ensdistill.teachers.training_view import TrainingView

QUICK = Optimization(steps=60, batch_size=32, learning_rate=5e-3)
train = functools.partial(Ensemble.train, members=5, optimization=QUICK)


@pytest.fixture
def by_two(monkeypatch):
    """Run a function in two processes, and return both results."""
    barrier = threading.Barrier(2, timeout=60)

    class Ranked(Processes):
        def wait(self):
            barrier.wait()

    @contextmanager
    def ranked(device):
        name = threading.current_thread().name
        yield Ranked(int(name[-1]), 2) if name.startswith("rank-") else Processes(0, 1)

    def run(work):
        found = {}
        threads = [
            threading.Thread(target=lambda rank=rank: found.update({rank: work()}), name=f"rank-{rank}")
            for rank in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[rank] for rank in range(2)]

    monkeypatch.setattr("ensdistill.teachers.train.processes", ranked)
    return run


def test_they_have_one_view_of_all_members(digits, tmp_path, monkeypatch, capsys, by_two):
    class Told(TrainingView):
        def __init__(self, names, **options):
            super().__init__(names, **options)
            views.append([self._cells(name)[1] for name in names])

    views, found = [], []
    monkeypatch.setattr("ensdistill.teachers.train.TrainingView", Told)
    for _ in range(2):  # the second time there is nothing left to do
        found += by_two(
            lambda: train(
                GaussianNB(), digits.labelled, method="bagging", folder=tmp_path, progress=True
            ).fingerprint()
        )
        shown = capsys.readouterr().err
        assert shown.startswith("5 of 5 members trained, ")
        assert shown.count("\n") == 1
    assert views == [["waiting", "rank 1", "waiting", "rank 1", "waiting"], ["waiting"] * 5]
    assert found == found[:1] * 4


@pytest.mark.parametrize("method", ["snapshot", "fast_geometric"])
def test_members_of_one_training_are_never_shared_out(digits, tmp_path, method, by_two):
    """Each member depends on the number of members, so that neither a process nor a later start can have
    some of them alone."""
    go = functools.partial(train, MLP, digits.labelled, method=method)
    expected = go().predict_logits(digits.test.inputs)
    assert not torch.equal(expected[0], expected[1])
    for ensemble in by_two(lambda: go(folder=tmp_path / "two")):
        torch.testing.assert_close(
            ensemble.predict_logits(digits.test.inputs), expected, rtol=1e-4, atol=1e-4
        )
    go(folder=tmp_path / "one")
    (
        tmp_path / "one" / "members" / "mlp-2" / "trained.json"
    ).unlink()  # as if it had been killed on the way there
    assert torch.equal(go(folder=tmp_path / "one").predict_logits(digits.test.inputs), expected)


def test_all_need_one_folder(digits, monkeypatch):
    @contextmanager
    def two(device):
        yield Processes(0, 2)

    monkeypatch.setattr("ensdistill.teachers.train.processes", two)
    with pytest.raises(ValueError, match="folder: expected one that all 2 processes see"):
        train(MLP, digits.labelled)
