"""Laws of distillation_loss, tried on inputs that hypothesis draws."""

from typing import Any

import torch
from closed_forms import run, worst
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from ensdistill.common.combiners import COMBINERS
from ensdistill.functional import distillation_loss

ELEMENTS = st.floats(-20, 20, width=32)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, Any]]:
    k, n, c = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 3, 10, 64, 65, 130]))
    student = torch.from_numpy(draw(arrays("float32", (n, c), elements=ELEMENTS)))
    targets = torch.from_numpy(draw(arrays("float32", (k, n, c), elements=ELEMENTS)))
    weights = draw(st.lists(st.floats(0.05, 1), min_size=k, max_size=k))
    return (
        student,
        targets,
        {
            "temperature": draw(st.sampled_from([0.5, 1.0, 4.0])),
            "combiner": draw(st.sampled_from(COMBINERS)),
            "weights": weights,
        },
    )


def assert_same(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], temperature: float) -> None:
    # float32 on logits of up to 80 after division by T, times T^2
    assert worst(left[0], right[0]) <= 1e-5 * max(temperature, 1) ** 2 * (1 + right[0].abs().max().item())
    assert worst(left[1], right[1]) <= 1e-5 * max(temperature, 1)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), shift=st.floats(-100, 100))
def test_a_shift_of_logits_changes_nothing(problem, shift):
    student, targets, arguments = problem
    base = run(student.double(), targets.double(), **arguments)
    # In float64, where adding the shift loses nothing that matters.
    shifts = shift * torch.arange(1, len(targets) + 1)[:, None, None]
    shifted = run(student.double() - shift, targets.double() + shifts, **arguments)
    assert worst(shifted[0], base[0]) <= 1e-10
    assert worst(shifted[1], base[1]) <= 1e-10


@settings(max_examples=60, deadline=None)
@given(problem=problems(), random=st.randoms(use_true_random=False))
def test_the_order_of_classes_and_members_does_not_matter(problem, random):
    student, targets, arguments = problem
    classes, members = list(range(student.shape[1])), list(range(len(targets)))
    random.shuffle(classes)
    random.shuffle(members)
    base = run(student, targets, **arguments)
    loss, gradient = run(
        student[:, classes],
        targets[members][..., classes],
        **{**arguments, "weights": [arguments["weights"][k] for k in members]},
    )
    assert_same((loss, gradient), (base[0], base[1][:, classes]), arguments["temperature"])


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_equal_members_are_one_member(problem):
    student, targets, arguments = problem
    together = run(student, targets[:1].expand_as(targets), **arguments)
    assert_same(
        together, run(student, targets[0], **{**arguments, "weights": None}), arguments["temperature"]
    )


@settings(max_examples=60, deadline=None)
@given(problem=problems(), scale=st.floats(1e-3, 1e3))
def test_only_the_ratio_of_weights_matters(problem, scale):
    student, targets, arguments = problem
    scaled = run(student, targets, **{**arguments, "weights": [w * scale for w in arguments["weights"]]})
    assert_same(scaled, run(student, targets, **arguments), arguments["temperature"])


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_kl_is_not_negative(problem):
    student, targets, arguments = problem
    rounding = 1e-5 * arguments["temperature"] ** 2
    assert (distillation_loss(student, targets, reduction="none", **arguments) >= -rounding).all()
    assert (distillation_loss(student.double(), targets, reduction="none", **arguments) >= -1e-12).all()
