"""The methods' losses: their papers' equations, their laws, and the settings that they refuse."""

import re

import method_forms as forms
import numpy as np
import pytest
import torch

from ensdistill.loss.targets import EnsembleLogits, LogProbs
from ensdistill.student.batches import Batch
from ensdistill.student.methods import METHODS, Mix, SoftTargets, build

B, C, K = 7, 5, 3
RNG = np.random.default_rng(3)
OUTPUTS = RNG.normal(0, 1.5, (B, C))
TEACHERS = RNG.normal(0, 2, (K, B, C))
WEIGHTS = np.array([0.5, 0.2, 0.3])
LABELS = np.array([0, 1, -100, 3, 4, 2, -100])
# {case: (method, form)}
CASES = {
    "kd": ("kd", forms.kd),
    "kd at 3": ({"kd": {"temperature": 3.0}}, lambda *a: forms.kd(*a, t=3.0)),
    "reverse_kl": ("reverse_kl", forms.reverse_kl),
    "jsd": ("jsd", forms.jsd),
    "tvd": ("tvd", forms.tvd),
    "labels": ("labels", forms.labels),
    "alpha_divergence": ("alpha_divergence", forms.alpha_divergence),
    "alpha_divergence of 3 at 2": (
        {"alpha_divergence": {"order": 3.0, "temperature": 2.0}},
        lambda *a: forms.alpha_divergence(*a, order=3.0, t=2.0),
    ),
    "alpha_divergence of -1": (
        {"alpha_divergence": {"order": -1}},
        lambda *a: forms.alpha_divergence(*a, order=-1),
    ),
    "alpha_divergence of 0": ({"alpha_divergence": {"order": 0}}, forms.reverse_kl),
    "alpha_divergence of 1": ({"alpha_divergence": {"order": 1}}, forms.kd),
    "mse": ("mse", forms.mse),
    "standardised": ("standardised", forms.standardised),
    "standardised dkd": (
        {"standardised": {"of": "dkd"}},
        lambda s, z, w, y: forms.dkd(forms.zscore(s), forms.zscore(z), w, y),
    ),
    "dkd": ("dkd", forms.dkd),
    "dkd of others": (
        {"dkd": {"alpha": 2.0, "beta": 0.5, "temperature": 1.5}},
        lambda *a: forms.dkd(*a, alpha=2.0, beta=0.5, t=1.5),
    ),
    "dist": ("dist", forms.dist),
    "dist of others": (
        {"dist": {"beta": 2.0, "gamma": 0.5, "temperature": 4.0}},
        lambda *a: forms.dist(*a, beta=2.0, gamma=0.5, t=4.0),
    ),
    "mlkd": ("mlkd", forms.mlkd),
    "weighted": ("weighted", forms.weighted),
    "weighted by minimum_ce": (
        {"weighted": {"by": "minimum_ce"}},
        lambda *a: forms.weighted(*a, by="minimum_ce"),
    ),
    "weighted by none": ({"weighted": {"by": "uniform"}}, lambda *a: forms.weighted(*a, by="uniform")),
    "rkd": ("rkd", forms.rkd),
    "rkd of distances": (
        {"rkd": {"distance": 3.0, "angle": 0.0}},
        lambda *a: forms.rkd(*a, distance=3.0, angle=0.0),
    ),
    "a mix": (
        {"labels": 1, "kd": {"weight": 2, "temperature": 4.0}, "dist": 0.5},
        lambda *a: forms.labels(*a) + 2 * forms.kd(*a, t=4.0) + forms.dist(*a) / 2,
    ),
}
# Losses that are 0 where the student is the only member.
ZERO = [name for name in CASES if name not in ("labels", "a mix")]


def batch_of(labels, **values):
    return Batch(None, None, labels, np.arange(len(labels)), 0, None, **values)


def loss_of(method, outputs=OUTPUTS, teachers=TEACHERS, weights=WEIGHTS, labels=LABELS, **values):
    """The loss, and its gradient [B, C]."""
    s = torch.tensor(outputs, dtype=torch.float32, requires_grad=True)
    targets = EnsembleLogits(torch.tensor(teachers, dtype=torch.float32), torch.tensor(weights))
    y = torch.from_numpy(labels)
    made = build(method) if isinstance(method, (str, dict)) else method
    loss = made(s, targets, y, batch_of(y, **values))
    loss.backward()
    return loss.item(), s.grad.numpy()


def slope(form, step=1e-5):
    """The gradient of a form by central differences in float64."""
    found = np.empty_like(OUTPUTS)
    for at in np.ndindex(*OUTPUTS.shape):
        ends = []
        for sign in (1, -1):
            moved = OUTPUTS.copy()
            moved[at] += sign * step
            ends.append(form(moved, TEACHERS, WEIGHTS, LABELS))
        found[at] = (ends[0] - ends[1]) / (2 * step)
    return found


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_papers_equation(case):
    method, form = CASES[case]
    loss, gradient = loss_of(method)
    expected = form(OUTPUTS, TEACHERS, WEIGHTS, LABELS)
    assert abs(loss - expected) < 2e-5 * max(1, abs(expected))
    slopes = slope(form)
    np.testing.assert_allclose(gradient, slopes, atol=1e-4 * max(1e-3, np.abs(slopes).max()))


def test_every_method_has_an_equation():
    apart = {"proxy_dirichlet", "endd", "hydra", "hints", "mutual"}  # in test_methods_apart.py
    assert set(METHODS) <= {name.split(" ")[0] for name in CASES} | apart


@pytest.mark.parametrize("case", ZERO)
def test_the_loss_of_the_teacher_itself_is_zero_and_of_another_is_not(case):
    only = {"teachers": OUTPUTS[None], "weights": np.ones(1)}
    loss, gradient = loss_of(CASES[case][0], **only)
    assert abs(loss) < 2e-6
    assert np.abs(gradient).max() < 1e-4
    assert loss_of(CASES[case][0], np.square(OUTPUTS), **only)[0] > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_the_order_of_classes_members_and_a_shift_do_not_count(case):
    method = CASES[case][0]
    loss, gradient = loss_of(method)
    classes, members = RNG.permutation(C), RNG.permutation(K)
    labels = np.where(LABELS >= 0, np.argsort(classes)[LABELS.clip(0)], LABELS)
    permuted, other = loss_of(method, OUTPUTS[:, classes], TEACHERS[:, :, classes], labels=labels)
    assert permuted == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(other, gradient[:, classes], atol=1e-4 * np.abs(gradient).max())
    swapped, _ = loss_of(method, teachers=TEACHERS[members], weights=WEIGHTS[members])
    assert swapped == pytest.approx(loss, rel=1e-4)
    shifts = RNG.normal(size=(K, B, 1))
    moved, _ = loss_of(method, OUTPUTS + 3, TEACHERS + shifts)
    assert moved == pytest.approx(loss, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", ["alpha_divergence", "mse", "dkd", "kd", "standardised"])
def test_rows_of_weight_zero_have_no_part(method):
    kept = np.array([1.0, 0, 1, 0, 1, 1, 0])
    loss, _ = loss_of(method)
    alone, _ = loss_of(method, OUTPUTS[kept > 0], TEACHERS[:, kept > 0], labels=LABELS[kept > 0])
    s = torch.tensor(OUTPUTS, dtype=torch.float32, requires_grad=True)
    targets = EnsembleLogits(torch.tensor(TEACHERS, dtype=torch.float32), torch.tensor(WEIGHTS))
    y, own = torch.from_numpy(LABELS), torch.tensor(kept / kept.mean(), dtype=torch.float32)
    weighted = build(method)(s, targets, y, batch_of(y, weights=own))
    assert weighted.item() == pytest.approx(alone, rel=1e-4)
    assert weighted.item() != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("case", [name for name in CASES if name != "a mix"])
def test_classes_that_a_teacher_rules_out_leave_a_finite_loss(case):
    teachers = TEACHERS.copy()
    teachers[:, 1, 3] = -np.inf
    if case in ("reverse_kl", "jsd"):
        teachers[0, 1, 3] = 0.0  # KL(q‖p) needs mass
    loss, gradient = loss_of(CASES[case][0], teachers=teachers)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("method", ["alpha_divergence", "dkd", "dist"])
def test_a_mixture_serves_at_its_own_temperature(method):
    t = build(method).temperature
    p = torch.tensor(forms.mixed(TEACHERS, WEIGHTS, t), dtype=torch.float32)
    s, y = torch.tensor(OUTPUTS, dtype=torch.float32), torch.from_numpy(LABELS)
    loss = build(method)(s, LogProbs(p.log(), temperature=t), y, batch_of(y))
    assert loss.item() == pytest.approx(loss_of(method)[0], rel=1e-4)


def test_one_method_of_weight_one_is_no_mix():
    assert isinstance(build({"kd": 1}), SoftTargets)
    assert isinstance(build({"kd": 2}), Mix)
    assert build({"kd": {"temperature": 4.0, "weight": 1}}).settings.temperature == 4
    loss = build("kd")
    assert build(loss) is loss


REFUSED = [
    ("dkdd", ValueError, r"^method: expected one of kd, .*; got 'dkdd'; did you mean dkd\?"),
    ({"dkd": {"betta": 1}}, TypeError, r"^method\.dkd\.betta: expected one of weight, alpha, .*; got 1"),
    (
        {"dkd": {"beta": -1}},
        ValueError,
        r"^method\.dkd\.beta: expected a finite number of at least 0; got -1",
    ),
    ({"dkd": {"temperature": 0}}, ValueError, r"^method\.dkd\.temperature: expected .*; got 0"),
    ({"kd": -1}, ValueError, r"^method\.kd\.weight: expected a finite number of at least 0; got -1"),
    ({"kd": "much"}, ValueError, r"^method\.kd\.weight: expected a finite number .*; got 'much'"),
    ({"kd": 0, "dkd": 0}, ValueError, "^method: expected a weight above 0; got"),
    ({"jsd": {"divergence": "tvd"}}, TypeError, r"^method\.jsd\.divergence: expected one of weight, "),
    (
        {"alpha_divergence": {"order": 9}},
        ValueError,
        r"^method\.alpha_divergence\.order: expected .* -5 to 5",
    ),
    ({"mlkd": {"pool": []}}, ValueError, r"^method\.mlkd\.pool: expected a list of temperatures; got \[\]"),
    ("hints", TypeError, r"^method\.hints: expected settings for student_layer and teacher_layer; got none"),
    (
        {"hints": {"student_layer": "1"}},
        TypeError,
        r"^method\.hints: expected settings for teacher_layer; got \{'student_layer': '1'\}",
    ),
    ({"standardised": {"of": "x"}}, ValueError, r"^method\.standardised\.of: expected one of kd.*got 'x'"),
    (
        {"no.such.thing": 1},
        ValueError,
        r"^method: expected the import path of a method, .*No module named 'no'",
    ),
    ({}, ValueError, "^method: expected at least one method; got none"),
    (3, TypeError, "^loss: expected LossSettings or a callable"),
]


@pytest.mark.parametrize(("method", "error", "message"), REFUSED, ids=[str(one[0]) for one in REFUSED])
def test_wrong_descriptions_are_refused(method, error, message):
    with pytest.raises(error) as caught:
        build(method)
    assert re.search(message, str(caught.value)), caught.value
