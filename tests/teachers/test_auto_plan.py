"""The plan of ``teachers: auto``: a rule of cost, the packages that are there, and members that can be trained."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

from ensdistill.data import Rows
from ensdistill.teachers.auto import Facts, Plan, auto_plan, facts_of, plan, portfolio
from ensdistill.teachers.auto.portfolio import PORTFOLIO, Entry
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.members import load_member
from ensdistill.teachers.prepared import prepare_recipes

X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
FRAME = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": np.where(X[:, 2] > 0, "x", "y")})
FRAME.loc[3, "a"], FRAME.loc[4, "c"] = None, None


OF_CLASSES = [entry for entry in PORTFOLIO if "classification" in entry.tasks]


def names(planned):
    return [member.name for member in planned.members]


def without(monkeypatch, *packages):
    real = importlib.util.find_spec
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name in packages else real(name))


def test_facts_count_columns_of_numbers_and_categories():
    assert facts_of(FRAME, 2) == Facts("table", 120, 2, numbers=2, categories=1)
    assert facts_of(X, 3) == Facts("array", 120, 3, numbers=4)


@pytest.mark.parametrize(
    ("samples", "got"),
    [
        (np.zeros((3, 1, 8, 8)), r"array \[N, 1, 8, 8\]"),
        (["a text", "another"], "text"),
        ({"a": X, "b": X}, "mapping"),
    ],
)
def test_other_samples_are_refused_with_the_kinds_that_are_taken(samples, got):
    with pytest.raises(
        ValueError, match=rf"^teachers: auto: expected a table, or an array .*; got {got}: name"
    ):
        auto_plan(samples, 3)


@pytest.mark.parametrize("minutes", [0.05, 0.5, 4.0])
def test_a_plan_keeps_within_the_budget_and_no_member_takes_most_of_it(minutes):
    planned = auto_plan(X, 2, minutes=minutes)
    assert 0 < planned.seconds <= 60 * minutes
    assert len(planned.members) == 1 or max(m.seconds for m in planned.members) <= 15 * minutes
    assert {*names(planned), *planned.left_out} == {entry.name for entry in OF_CLASSES}
    assert not {*names(planned)} & {*planned.left_out}


def test_a_plan_depends_on_sizes_and_minutes_alone():
    assert auto_plan(X, 2, minutes=1) == auto_plan(X[::-1] * 5, 2, minutes=1)
    few, many = auto_plan(X, 26, minutes=0.5), auto_plan(np.tile(X, (50, 1)), 26, minutes=0.5)
    assert few.seconds > 0
    assert len(many.members) < len(few.members)


def test_more_minutes_buy_larger_members():
    first, second = (auto_plan(X, 2, minutes=m).members[0] for m in (0.05, 4))
    assert first.name != second.name or first.seconds < second.seconds


def test_too_small_a_budget_names_the_least_which_is_enough():
    with pytest.raises(
        ValueError, match=r"^minutes: expected at least [\d.]+, the time of the cheapest"
    ) as found:
        auto_plan(X, 2, minutes=1e-4)
    least = float(str(found.value).split()[4].rstrip(","))
    assert len(names(auto_plan(X, 2, minutes=least))) == 1


@pytest.mark.parametrize(
    ("minutes", "kind"), [(0, ValueError), (np.inf, ValueError), ("2", TypeError), (True, TypeError)]
)
def test_a_budget_that_is_none_is_refused(minutes, kind):
    with pytest.raises(kind, match=r"^minutes: expected a"):
        auto_plan(X, 2, minutes=minutes)


def test_members_without_their_package_are_left_out_with_the_extra_that_has_it(monkeypatch):
    without(monkeypatch, "lightgbm", "rtdl_num_embeddings")
    planned = auto_plan(X, 2)
    assert "lightgbm" not in names(planned)
    assert "extra_trees" in names(planned)
    assert planned.left_out["lightgbm"] == "needs the package lightgbm: pip install 'ensdistill[trees]'"
    assert "ensdistill[table]" in planned.left_out["mlp_piecewise"]


def test_a_plan_is_read_back_as_it_was_written():
    planned = auto_plan(FRAME, 2, minutes=1)
    again = Plan.of(planned.plain())
    assert again.plain() == planned.plain()
    assert [r.fingerprint() for r in again.recipes] == [r.fingerprint() for r in planned.recipes]


@pytest.mark.parametrize("plain", [{}, {"minutes": 1}, "text", {**auto_plan(X, 2).plain(), "members": [3]}])
def test_a_plan_that_is_none_is_refused(plain):
    with pytest.raises(ValueError, match=r"^plan: expected minutes, folds, rows"):
        Plan.of(plain)


def test_a_plan_with_a_member_that_cannot_be_made_names_the_remedy(monkeypatch):
    plain = auto_plan(X, 2).plain()
    unknown = {**plain, "members": [{"name": "oracle", "size": {}, "seconds": 1.0}]}
    with pytest.raises(
        ValueError, match=r"has the member 'oracle', which this version does not have: delete"
    ):
        _ = Plan.of(unknown).recipes

    def missing(*_):
        raise ImportError("no lightgbm")

    entry = PORTFOLIO[0]
    monkeypatch.setattr(
        plan, "PORTFOLIO", (Entry(entry.name, entry.sizes, missing, entry.seconds, entry.package),)
    )
    with pytest.raises(ValueError, match=r"member 'lightgbm', but needs the package lightgbm: pip install"):
        _ = Plan.of({**plain, "members": plain["members"][:1]}).recipes


@pytest.mark.parametrize("samples", ["frame", "array"])
def test_every_member_is_trained_saved_and_loaded(samples, monkeypatch, tmp_path):
    monkeypatch.setattr(portfolio, "LEAST_STEPS", 3)
    x = FRAME if samples == "frame" else np.where(X > 2, np.nan, X)
    facts = facts_of(x, 2)
    few = {"rounds": 12, "learning_rate": 0.3, "trees": 3, "epochs": 0.5}
    rows = Rows(x, np.arange(len(Y)), Y)
    data = TrainingRows(rows.inputs, Y, ("no", "yes"))
    for entry in OF_CLASSES:
        recipe = entry.make(entry.name, facts, few)
        recipe.check_storable()
        (own,) = prepare_recipes([recipe], rows.inputs, 2, 0)
        ((_, member),) = own.fit(data, own.jobs(Y, 0))
        logits = member.predict_logits(x)
        member.save(tmp_path / entry.name)
        again = load_member(tmp_path / entry.name, recipe.trusted).predict_logits(x)
        assert logits.shape == (120, 2), entry.name
        assert np.isfinite(logits.max(1)).all(), entry.name
        np.testing.assert_allclose(again, logits, rtol=0, atol=1e-4, err_msg=entry.name)
        assert (logits.argmax(1) == Y).mean() > 0.75 or "mlp" in entry.name, entry.name


def test_estimates_grow_with_rows_columns_classes_and_size():
    small, large = Facts("array", 500, 3, 10), Facts("array", 5000, 3, 10)
    wide, more = Facts("array", 500, 3, 100), Facts("array", 500, 30, 10)
    for entry in OF_CLASSES:
        sizes = [entry.seconds(small, size) for size in entry.sizes]
        assert sizes == sorted(sizes, reverse=True), entry.name
        assert sizes[-1] > 0, entry.name
        base = sizes[0]
        assert entry.seconds(large, entry.sizes[0]) > base < entry.seconds(wide, entry.sizes[0]), entry.name
        assert entry.seconds(more, entry.sizes[0]) >= base, entry.name
