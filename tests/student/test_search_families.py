"""The families of a search, the values that trials draw, and the order in which candidates are tried."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from ensdistill.common.completion import completed
from ensdistill.data import Rows
from ensdistill.data.batches import count, hashes
from ensdistill.data.preprocess import fitted, power_scaler
from ensdistill.data.samples import as_samples, form, sample_hashes
from ensdistill.student.search.build import estimator_setting, made
from ensdistill.student.search.families import FAMILIES, About, families_for, import_family
from ensdistill.student.search.finals import final_plan
from ensdistill.student.search.journal import Record
from ensdistill.student.search.pace import Pace
from ensdistill.student.search.policy import Policy
from ensdistill.student.search.rows import some_samples
from ensdistill.student.search.space import Space

SAMPLES = {
    "array": np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32),
    "images": np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32),
    "table": pd.DataFrame({"a": np.arange(40.0), "b": list("abcdefghij") * 4, "c": ["x", "y"] * 20}),
    "text": ["some words and others", "two words"] * 20,
}
EXPECTED = {
    "array": {"mlp", "boosted"},
    "images": {"mlp", "cnn"},
    "table": {"mlp", "embeddings", "boosted"},
    "text": {"ngrams", "transformer"},
}


SEEN = About("images", (1, 8, 8), 40, 40, 3)


def about_of(kind):
    described = form(as_samples(SAMPLES[kind]))
    return About(described["kind"], tuple(described.get("shape") or ()), 40, 40, 3)


@pytest.mark.parametrize("kind", SAMPLES)
def test_families_that_fit_the_samples_are_searched(kind):
    assert {family.name for family in families_for((), about_of(kind))} == EXPECTED[kind]


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_first_samples_are_in_the_container_that_models_take(kind):
    first = some_samples(Rows(SAMPLES[kind], np.arange(40), np.zeros(40, np.int64)), 3)
    assert type(first) is type(SAMPLES[kind])
    assert count(first) == 3
    assert hashes(first).tolist() == sample_hashes(as_samples(SAMPLES[kind]))[:3].tolist()


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k, names in EXPECTED.items() for n in sorted(names - {"boosted"})]
)
def test_candidates_are_built_for_the_samples_and_grow(kind, name):
    samples, sizes = as_samples(SAMPLES[kind]), []
    for candidate in import_family(name).candidates(about_of(kind)):
        preprocess = fitted(made(candidate.preprocess), samples, seed=0)
        two = samples[:2] if preprocess is None else preprocess(samples[:2])
        model = completed(candidate.model, two, 3, preprocess)()
        assert model(torch.as_tensor(two)).shape == (2, 3)
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert len(sizes) >= 2
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("dtype", "steps"), [("float32", 3), ("int64", 3), ("float16", 0)])
def test_numbers_are_scaled_by_powers_as_the_members_are(dtype, steps):
    about = About("array", (5,), 40, 40, 3, dtype=dtype)
    preprocess = import_family("mlp").candidates(about)[0].preprocess
    own = made(preprocess)
    assert len(getattr(own, "steps", ())) == steps
    if steps:
        x = SAMPLES["array"] ** 3
        expected = power_scaler().fit_transform(x)
        assert np.array_equal(own.fit_transform(x), expected)


def test_arrays_with_gaps_are_for_boosters():
    about = About("array", (5,), 40, 40, 3, gaps=True)
    assert {family.name for family in families_for((), about)} == {"boosted"}
    with pytest.raises(ValueError, match="'mlp' does not fit these samples: it takes arrays without gaps"):
        families_for(["mlp"], about)


def test_a_boosters_estimator_has_the_trials_values():
    candidate = import_family("boosted").candidates(about_of("array"))[0]
    space = Space(candidate, "student", 100, True, ("given",))
    own = made(estimator_setting(candidate.estimator, space.defaults()))
    assert (own.n_estimators, own.num_leaves, own.min_child_samples) == (30, 31, 20)


class Drawn:
    """A trial that takes the lowest or first value of everything."""

    def suggest_float(self, name, low, high, *, log=False):
        return low

    def suggest_int(self, name, low, high, *, log=False):
        return low

    def suggest_categorical(self, name, choices):
        return choices[0]


@pytest.mark.parametrize("role", ["student", "direct"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_trial_draws_the_values_that_the_defaults_have(role, name):
    kind = next(kind for kind, names in EXPECTED.items() if name in names)
    candidate = import_family(name).candidates(about_of(kind))[0]
    space = Space(candidate, role, 640, True, ("given", "other"))
    drawn = space.drawn(Drawn())
    assert drawn.keys() == space.defaults().keys()
    assert ("mixture" in drawn) == (role == "student")
    assert ("dropout" in drawn) == (name in ("mlp", "embeddings", "cnn", "ngrams", "transformer"))
    if candidate.model is not None:
        assert space.optimization(drawn).steps == {"direct": 160, "student": 32}[role]
    assert space.loss(drawn).alpha == (1.0 if role == "student" else 0.0)


def test_alpha_is_drawn_only_where_rows_have_labels():
    candidate = import_family("mlp").candidates(about_of("array"))[0]
    assert "alpha" in Space(candidate, "student", 64, True, ("given",)).defaults()
    assert "alpha" not in Space(candidate, "student", 64, False, ("given",)).defaults()


def record(role, candidate, value=1.0, seconds=1.0, state="done", **more):
    return Record(role, candidate, 0, more.pop("values", {}), state, seconds, value=value, **more)


def long(candidate, value=1.0, **more):
    return record("student", candidate, value, final=True, **more)


LADDER = Policy({"f": ("f/1", "f/2", "f/3", "f/4", "f/5")}, 0.9)


def test_direct_and_student_share_the_budget():
    assert LADDER.role([], True, None) == "direct"
    assert LADDER.role([record("direct", "f/3", seconds=3)], True, None) == "student"
    both = [record("direct", "f/3", seconds=3), record("student", "f/3", seconds=1)]
    assert LADDER.role(both, True, None) == "student"
    assert LADDER.role(both, False, 2) == "direct"
    assert LADDER.role(both, False, 1) is None


def test_settings_are_found_for_the_middle_size_of_the_best_family():
    policy = Policy({"f": ("f/1", "f/2", "f/3"), "g": ("g/1",)}, 0.9)
    tried = []
    for _ in range(8):
        key = policy.candidate("student", tried, {})
        tried.append(record("student", key, {"f/2": 2.0, "g/1": 1.0}[key]))
    keys = [one.candidate for one in tried]
    assert keys[:2] == ["f/2", "g/1"]
    assert (keys.count("g/1"), keys.count("f/2")) == (6, 2)
    within = Policy({"f": ("f/1", "f/2", "f/3")}, None)
    assert within.candidate("student", [], {}) == "f/3"  # the largest within the budget


def test_sizes_go_up_until_one_keeps_enough_and_down_between():
    def next_of(tried, kept):
        return LADDER.finalists(tried, kept)[0]

    tried = [record("student", "f/3", 1.0)]
    assert next_of(tried, {}) == "f/3"
    tried += [long("f/3", 0.9)]
    assert next_of(tried, {"f/3": 0.5}) == "f/4"
    assert next_of(tried, {"f/3": 0.95}) == "f/2"
    tried += [long("f/4", 0.8)]
    assert next_of(tried, {"f/3": 0.5, "f/4": 0.95}) == "f/3"
    tried += [long("f/3", 1.5)]
    # The size below does not keep enough: the two at the border become better in turn.
    assert next_of(tried, {"f/3": 0.5, "f/4": 0.95}) == "f/4"
    assert next_of([*tried, long("f/5")], {}) == "f/4"  # none keeps enough: the better of the best two


def test_the_best_two_families_have_a_long_training_each():
    policy = Policy({"f": ("f/1", "f/2"), "g": ("g/1",), "h": ("h/1",)}, 0.9)
    tried = [record("student", key, value) for key, value in (("f/2", 1.0), ("g/1", 2.0), ("h/1", 3.0))]
    assert policy.compared(tried) == ["f/2", "g/1"]
    tried.append(long("f/2", 0.9))
    assert policy.compared(tried) == ["g/1"]
    tried.append(long("g/1", 0.5))
    assert policy.compared(tried) == []
    far = [record("student", "f/2", 1.0), record("student", "g/1", 4.1)]
    assert policy.compared(far) == ["f/2"]
    assert policy.finalists(tried, {}) == ["g/1", "g/1", "f/2", "h/1"]


def test_a_size_of_boosters_begins_with_the_settings_of_its_family():
    policy = Policy({"boosted": ("boosted/medium", "boosted/large")}, 0.9)
    values = {"leaves": 7, "rate": 0.1, "rows": 20}
    tried = [record("student", "boosted/medium", values=values, final=final) for final in (False, True)]
    pace = Pace(tried, "student", dict.fromkeys(policy.ladders["boosted"]), 1000)
    plan = final_plan(policy, tried, {}, pace, None, 10.0)
    assert (plan.candidate, dict(plan.values)) == ("boosted/large", values)


def test_the_second_family_has_a_part_of_the_time():
    space = {}
    for name in ("mlp", "cnn"):
        one = import_family(name).candidates(SEEN)[2]
        space[one.key] = Space(one, "student", 1000, False, ("given",))
    best, second = space
    values = {"rate": 0.005, "batch": 256, "steps": 1.0}
    tried = [
        record("student", key, value, 1.0, values=values, steps=1000, parameters=10)
        for key, value in ((best, 1.0), (second, 2.0))
    ]
    policy = Policy({"mlp": (best,), "cnn": (second,)}, 0.9)

    def next_plan(left):
        pace = Pace(tried, "student", dict.fromkeys(space, 10), 1000)
        return final_plan(policy, tried, {}, pace, space.get, left)

    assert next_plan(10.0).candidate == best
    tried.append(record("student", best, 0.9, 4.0, values=values | {"steps": 4.0}, steps=4000, final=True))
    assert (next_plan(10.0).candidate, next_plan(3.6).candidate) == (second, best)


def plan_after(tried, left=1e9, kept=None):
    """The next long training of a ladder of MLPs, whose steps take a millisecond."""
    family = import_family("mlp").candidates(about_of("array"))[2:4]
    space = {one.key: Space(one, "student", 1000, False, ("given",)) for one in family}
    pace = Pace(tried, "student", {"mlp/32-32": 1000, "mlp/64-64": 4000}, 1000)
    policy = Policy({"mlp": tuple(space)}, 0.9)
    return final_plan(policy, tried, kept or {}, pace, space.get, left)


def trained(candidate="mlp/32-32", steps=1.0, value=1.0, final=False, **more):
    size = {"mlp/32-32": 1000, "mlp/64-64": 4000}[candidate]
    values = {"rate": 0.005, "batch": 256, "steps": steps, **more}
    seconds = steps * size / 1000
    return record(
        "student",
        candidate,
        value,
        seconds,
        values=values,
        final=final,
        steps=int(1000 * steps),
        parameters=size,
    )


def test_a_long_training_has_the_best_settings_and_four_times_the_steps():
    plan = plan_after([trained(rate=0.01, value=0.9), trained(value=1.0)])
    assert plan.candidate == "mlp/32-32"
    assert plan.whole
    assert (plan.values["rate"], plan.values["steps"]) == (0.01, 4.0)
    larger = plan_after([trained(), trained(steps=4.0, value=0.8, final=True)])
    assert larger.candidate == "mlp/64-64"
    assert (larger.values["rate"], larger.values["steps"]) == (0.005, 4.0)


def test_trainings_become_longer_as_long_as_that_helps():
    both = [trained(steps=4.0, value=0.8, final=True), trained("mlp/64-64", 4.0, 0.9, True)]
    again = plan_after(both)
    assert (again.candidate, again.values["steps"]) == ("mlp/32-32", 16.0)
    worse = [
        *both,
        trained(steps=16.0, value=0.85, final=True),
        trained("mlp/64-64", 4.0, 1.0, True, rate=0.1),
    ]
    drawn = plan_after(worse)
    assert (drawn.candidate, dict(drawn.values), drawn.whole) == ("mlp/32-32", {"steps": 4.0}, False)


def test_long_trainings_fit_into_the_time_that_is_left():
    tried = [trained()]
    assert plan_after(tried, left=4.0).values["steps"] == pytest.approx(0.6 * 4.0 / 1.25)
    assert plan_after(tried, left=0.5) is None


def test_with_time_for_few_long_trainings_the_first_is_of_the_largest_size_that_fits():
    tried = [trained()]
    assert plan_after(tried, left=100.0).candidate == "mlp/32-32"
    first = plan_after(tried, left=12.0)
    assert (first.candidate, first.whole) == ("mlp/64-64", True)
    assert 2 <= first.values["steps"] <= 4
    assert plan_after(tried, left=3.0).candidate == "mlp/32-32"  # a larger one would be too short
    tried.append(trained("mlp/64-64", 4.0, 0.8, True))
    assert plan_after(tried, 12.0, {"mlp/64-64": 0.95}).candidate == "mlp/32-32"


@pytest.mark.parametrize(
    ("parameters", "step", "expected"),
    [
        (1000, 1e-3, 1e-3),  # the size that was trained
        (9000, 1e-3, 1e-3 + 6 * 256 * 8000 / 1e10),  # all of it is overhead, but for the multiplications
        (4000, 0.1, 1.5e-3 + 98.5e-3 * 4**0.8),
        (100, 0.1, 0.1),  # smaller ones are not expected to be faster
    ],
)
def test_the_time_of_a_size_that_was_not_trained_yet(parameters, step, expected):
    done = record("student", "mlp/a", seconds=1000 * step, values={"batch": 256}, steps=1000, parameters=1000)
    pace = Pace([done], "student", {"mlp/a": 1000, "mlp/b": parameters}, 1000)
    assert pace.seconds("mlp/b", {"steps": 2.0}) == pytest.approx(1.25 * 2000 * expected)


def test_the_best_direct_candidate_has_two_trials_of_three():
    policy = Policy({"f": ("f/1", "f/2"), "g": ("g/1",)}, None)
    tried = []
    for _ in range(12):
        key = policy.candidate("direct", tried, {})
        tried.append(record("direct", key, {"f/1": 3.0, "f/2": 1.0, "g/1": 2.0}[key]))
    keys = [one.candidate for one in tried]
    assert set(keys[:3]) == {"f/1", "f/2", "g/1"}
    assert (keys.count("f/2"), keys.count("g/1"), keys.count("f/1")) == (7, 4, 1)
