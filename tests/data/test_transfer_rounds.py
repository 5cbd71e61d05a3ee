"""Synthetic rows that are made anew for each version of a transfer set."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.tree import DecisionTreeRegressor

from ensdistill import (
    Ensemble,
    Optimization,
    Rows,
    StudentTrainer,
    cache_targets,
)
from ensdistill.cache import CacheMismatch
from ensdistill.data import Split
from ensdistill.data import batches as b
from ensdistill.data.transfer import Diversity, Exchange, Mixup, Munge, NGrams, TransferSet
from ensdistill.data.transfer.unseen import Unseen
from ensdistill.data.versions import describe_views, view_inputs
from ensdistill.student import CacheAsYouGo, OnlineTeachers
from ensdistill.student.trees import TreeStudent


def rows(inputs, first, labelled=True):
    count = b.count(inputs)
    labels = np.arange(count) % 2 if labelled else np.full(count, -100)
    return Rows(inputs, np.arange(first, first + count), labels.astype(np.int64))


def split(kind="array", n=40):
    x = np.random.default_rng(0).normal(size=(n + 30, 3)).astype(np.float32)
    if kind == "frame":
        x = pd.DataFrame(x, columns=["u", "v", "w"])
        x["c"] = pd.Categorical(np.array(["a", "b"])[np.arange(n + 30) % 2])
    if kind == "texts":
        x = [f"one two {i} three {i % 7} four" for i in range(n + 30)]
    parts = [b.take(x, np.arange(*bounds)) for bounds in ((0, n), (n, n + 10), (n + 10, n + 30))]
    return Split(rows(parts[0], 0), rows(parts[1], n, False), rows(parts[2], n + 10), ("no", "yes"))


SOURCES = {
    "array": [Exchange(rows=60, noise=0.2), Mixup(rows=20)],
    "frame": [Exchange(rows=60, noise=0.2), Munge(rows=20)],
    "texts": [NGrams(rows=80)],
}


def built(kind="array"):
    return TransferSet(synthetic=SOURCES[kind]).build(split(kind), seed=3)


def hashes(samples):
    return b.hashes(samples if isinstance(samples, np.ndarray) else samples[:])


@pytest.mark.parametrize("kind", list(SOURCES))
def test_synthetic_rows_are_new_in_each_version_and_the_others_stay(kind):
    made = built(kind)
    uids = made.rows.uids
    inputs = made.rows.inputs if kind == "array" else made.rows.inputs[:]
    versions = [hashes(view_inputs(made.rounds, inputs, uids, view, 5)) for view in range(4)]
    assert np.array_equal(versions[0], hashes(inputs))
    for one, other in [(0, 1), (1, 2), (2, 3), (1, 3)]:
        assert np.array_equal(versions[one][:50], versions[other][:50])
        same = np.isin(versions[one][50:], versions[other][50:]).mean()
        assert same < (0.9 if kind == "texts" else 0.2)
    assert not np.array_equal(hashes(view_inputs(made.rounds, inputs, uids, 1, 6)), versions[1])


@pytest.mark.parametrize("kind", list(SOURCES))
def test_a_version_is_the_same_for_any_rows_in_any_order_and_after_other_versions(kind):
    made = built(kind)
    inputs, uids = made.rows.inputs[:], made.rows.uids
    whole = hashes(view_inputs(made.rounds, inputs, uids, 7, 5))
    for view in (1, 2, 3, 4):  # more than are kept in memory
        view_inputs(made.rounds, inputs, uids, view, 5)
    some = np.random.default_rng(0).permutation(len(uids))[:37]
    again = view_inputs(made.rounds, b.take(inputs, some), uids[some], 7, 5)
    assert np.array_equal(hashes(again), whole[some])
    other = pickle.loads(pickle.dumps(TransferSet(synthetic=SOURCES[kind]).rounds(split(kind), seed=3)))
    for part in (slice(0, 20), slice(45, 60), slice(100, 120)):
        one = view_inputs(other, b.take(inputs, part), uids[part], 7, 5)
        assert np.array_equal(hashes(one), whole[part])


def networks():
    torch.manual_seed(0)
    return Ensemble.from_members([torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)])


def distil(source, made, steps=60, **more):
    trainer = StudentTrainer(Optimization(steps=steps, batch_size=16, learning_rate=0.01))
    torch.manual_seed(0)
    return trainer.distill(lambda: torch.nn.Linear(3, 2), made.rows, source, **more).module.weight.detach()


def test_a_cache_of_versions_holds_the_targets_of_the_rows_that_the_student_sees(tmp_path):
    made, ensemble = built(), networks()
    cache = cache_targets(ensemble, made.rows, tmp_path / "c", codec="fp32", views=3, augment=made.rounds)
    assert cache.views == 3
    for view in range(3):
        inputs = view_inputs(made.rounds, made.rows.inputs, made.rows.uids, view, 0)
        expected = ensemble.predict_logits(inputs).numpy()
        assert np.allclose(cache.gather_logits(made.rows.uids, view), expected, atol=1e-6)
    assert cache.verify_against(ensemble, made.rows, share=1.0, augment=made.rounds) == 130
    from_cache = distil(cache, made, augment=made.rounds)
    # 130 rows in batches of 16: the 24 steps of the first three epochs are the same with online teachers.
    online = OnlineTeachers(ensemble, augment=made.rounds)
    as_you_go = CacheAsYouGo(ensemble, tmp_path / "go", codec="fp32", views=3, augment=made.rounds)
    assert torch.equal(distil(online, made, 24), distil(cache, made, 24, augment=made.rounds))
    assert torch.equal(distil(as_you_go, made), from_cache)
    assert not torch.equal(distil(online, made), from_cache)  # which sees new rows in its later epochs


def test_a_tree_learns_from_all_versions(tmp_path):
    made, ensemble = built(), networks()
    cache = cache_targets(ensemble, made.rows, tmp_path / "c", views=3, augment=made.rounds)
    tree = TreeStudent(DecisionTreeRegressor(min_samples_leaf=1))
    found = tree.fit(made.rows, cache, augment=made.rounds, validation=None)
    for view in range(3):
        inputs = view_inputs(made.rounds, made.rows.inputs, made.rows.uids, view, 0)
        agrees = found.member.predict_logits(inputs).argmax(-1) == ensemble.predict_proba(inputs).argmax(-1)
        assert agrees.all()


def test_a_training_that_is_resumed_ends_with_the_same_bits(tmp_path):
    made, ensemble = built(), networks()
    source = lambda: OnlineTeachers(ensemble, augment=built().rounds)  # noqa: E731
    whole = distil(source(), made, 96)
    folder = tmp_path / "t"

    class Killed(Exception):
        pass

    def stop(done, total):
        if done >= 64:
            raise Killed

    with pytest.raises(Killed):
        distil(source(), made, 96, checkpoint=folder, checkpoint_every=32, progress=stop)
    assert torch.equal(distil(source(), made, 96, checkpoint=folder, checkpoint_every=32), whole)


def test_a_cache_of_other_rounds_is_refused(tmp_path):
    made, ensemble = built(), networks()
    cache = cache_targets(ensemble, made.rows, tmp_path / "c", views=2, augment=made.rounds)
    other = TransferSet(synthetic=[Exchange(rows=60, noise=0.3), Mixup(rows=20)]).rounds(split(), seed=3)
    assert "60 by Exchange" in describe_views(other, 2, 0)["augment"]
    with pytest.raises(CacheMismatch, match="augment: not the one"):
        distil(cache, made, augment=other)
    with pytest.raises(CacheMismatch, match="augment"):
        distil(cache, made)


def test_rounds_are_refused_where_no_rows_of_a_transfer_set_are_changed():
    made = built()
    trainer = StudentTrainer(Optimization(steps=2, batch_size=8))
    labelled = split().labelled
    with pytest.raises(TypeError, match="augment: expected an augmentation of single samples"):
        trainer.direct(lambda: torch.nn.Linear(3, 2), labelled, classes=2, augment=made.rounds)
    with pytest.raises(ValueError, match=r"uids: expected those of the transfer set, 0..129; got 130"):
        view_inputs(made.rounds, made.rows.inputs[:1], np.array([130]), 1, 0)


class Shrinking(Mixup):
    """A source that makes fewer rows than it should, the second time."""

    def make(self, base, generator):
        made = super().make(base, generator)
        return made[: len(made) - getattr(Shrinking, "less", 0)]


def test_sources_that_cannot_make_rows_anew_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"transfer.synthetic: expected a source of rows .* got none"):
        TransferSet().rounds(split(), 0)
    both = TransferSet(synthetic=[Diversity(rows=4)])
    with pytest.raises(ValueError, match=r"transfer.synthetic.0 \(Diversity\): .*views: 1"):
        both.rounds(split(), 0)
    rounds = TransferSet(synthetic=[Shrinking(rows=9)]).rounds(split(), 0)
    monkeypatch.setattr(Shrinking, "less", 2, raising=False)
    with pytest.raises(
        ValueError, match=r"transfer.synthetic.0 \(Shrinking\): expected as many rows .* 9; got 7"
    ):
        rounds.version(np.zeros((1, 3), np.float32), np.array([50]), 1, 0)


def coarse_split():
    x = np.random.default_rng(0).integers(0, 3, size=(400, 4)).astype(np.float32)
    known = np.unique(x[:300], axis=0)
    test = np.array(
        [row for row in np.unique(x, axis=0) if not (known[: len(known) // 2] == row).all(1).any()]
    )
    return Split(
        rows(known[: len(known) // 2], 0), rows(test[:0], 200, False), rows(test, 300), ("no", "yes")
    )


def test_no_synthetic_row_equals_a_test_row():
    parts = coarse_split()
    source = Exchange(rows=500, neighbours=5, probability=0.5)
    test = {tuple(row) for row in parts.test.inputs.tolist()}
    plain = source.make(parts.labelled.inputs, np.random.default_rng(0))
    hits = np.mean([tuple(row) in test for row in plain.tolist()])
    assert 0.01 < hits < 0.5
    made = TransferSet(synthetic=[source]).build(parts, 0)
    first = len(parts.labelled)
    assert made.origin[-1] == ("exchange", 500)
    assert not any(tuple(row) in test for row in made.rows.inputs[first:].tolist())
    later = made.rounds.version(made.rows.inputs, made.rows.uids, 1, 0)
    assert len(later) == len(made.rows)
    assert not any(tuple(row) in test for row in later[first:].tolist())


def test_a_source_that_gives_test_rows_on_purpose_is_left_to_the_check_for_copies():
    test = np.arange(12.0).reshape(6, 2)
    given = np.concatenate([test, test[:1] + 0.5])
    assert np.array_equal(Unseen(test)(given, np.random.default_rng(0)), given)
    few = np.concatenate([test[:2], given[-1:], np.full((2, 2), -0.0)])
    made = Unseen(np.concatenate([test, np.zeros((1, 2))]))(few[[0, 2, 2, 2, 3]], np.random.default_rng(0))
    assert np.array_equal(made, np.repeat(given[-1:], 5, 0))  # -0.0 equals 0.0
