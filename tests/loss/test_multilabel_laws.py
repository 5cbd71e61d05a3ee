"""Laws of multilabel_distillation_loss, tried on inputs that hypothesis draws."""

from typing import Any

import torch
from closed_forms import worst
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from multilabel_forms import run
from torch import Tensor

from ensdistill.common.combiners import COMBINERS
from ensdistill.loss.multilabel import multilabel_distillation_loss

ELEMENTS = st.floats(-30, 30, width=32)
few = settings(max_examples=25, deadline=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    k, n, c = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 10, 33, 64, 70]))
    student = torch.from_numpy(draw(arrays("float32", (n, c), elements=ELEMENTS)))
    targets = torch.from_numpy(draw(arrays("float32", (k, n, c), elements=ELEMENTS)))
    labels = torch.from_numpy(draw(arrays("int64", (n, c), elements=st.integers(-1, 1))))
    arguments = {
        "temperature": draw(st.sampled_from([0.5, 1.0, 4.0])),
        "alpha": draw(st.sampled_from([0.25, 1.0])),
        "combiner": draw(st.sampled_from(COMBINERS)),
        "weights": draw(st.lists(st.floats(0.05, 1), min_size=k, max_size=k)),
    }
    return student, targets, labels, arguments


def assert_same(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], temperature: float) -> None:
    scale = max(temperature, 1)
    assert worst(left[0], right[0]) <= 1e-5 * scale**2 * (1 + right[0].abs().max().item())
    assert worst(left[1], right[1]) <= 1e-5 * scale


@few
@given(problem=problems(), random=st.randoms(use_true_random=False))
def test_the_order_of_classes_and_members_does_not_matter(problem, random):
    student, targets, labels, arguments = problem
    classes, members = list(range(student.shape[1])), list(range(len(targets)))
    random.shuffle(classes)
    random.shuffle(members)
    base = run(student, targets, labels, **arguments)
    shuffled = arguments | {"weights": [arguments["weights"][k] for k in members]}
    loss, gradient = run(student[:, classes], targets[members][..., classes], labels[:, classes], **shuffled)
    assert_same((loss, gradient), (base[0], base[1][:, classes]), arguments["temperature"])


@few
@given(problem=problems())
def test_equal_members_are_one_member(problem):
    student, targets, labels, arguments = problem
    together = run(student, targets[:1].expand_as(targets), labels, **arguments)
    alone = run(student, targets[0], labels, **arguments | {"weights": None})
    assert_same(together, alone, arguments["temperature"])


@few
@given(problem=problems())
def test_presence_and_absence_are_alike(problem):
    """Negated logits swap them."""
    student, targets, labels, arguments = problem
    swapped = torch.where(labels >= 0, 1 - labels, -1)
    loss, gradient = run(-student, -targets, swapped, **arguments)
    assert_same((loss, -gradient), run(student, targets, labels, **arguments), arguments["temperature"])


@few
@given(problem=problems())
def test_kl_is_not_negative_and_zero_at_equality(problem):
    student, targets, _, arguments = problem
    arguments = arguments | {"alpha": 1.0}
    assert (multilabel_distillation_loss(student, targets, reduction="none", **arguments) >= 0).all()
    arguments["weights"] = None
    loss, gradient = run(student, student, **arguments)
    # In float32 each class is within the rounding of two logarithms.
    assert 0 <= loss <= 1e-6 * student.shape[1] * arguments["temperature"] ** 2
    assert worst(gradient, torch.zeros_like(gradient)) <= 1e-7 * arguments["temperature"]
    loss, gradient = run(student.double(), student, **arguments)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@few
@given(problem=problems(), random=st.randoms(use_true_random=False))
def test_a_masked_class_is_absent(problem, random):
    student, targets, labels, arguments = problem
    kept = torch.tensor([random.random() < 0.6 for _ in range(student.shape[1])])
    kept[0] = True
    masked = run(student, targets, labels, mask=kept.expand_as(student), **arguments)
    loss, gradient = run(student[:, kept], targets[..., kept], labels[:, kept], **arguments)
    expected = torch.zeros_like(student)
    expected[:, kept] = gradient
    assert_same(masked, (loss, expected), arguments["temperature"])


@few
@given(problem=problems())
def test_an_unknown_label_leaves_the_divergence(problem):
    student, targets, labels, arguments = problem
    loss, gradient = run(student, targets, torch.full_like(labels, -1), **arguments)
    alone = run(student, targets, **arguments | {"alpha": 1.0})
    assert_same(
        (loss, gradient),
        (arguments["alpha"] * alone[0], arguments["alpha"] * alone[1]),
        arguments["temperature"],
    )
