"""Fits to a handful of held-out rows: on other rows they may not be much worse than no fit,
at any scale of the logits."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import log_softmax

from ensdistill.cache import cache_targets
from ensdistill.data import Rows
from ensdistill.job.scaling import fit_temperature_to
from ensdistill.teachers import Ensemble
from ensdistill.teachers.fitting.calibration import (
    fit_mixture_temperature,
    fit_temperature,
    fit_weights,
    log_mixture,
    negative_log_likelihood,
)
from ensdistill.teachers.fitting.vector_scaling import fit_vector
from ensdistill.teachers.members import ArrayMember

SCALES = (1e-4, 0.05, 0.5, 1.0, 1.0, 1.0, 3.0, 50.0, 1e3, 1e6)
OTHERS = 400


@dataclass
class Draw:
    """Members' logits and labels of rows to fit to, and of other rows."""

    seen: np.ndarray  # [K, n, C]
    labels: np.ndarray  # [n]
    others: np.ndarray  # [K, OTHERS, C]
    other_labels: np.ndarray  # [OTHERS]
    scale: float
    by_class: bool  # whether the rows were chosen by their class, so that they are no sample of the others


@functools.lru_cache(maxsize=1000)
def draw(seed: int) -> Draw:
    """One of four kinds: labels drawn from the first member's logits, separable, unequal members, and sure
    members that are seldom wrong.

    Of all of them: 5 to 50 rows, 2 to 60 classes of unequal frequency, 2 to 6 members, ten scales; in three
    of ten draws the rows hold few classes only.
    """
    rng = np.random.default_rng(seed)
    n, classes, members = (
        int(rng.integers(5, 51)),
        int(rng.choice([2, 2, 3, 5, 10, 20, 60])),
        int(rng.choice([2, 3, 4, 6])),
    )
    rows, shape = n + OTHERS, (n + OTHERS, classes)
    frequency = rng.dirichlet(np.full(classes, rng.choice([0.3, 1, 20])))
    labels = rng.choice(classes, size=rows, p=frequency)
    eye = np.eye(classes)
    if seed % 4 == 0:
        first = rng.choice([0.7, 1.5, 3.0, 6.0]) * rng.normal(size=shape) + np.log(frequency + 1e-3)
        labels = (first + rng.gumbel(size=shape)).argmax(1)
        z = [first + (k > 0) * rng.choice([0.0, 0.3, 1.0]) * rng.normal(size=shape) for k in range(members)]
    elif seed % 4 == 1:
        z = [rng.choice([2.0, 6.0]) * eye[labels] + 0.3 * rng.normal(size=shape) for _ in range(members)]
    elif seed % 4 == 2:
        z = [
            rng.uniform(0.3, 6) * eye[labels] + rng.uniform(0.5, 2) * rng.normal(size=shape)
            for _ in range(members)
        ]
    else:
        common = np.where(
            rng.random(rows) < rng.choice([0.01, 0.05, 0.15]), rng.integers(classes, size=rows), labels
        )
        own = [
            np.where(rng.random(rows) < 0.03, rng.integers(classes, size=rows), common)
            for _ in range(members)
        ]
        z = [rng.choice([4.0, 8.0]) * eye[answers] + rng.normal(size=shape) for answers in own]
    chosen, by_class = np.arange(n), rng.random() < 0.3
    if by_class:
        chosen = np.argsort(labels[: 3 * n], kind="stable")[:n]
    scale = SCALES[seed // 4 % len(SCALES)]
    factors = scale * (np.ones(members) if rng.random() < 0.5 else np.exp(rng.normal(size=members)))
    values = (np.stack(z) * factors[:, None, None]).astype(np.float32)
    rest = np.setdiff1d(np.arange(rows), chosen)
    return Draw(values[:, chosen], labels[chosen], values[:, rest], labels[rest], scale, by_class)


def own(z, labels):
    return negative_log_likelihood(log_softmax(np.asarray(z, np.float64), axis=-1), labels)


def mixed(z, labels, weights=None, temperature=1.0, combiner="prob"):
    weights = np.full(len(z), 1 / len(z)) if weights is None else weights
    return negative_log_likelihood(log_mixture(z, weights, combiner, temperature), labels)


def of_temperature(d):
    """A member's; also that of *direct with temperature scaling*."""
    return own(d.others[0] / fit_temperature(d.seen[0], d.labels), d.other_labels) - own(
        d.others[0], d.other_labels
    )


def of_student(d):
    """A student's temperature, fitted to certain predictions."""
    fitted = fit_temperature_to(d.seen[0], np.eye(d.seen.shape[2])[d.labels])
    return own(d.others[0] / fitted, d.other_labels) - own(d.others[0], d.other_labels)


def of_vector(d):
    scale, bias = fit_vector(d.seen[0], d.labels)
    return own(d.others[0] * scale + bias, d.other_labels) - own(d.others[0], d.other_labels)


def of_mixture_temperature(d):
    fitted = fit_mixture_temperature(d.seen, np.full(len(d.seen), 1 / len(d.seen)), d.labels)
    return mixed(d.others, d.other_labels, temperature=fitted) - mixed(d.others, d.other_labels)


def of_weights(d):
    return mixed(d.others, d.other_labels, fit_weights(d.seen, d.labels)) - mixed(d.others, d.other_labels)


def of_ensemble(d, fit):
    ensemble = fit(Ensemble.from_members(list(d.others)))
    kept = [int(name.split("-")[1]) - 1 for name in ensemble.names]
    fitted = mixed(ensemble.apply_temperatures(d.others[kept]), d.other_labels, ensemble.weights)
    return fitted - mixed(d.others, d.other_labels)


def of_all(d):
    return of_ensemble(d, lambda e: e.calibrate(d.seen, d.labels).weigh(d.seen, d.labels))


def of_pooled(d):
    return of_ensemble(d, lambda e: e.calibrate(d.seen, d.labels, method="pooled").weigh(d.seen, d.labels))


def of_vectors(d):
    return of_ensemble(d, lambda e: e.calibrate(d.seen, d.labels, method="vector").weigh(d.seen, d.labels))


def of_selection(d):
    return of_ensemble(d, lambda e: e.calibrate(d.seen, d.labels).select(d.seen, d.labels))


def of_selection_alone(d):
    """Without calibration, so that the logits may be of any scale."""
    return of_ensemble(d, lambda e: e.select(d.seen, d.labels))


SINGLE = (of_temperature, of_student, of_vector, of_mixture_temperature, of_weights)
WHOLE = (of_all, of_pooled, of_vectors)
CHOSEN = (of_selection, of_selection_alone)


def check(kind, seeds, by_class=0.1):
    """At most 0.02 nats worse on average, and 0.1 at worst; ``by_class`` at worst where the rows were chosen
    by their class."""
    worse = np.array([kind(draw(seed)) for seed in seeds])
    # A gain counts up to half a nat: at scale 1e6 a single one would hide every loss.
    assert np.maximum(worse, 0).mean() <= 0.02
    assert np.maximum(worse, -0.5).mean() < 0  # the guard doesn't leave all as it is
    for seed, value in zip(seeds, worse, strict=True):
        assert value <= (by_class if draw(seed).by_class else 0.1), (
            f"seed {seed}: {value:.3f} nats worse than unfitted"
        )


@pytest.mark.parametrize("kind", SINGLE)
def test_few_rows_do_not_mislead(kind):
    check(kind, range(80))


@pytest.mark.parametrize("kind", WHOLE)
def test_few_rows_do_not_mislead_a_whole_ensemble(kind):
    check(kind, range(20))


@pytest.mark.parametrize("kind", CHOSEN)
def test_few_rows_do_not_mislead_a_selection(kind):
    """Draw 112 cost 20 nats, and others without calibration up to a million, where a saturated member was
    left alone."""
    check(kind, [*range(20), 112])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "draws"),
    [*((kind, 200) for kind in (*SINGLE, *CHOSEN)), *((kind, 40) for kind in WHOLE)],
)
def test_few_rows_do_not_mislead_in_more_draws(kind, draws):
    check(kind, range(draws))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHOSEN)
def test_a_selection_from_few_rows_is_bounded_with_other_seeds(kind):
    """A few draws lose more than 0.1 nats, because members were left out; none loses a multiple of log(rows ·
    classes)."""
    worse = np.array([kind(draw(seed)) for seed in range(10_000, 11_000)])
    assert np.maximum(worse, 0).mean() <= 0.02
    assert worse.max() <= 0.5
    assert (worse > 0.1).mean() <= 0.03


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SINGLE, *WHOLE])
def test_few_rows_do_not_mislead_with_other_seeds(kind):
    check(kind, range(10_000, 11_000), by_class=0.2)


@pytest.mark.parametrize("combiner", ["prob", "logit"])
def test_members_of_a_huge_scale_are_calibrated_and_weighed_near_the_best(combiner):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=600)
    z = np.array([1e6, 3e5])[:, None, None] * (np.eye(3)[labels] + rng.normal(0, 0.6, (2, 600, 3)))
    seen, other = z[:, :150].astype(np.float32), z[:, 150:].astype(np.float32)
    ensemble = Ensemble.from_members(list(other), combiner=combiner).calibrate(seen, labels[:150])
    for k in range(2):
        least = min(own(seen[k] / t, labels[:150]) for t in np.exp(np.linspace(8, 20, 400)))
        assert own(seen[k] / ensemble.temperatures[k], labels[:150]) < least + 0.001
    weighed = ensemble.weigh(seen, labels[:150])
    assert mixed(weighed.apply_temperatures(other), labels[150:], weighed.weights, combiner=combiner) < 0.5
    raw = Ensemble.from_members(list(other), combiner=combiner).weigh(
        seen, labels[:150]
    )  # without calibration: one temperature
    assert mixed(raw.apply_temperatures(other), labels[150:], raw.weights, combiner=combiner) < 0.7


def test_a_few_rows_that_are_all_right_do_not_sharpen_sharp_logits():
    z = 1e3 * np.eye(4)
    assert fit_temperature(z, np.arange(4)) == pytest.approx(1, abs=1e-6)
    assert 0.5 < fit_temperature(3 * np.eye(4), np.arange(4)) < 1
    assert fit_temperature(3 * np.eye(4), np.arange(4), prior_rows=0) < 0.01


def test_a_class_without_a_row_is_not_made_rarer():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 3))
    labels = np.where(z[:, 0] > z[:, 1], 0, 1)
    scale, bias = fit_vector(z, labels)
    temperature = fit_temperature(z, labels)
    assert bias[2] == 0
    assert scale[2] == pytest.approx(1 / temperature)
    assert bias[:2].sum() == pytest.approx(0, abs=1e-9)
    assert np.log(scale[:2] * temperature).sum() == pytest.approx(0, abs=1e-9)
    labels[:] = 0  # one class alone shows nothing of the classes' scales
    np.testing.assert_allclose(
        fit_vector(z, labels), [np.full(3, 1 / fit_temperature(z, labels)), np.zeros(3)]
    )


def test_masked_and_equal_rows():
    z = np.array([[0.0, -np.inf, 1.0], [2.0, -np.inf, -np.inf], [1.0, 1.0, 1.0]] * 10)
    labels = np.array([2, 0, 1] * 10)
    assert 0 < fit_temperature(z, labels) < np.inf
    assert np.isfinite(fit_vector(z, labels)).all()
    assert fit_temperature(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1
    assert fit_temperature(np.zeros((4, 1)), np.zeros(4, np.int64)) == 1
    with pytest.raises(ValueError, match="prior_rows: expected a number of at least 0; got nan"):
        fit_temperature(z, labels, prior_rows=np.nan)


def test_a_cache_of_huge_logits_is_calibrated_and_weighed(tmp_path):
    rng = np.random.default_rng(0)
    labels, x = rng.integers(3, size=200), np.arange(200.0)[:, None].astype(np.float32)
    z = (1e6 * (np.eye(3)[labels] + rng.normal(0, 0.6, (2, 200, 3)))).astype(np.float32)
    z[:, 1] = [1e6, -1e6, 3e-6]
    ensemble = Ensemble.from_members([ArrayMember(x, logits=m, name=f"m{i}") for i, m in enumerate(z)])
    rows = Rows(x, np.arange(200), labels)
    cache = cache_targets(ensemble, rows, tmp_path / "c", codec="fp32")
    from_cache, from_array = (Ensemble.from_members(ensemble.members) for _ in range(2))
    from_cache.calibrate(cache, labels, uids=rows.uids).weigh(cache, labels, uids=rows.uids)
    from_array.calibrate(z, labels).weigh(z, labels)
    np.testing.assert_allclose(from_cache.temperatures, from_array.temperatures, rtol=0.02)
    np.testing.assert_allclose(from_cache.weights, from_array.weights, atol=0.02)
    assert mixed(from_cache.apply_temperatures(z), labels, from_cache.weights) < 0.5
    # At the temperatures of students, eight bits hold the likeliest class of such a row. A fit looks at the
    # other classes.
    coarse = cache_targets(ensemble, rows, tmp_path / "uint8")
    with pytest.raises(
        ValueError,
        match=r"\(uint8\) has rows without the logits of classes far below the likeliest, .* codec fp32",
    ):
        from_cache.calibrate(coarse, labels, uids=rows.uids)
