"""Calls with the signature of an earlier one, which give the kernel addresses only: the same results, and no
check is lost."""

import copy
import gc
import math
from dataclasses import replace

import pytest
import torch
from closed_forms import make_codes, make_logits, make_top_k

from ensdistill.functional import distillation_loss
from ensdistill.loss import ops, prepared
from ensdistill.loss.settings import DEFAULTS, LossSettings
from ensdistill.loss.targets import Counts, EnsembleLogits, LogProbs, Probs, TopK

N, C, K = 7, 10, 3
LABELS = torch.tensor([3, -100, 0, 9, 1, 2, 2])
LOGITS = make_logits(K, N, C, seed=1)
ROWS = torch.linspace(0, 3, N, dtype=torch.float64)
CLASSES = torch.linspace(0.5, 2, C, dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)


def top_k(**changes):
    top = make_top_k(N, C, 4, seed=1)
    return replace(top, ids=top.ids.long(), **changes)


CASES = {
    "logits": (LOGITS, {}),
    "one member": (LOGITS[0], {}),
    "bfloat16": (LOGITS.bfloat16(), {"divergence": "jsd", "beta": 0.3}),
    "float64": (LOGITS.double(), {"reduction": "none"}),
    "transposed members": (make_logits(N, K, C, seed=2).transpose(0, 1), {"divergence": "reverse_kl"}),
    "labels": (LOGITS, {"labels": LABELS, "alpha": 0.4, "label_smoothing": 0.1, "class_weights": CLASSES}),
    "rows": (LOGITS, {"sample_weights": ROWS, "reduction": "batchmean", "z_loss": 0.01}),
    "weights": (LOGITS, {"weights": SHARES, "combiner": "logit"}),
    "listed weights": (LOGITS, {"weights": [0.5, 0, 2.0]}),
    "members": (EnsembleLogits(LOGITS, SHARES, "log_prob"), {}),
    "codes": (make_codes(K, N, C, seed=1, masked=True), {}),
    "probs": (Probs(LOGITS.softmax(-1), temperature=2.0), {}),
    "top-k": (top_k(temperature=2.0), {"divergence": "tvd"}),
    "renormalised": (top_k(temperature=2.0), {"tail": "renormalize", "labels": LABELS, "alpha": 0.9}),
    "zero": (top_k(temperature=2.0, classes=C), {"tail": "zero", "reduction": "sum"}),
}


@pytest.fixture
def runs(monkeypatch):
    """The results of prepared kernels, in their order."""
    results, run = [], prepared.Prepared.run

    def noted(*arguments):
        results.append(run(*arguments))
        return results[-1]

    monkeypatch.setattr(prepared.Prepared, "run", noted)
    prepared._prepared.clear()
    yield results
    prepared._prepared.clear()


def student_logits(dtype=torch.float32):
    return make_logits(N, C, seed=0, dtype=dtype).requires_grad_()


def call(targets, arguments, student=None):
    student = student_logits() if student is None else student
    loss = distillation_loss(student, targets, temperature=2.0, **arguments)
    return loss.detach(), torch.autograd.grad(loss.sum(), student)[0]


@pytest.mark.parametrize("name", CASES)
def test_a_later_call_has_the_same_bits(name, runs):
    targets, arguments = CASES[name]
    first = call(targets, arguments)
    assert not runs
    for _ in range(2):
        assert all(map(torch.equal, call(targets, arguments), first))
    assert len(runs) == 2
    assert all(x is not None for x in runs)
    with torch.no_grad():
        assert torch.equal(
            distillation_loss(student_logits(), targets, temperature=2.0, **arguments), first[0]
        )


@pytest.mark.parametrize("name", CASES)
def test_later_values_are_the_later_calls_own(name, runs):
    targets, arguments = CASES[name]
    call(targets, arguments)
    other = make_logits(N, C, seed=5).requires_grad_()
    found = call(targets, arguments, other)
    assert len(runs) == 1
    prepared._prepared.clear()
    assert all(map(torch.equal, found, call(targets, arguments, other)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_and_strides_of_the_student(dtype, runs):
    wide = make_logits(N, C + 6, seed=3, dtype=dtype)[:, :C].requires_grad_()
    first = call(LOGITS, {}, wide)
    assert all(map(torch.equal, call(LOGITS, {}, wide), first))
    assert len(runs) == 1
    parameter = torch.nn.Parameter(wide.detach().clone())
    call(LOGITS, {}, parameter)
    assert all(map(torch.equal, call(LOGITS, {}, parameter), first))
    assert len(runs) == 2


# Values
# ------------------------------------------------------------------------------------------------------------


def bad(tensor, index, value):
    changed = tensor.clone()
    changed[index] = value
    return changed


TOP = top_k(temperature=2.0)
WRONG = {
    "labels: expected 0..9 or ignore_index -100; got 10 in row 2": (LOGITS, {"labels": (LABELS, 2, 10)}),
    "labels: .* got -1 in row 6": (LOGITS, {"labels": (LABELS, 6, -1)}),
    "weights: expected finite numbers": (LOGITS, {"weights": (SHARES, 0, -1)}),
    "weights: expected finite": (LOGITS, {"weights": (SHARES, 1, math.nan)}),
    "weights: expected a sum above 0": (LOGITS, {"weights": (SHARES, slice(None), 0)}),
    "weights: expected a sum of at most": (LOGITS, {"weights": (SHARES, slice(0, 2), 9e299)}),
    "class_weights: expected finite": (
        LOGITS,
        {"labels": (LABELS, 0, 0), "class_weights": (CLASSES, 3, math.inf)},
    ),
    "sample_weights: expected finite": (LOGITS, {"sample_weights": (ROWS, 3, -0.5)}),
}
WRONG_TARGETS = {
    "ids: expected 0..9; got 10": (TOP, {"ids": (TOP.ids, (1, 2), 10)}, {}),
    "ids: expected each id once": (TOP, {"ids": (TOP.ids, (1, slice(None)), 3)}, {}),
    "log_probs: expected .* sum": (TOP, {"log_probs": (TOP.log_probs, 1, 0.0)}, {}),
    "mass on at least one class; got only padding in row 4": (
        TOP,
        {"log_probs": (TOP.log_probs, 4, -math.inf)},
        {"tail": "renormalize"},
    ),
    "probs: expected no negative": (CASES["probs"][0], {"probs": (LOGITS.softmax(-1), (0, 1, 2), -0.1)}, {}),
    "probs: expected probabilities whose sum": (
        CASES["probs"][0],
        {"probs": (LOGITS.softmax(-1), (0, 1, 2), 2.0)},
        {},
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_values_are_checked_in_every_call(message, runs):
    targets, changes = WRONG[message]
    right = {name: value for name, (value, _, _) in changes.items()} | {"alpha": 0.9, "labels": LABELS}
    distillation_loss(student_logits(), targets, **right)
    wrong = right | {name: bad(*change) for name, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        distillation_loss(student_logits(), targets, **wrong)
    assert runs == [None]


@pytest.mark.parametrize("message", WRONG_TARGETS)
def test_values_of_targets_are_checked_in_every_call(message, runs):
    targets, changes, arguments = WRONG_TARGETS[message]
    distillation_loss(student_logits(), targets, temperature=2.0, **arguments)
    wrong = replace(targets, **{name: bad(*change) for name, change in changes.items()})
    with pytest.raises(ValueError, match=message):
        distillation_loss(student_logits(), wrong, temperature=2.0, **arguments)
    assert runs == [None]


def test_a_diverged_student_is_not_an_error(runs):
    for targets in (LOGITS, TOP):
        arguments = {"temperature": 2.0}
        distillation_loss(student_logits(), targets, **arguments)
        assert distillation_loss(torch.full((N, C), math.nan), targets, **arguments).isnan()
    assert len(runs) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": LOGITS[:, :, :9]},
        {"targets": LOGITS[:, :6]},
        {"targets": LOGITS.long()},
        {"targets": LOGITS.to("meta")},
        {"labels": LABELS.int()},
        {"labels": LABELS[:6]},
        {"weights": []},
        {"weights": [1.0, "2", 1.0]},
        {"weights": SHARES.clone().requires_grad_()},
        {"sample_weights": ROWS[:3]},
        {"class_dim": -1.0},
        {"statistics": 0},
        {"alpha": 2.0},
        {"recompute": 1},
    ],
    ids=str,
)
def test_other_signatures_are_checked(changes, runs):
    right = {"targets": LOGITS, "labels": LABELS, "alpha": 0.9}
    distillation_loss(student_logits(), **right)
    with pytest.raises((ValueError, TypeError)):
        distillation_loss(student_logits(), **right | changes)
    assert not runs


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (TOP, replace(TOP, temperature=3.0)),
        (replace(TOP, classes=C), replace(TOP, classes=C + 1)),
        (EnsembleLogits(LOGITS, max_temperature=4.0), EnsembleLogits(LOGITS, max_temperature=0.5)),
        (EnsembleLogits(LOGITS, combiner="prob"), EnsembleLogits(LOGITS, combiner="mean")),
    ],
    ids=str,
)
def test_what_targets_carry_is_part_of_a_signature(right, wrong, runs):
    temperature = getattr(right, "temperature", 2.0)
    distillation_loss(student_logits(), right, temperature=temperature)
    with pytest.raises((ValueError, TypeError)):
        distillation_loss(student_logits(), wrong, temperature=temperature)
    assert not runs


# Derivatives
# ------------------------------------------------------------------------------------------------------------


def test_a_second_derivative_finds_the_inputs_of_a_first_call(runs):
    """The second derivative itself is made from them: see test_loss_autograd.py. Its imports take seconds."""
    labelled = {"labels": LABELS, "alpha": 0.5}
    for targets, arguments in ((LOGITS, {"weights": [0.5, 0.0, 2.0]}), (LOGITS[0], {}), (TOP, {})):
        nodes = []
        for _ in range(2):
            loss = distillation_loss(student_logits(), targets, temperature=2.0, **labelled, **arguments)
            nodes.append(loss.grad_fn)
        (first, fault), (later, later_fault) = (node.inputs.again() for node in nodes)
        assert fault is later_fault is None
        assert nodes[0].call == nodes[1].call
        assert [x is None for x in first] == [x is None for x in later]
        assert all(torch.equal(x, y) for x, y in zip(first, later, strict=True) if x is not None)
    assert len(runs) == 3


def test_a_kept_graph_is_walked_again(runs):
    for _ in range(2):
        student = student_logits()
        loss = distillation_loss(student, LOGITS)
        loss.backward(retain_graph=True)
        once = student.grad.clone()
        (3 * loss).backward()
        assert torch.allclose(student.grad, 4 * once)
    assert len(runs) == 1


def test_a_second_derivative_needs_the_targets(runs):
    distillation_loss(student_logits(), LOGITS)
    student, targets = student_logits(), LOGITS.clone()
    loss = distillation_loss(student, targets)
    del targets
    gc.collect()
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="the targets are gone"):
        gradient.sum().backward()
    assert len(runs) == 1


# The ordinary way
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "active",
    [
        "_len_torch_dispatch_stack",
        "_autograd._profiler_enabled",
        "_get_tracing_state",
        "_are_functorch_transforms_active",
    ],
)
def test_modes_profilers_and_transforms_see_the_op(active, monkeypatch):
    def found():
        return prepared.signature(student_logits(), LOGITS, None, DEFAULTS, None, None, None)

    assert found() is not None
    monkeypatch.setattr(f"torch._C.{active}", lambda: 1)  # a real one takes seconds to start
    assert found() is None


@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (LogProbs(LOGITS.log_softmax(-1)), {}),
        (Counts(torch.tensor([[3, 4]]).repeat(N, 1), torch.ones(N, 2)), {}),
        (LOGITS, {"recompute": True}),
        (LOGITS, {"alpha": 0.0, "labels": LABELS}),
        (LOGITS, {"impl": "reference"}),
        (LOGITS, {"labels": LABELS.repeat_interleave(2)[::2]}),
        (LOGITS, {"sample_weights": ROWS.float()}),
        (LOGITS.transpose(1, 2).contiguous().transpose(1, 2), {}),
    ],
)
def test_other_calls_are_not_prepared(targets, changes, runs):
    for _ in range(3):
        distillation_loss(student_logits(), targets, **changes)
    assert not runs
    assert not prepared._prepared


def test_float16_and_large_calls_are_not_prepared(runs):
    for student in (student_logits(torch.float16), torch.randn(1 << 15, 10)):
        targets = student.detach()[None]
        for _ in range(2):
            distillation_loss(student, targets)
    assert not prepared._prepared


def test_another_object_of_settings_has_a_signature_of_its_own(runs):
    student = student_logits()
    settings = LossSettings(temperature=2.0)
    values = [
        distillation_loss(student, LOGITS, settings=x) for x in (settings, settings, copy.copy(settings))
    ]
    assert len(runs) == 1
    assert len(prepared._prepared) == 2
    assert values[0] == values[1] == values[2]
    assert distillation_loss(student, LOGITS, settings=LossSettings(temperature=3.0)) != values[0]


def test_the_number_of_signatures_is_bounded(runs, monkeypatch):
    monkeypatch.setattr(prepared, "_MOST_SIGNATURES", 3)
    for rows in range(1, 9):
        distillation_loss(torch.zeros(rows, 4), torch.zeros(2, rows, 4))
    assert len(prepared._prepared) <= 3


def test_an_op_in_place_of_the_librarys_is_called(runs, monkeypatch):
    student = make_logits(N, C, seed=0)
    distillation_loss(student, LOGITS)
    calls = []
    real = ops.distill_loss
    monkeypatch.setattr(ops, "distill_loss", lambda *a: calls.append(a) or real(*a))
    distillation_loss(student, LOGITS)
    assert len(calls) == 1
    assert not runs


def test_padding_may_be_anything_but_a_whole_row(runs):
    listed = TOP.log_probs.clone()
    listed[:, 1:] = -math.inf
    targets = TopK(TOP.ids, listed, None, 2.0)
    for _ in range(2):
        call(targets, {"tail": "renormalize"})
    assert len(runs) == 1
    assert runs[0] is not None
