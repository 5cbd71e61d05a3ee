"""A killed training of several sets goes on from its checkpoint, with the same bits."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill import Ensemble, Optimization, Rows, cache_targets
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.models import MLP
from ensdistill.student.shared import HeadSet, distill_sets

X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
ROWS = Rows(X, np.arange(60), np.full(60, -100))
TRUNK = partial(MLP, 6, [16], 8, dropout=0.3)
STEPS = Optimization(steps=40, batch_size=12, learning_rate=0.02)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    torch.manual_seed(0)
    found = {}
    for name, classes in (("three", 3), ("two", 2)):
        ensemble = Ensemble.from_members([MLP(6, [8], classes) for _ in range(2)])
        cache = cache_targets(ensemble, ROWS, tmp_path_factory.mktemp("sets") / name)
        found[name] = HeadSet(ROWS, cache, partial(nn.Linear, 8, classes), weight=classes)
    return found


class Killed(Exception):
    pass


def kill(after):
    def progress(done, total):
        if done == after:
            raise Killed

    return progress


def killed(sets, file, after=25, **options):
    with pytest.raises(Killed):
        distill_sets(TRUNK, sets, STEPS, checkpoint=file, progress=kill(after), **options)


def test_a_killed_training_ends_with_the_same_bits(sets, tmp_path):
    whole = distill_sets(TRUNK, sets, STEPS, seed=3)
    file = tmp_path / "state.safetensors"
    killed(sets, file, seed=3, checkpoint_every=10)
    seen = []
    again = distill_sets(
        TRUNK,
        sets,
        STEPS,
        seed=3,
        checkpoint=file,
        checkpoint_every=10,
        progress=lambda done, total: seen.append(done),
    )
    assert seen == list(range(21, 41))
    for name, module in whole.modules.items():
        assert np.array_equal(whole.losses[name], again.losses[name])
        state = again.modules[name].state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(value, state[key]), key
    assert str(whole) == str(again)


def test_a_checkpoint_of_another_training_is_refused_with_what_differs(sets, tmp_path):
    file = tmp_path / "state.safetensors"
    killed(sets, file, checkpoint_every=10)
    other = {**sets, "two": HeadSet(ROWS, sets["two"].cache, sets["two"].head, weight=1.0)}
    for given, seed, match in (
        (other, 0, r"sets\.two\.weight: the checkpoint has 2, now 1\.0"),
        (sets, 1, r"seed: the checkpoint has 0, now 1"),
    ):
        with pytest.raises(CheckpointMismatch, match=match):
            distill_sets(TRUNK, given, STEPS, seed=seed, checkpoint=file)


def test_a_training_without_a_checkpoint_writes_none(sets, tmp_path):
    killed(sets, tmp_path / "state.safetensors", after=5, checkpoint_every=10)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^checkpoint_every: expected an integer of at least 1"):
        distill_sets(TRUNK, sets, STEPS, checkpoint=tmp_path / "state", checkpoint_every=0)
