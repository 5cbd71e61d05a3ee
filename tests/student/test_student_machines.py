"""The division of rows between machines: every row has one machine, and a machine's batches come from its
rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensdistill import Ensemble, Optimization, Rows, StudentTrainer, TargetCache, cache_targets
from ensdistill.cache import CacheMismatch, remote
from ensdistill.common.checkpoint import CheckpointMismatch
from ensdistill.common.random import BatchOrder, GroupedOrder
from ensdistill.models import MLP
from ensdistill.student import Callback, OnlineTeachers, batches, trainer
from ensdistill.student.blocks import draw_block
from ensdistill.student.machines import DividedOrder, Division, machine_of, starts_of
from ensdistill.student.validation import turns

N, SHARD = 150, 16
UIDS = np.random.default_rng(1).permutation(1000)[:N]
X = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
ROWS = Rows(X, UIDS, np.full(N, -100))
QUICK = Optimization(steps=64, batch_size=12, learning_rate=0.02)
STUDENT = partial(MLP, 8, [6], 3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    torch.manual_seed(0)
    members = [MLP(8, [5], 3).requires_grad_(False) for _ in range(2)]
    folder = tmp_path_factory.mktemp("machines") / "cache"
    return cache_targets(Ensemble.from_members(members), ROWS, folder, shard_rows=SHARD)


@pytest.fixture
def two_machines(monkeypatch):
    """One process that takes whole batches, drawn as by two machines of one process each."""
    monkeypatch.setattr(trainer, "machines_of", lambda group: (0, 1))


@settings(deadline=None, max_examples=25)
@given(
    places=st.sets(st.integers(0, 500), min_size=12, max_size=200),
    processes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_each_row_has_one_machine_and_is_drawn_once_an_epoch(places, processes, seed):
    rng = np.random.default_rng(seed)
    places = rng.permutation(np.array(sorted(places)))
    machines = rng.permutation(np.repeat(np.arange(len(processes)), processes))
    starts = starts_of(places, machines)
    of_row = machine_of(starts, places)
    for machine, count in enumerate(processes):
        exact = len(places) * count / len(machines)
        assert abs((of_row == machine).sum() - exact) < 1
        stretch = np.sort(places[of_row == machine])
        assert not np.isin(places[of_row != machine], np.arange(stretch[0], stretch[-1])).any()

    size = 2 * len(machines)
    owned = [np.flatnonzero(of_row == machine) for machine in range(len(processes))]
    orders = [BatchOrder(len(own), 2 * count, seed) for own, count in zip(owned, processes, strict=True)]
    order = DividedOrder(orders, owned, machines)
    assert order.batch_size == size
    seen = np.zeros(len(places), int)
    for step in range(0, 30, 5):
        blocks = [draw_block(order, step, 5, rank, len(machines)) for rank in range(len(machines))]
        for rank, block in enumerate(blocks):
            assert (of_row[block.positions] == machines[rank]).all()
        np.testing.assert_array_equal(
            np.sort(np.concatenate([b.positions for b in blocks], 1)), np.sort(blocks[0].whole)
        )
        for i in range(5):
            at = np.concatenate([block.positions[i] for block in blocks])
            epochs = np.concatenate([block.epochs[i] for block in blocks])
            for epoch in np.unique(epochs):  # a batch may reach into the next epoch
                assert (seen[at[epochs == epoch]] == epoch).all()
                seen[at[epochs == epoch]] += 1


def test_a_machine_takes_the_rows_of_its_groups(cache):
    sizes, machines = [20, 30, 50, 50], (0, 1, 1)
    rows = Rows(X, UIDS, np.full(N, -100))
    object.__setattr__(rows, "inputs", Grouped(sizes))
    division = Division(cache, machines, starts_of(cache.samples.ids(UIDS, 0), machines), 0)
    order = batches.order_of(rows, 9, 3, division)
    assert division.shares(9) == [3, 6]
    assert all(isinstance(one, GroupedOrder) for one in order.orders)
    drawn = [order(step) for step in range(N // 9)]
    assert len(np.unique(np.concatenate(drawn))) == 9 * len(drawn)
    for step, batch in enumerate(drawn):
        of_row = division.of(UIDS[batch])
        np.testing.assert_array_equal(of_row, np.resize(machines, 9))
        group = np.searchsorted(np.cumsum(sizes), batch[of_row == 1], side="right")
        assert len(np.unique(group)) <= 2, step  # one group at a time, and a batch may reach into the next


class Grouped:
    """Samples that are read by groups."""

    buffer = 1

    def __init__(self, sizes):
        self.groups = np.array(sizes)

    def __len__(self):
        return int(self.groups.sum())

    def __getitem__(self, index):
        return X[index]


class Collected(StudentTrainer):
    """Its ``distill`` returns the checked arguments."""

    def _run(self, training, again):
        return training


def test_a_machine_fetches_the_shards_of_its_rows_alone(cache, two_machines, tmp_path):
    remote.upload(cache.path, url := f"memory://{tmp_path}")
    here = TargetCache.open(url, local=tmp_path / "here", fetch="as_read")
    training = Collected(QUICK, divide_rows=True).distill(STUDENT, ROWS, here, validation=0.2)
    division, held = training.division, training.validation
    assert division is held.division
    # All of its rows were compared with the cache, those of the validation, too.
    first = -(-division.starts[1] // SHARD)
    assert sorted(file.name for file in (tmp_path / "here").glob("shard-*")) == [
        f"shard-{shard:05d}.safetensors" for shard in range(first)
    ]
    own = division.own(training.rows)
    assert len(own) == len(training.rows) // 2 == 60
    parts = turns(held, 2)
    of_row = division.of(held.rows.uids)
    assert [len(part) for part in parts] == [1, 1]
    for machine, (part,) in enumerate(parts):
        np.testing.assert_array_equal(part, np.flatnonzero(of_row == machine))


def test_a_changed_row_is_found_by_the_machine_that_has_it(cache, two_machines, monkeypatch):
    changed = X.copy()
    changed[100] += 1
    with pytest.raises(CacheMismatch, match=f"uid {UIDS[100]} "):
        StudentTrainer(QUICK).distill(STUDENT, Rows(changed, UIDS, ROWS.labels), cache)
    rows = Rows(changed, UIDS, ROWS.labels)
    Collected(QUICK, divide_rows=True).distill(STUDENT, rows, cache)
    monkeypatch.setattr(trainer, "machines_of", lambda group: (1, 0))
    with pytest.raises(CacheMismatch, match=f"uid {UIDS[100]} "):
        Collected(QUICK, divide_rows=True).distill(STUDENT, rows, cache)


class StopAt(Callback):
    def on_step(self, state):
        if state.step == 40:
            raise InterruptedError


def test_a_resumed_training_has_the_same_bits_and_needs_the_same_machines(cache, two_machines, tmp_path):
    plain, options = StudentTrainer(QUICK, divide_rows=True), {"seed": 4, "validation": 0.1}
    expected = plain.distill(STUDENT, ROWS, cache, **options).module.state_dict()
    kept = {"checkpoint": tmp_path / "c", "checkpoint_every": 32}
    with pytest.raises(InterruptedError):
        StudentTrainer(QUICK, divide_rows=True, callbacks=[StopAt()]).distill(
            STUDENT, ROWS, cache, **options, **kept
        )
    with pytest.raises(CheckpointMismatch, match=r"rows of a batch by machine: the checkpoint has \[6, 6\]"):
        StudentTrainer(QUICK).distill(STUDENT, ROWS, cache, **options, **kept)
    resumed = plain.distill(STUDENT, ROWS, cache, **options, **kept).module.state_dict()
    other = StudentTrainer(QUICK).distill(STUDENT, ROWS, cache, **options).module.state_dict()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value)
        assert not torch.equal(other[name], value)


def test_refusals(cache, two_machines):
    with pytest.raises(TypeError, match=r"^divide_rows: expected True or False; got 'machine'"):
        StudentTrainer(divide_rows="machine")
    online = OnlineTeachers(Ensemble.from_members([MLP(8, [], 3).requires_grad_(False)]))
    with pytest.raises(ValueError, match=r"^divide_rows: expected a TargetCache.*; got OnlineTeachers"):
        StudentTrainer(QUICK, divide_rows=True).distill(STUDENT, ROWS, online)
    with pytest.raises(ValueError, match=r"^rows: expected at least one for each of the 2 processes; got 1"):
        StudentTrainer(QUICK, divide_rows=True).distill(STUDENT, ROWS.take(np.arange(1)), cache)
    more = Rows(np.tile(X, (2, 1)), np.arange(2 * N) + 900, np.full(2 * N, -100))
    for rows in (more, replace(more, inputs=Grouped([N, N]))):
        with pytest.raises(
            ValueError, match=r"^rows: expected rows with targets in the cache .*; got 300 rows"
        ):
            StudentTrainer(QUICK).distill(STUDENT, rows, cache, validation=0.1)
