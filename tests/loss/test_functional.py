"""Values and gradients of distillation_loss, against the closed forms in float64."""

import math
import random
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from cache_helpers import digits
from closed_forms import assert_close, closed_forms, make_codes, make_logits, run, worst
from torch import Tensor

from ensdistill.common.combiners import COMBINERS
from ensdistill.functional import distillation_loss
from ensdistill.loss import ops
from ensdistill.loss.targets import EnsembleLogits, QuantizedLogits

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (2, 10, 31, 64, 65, 252, 507, 5000, 50257)


@dataclass(frozen=True)
class Case:
    student: torch.dtype
    target: torch.dtype
    k: int
    n: int
    c: int
    combiner: str
    temperature: float
    alpha: float
    reduction: str
    smoothing: float
    masked: bool
    weighted: bool
    ignore_index: int
    seed: int

    def __str__(self) -> str:
        names = "-".join(str(x).removeprefix("torch.") for x in (self.student, self.target))
        return f"{names}-K{self.k}-N{self.n}-C{self.c}-{self.combiner}-T{self.temperature}-a{self.alpha}-{self.reduction}-{self.seed}"

    def build(self) -> tuple[tuple[Tensor, Any, Tensor | None], dict[str, Any]]:
        k, n, c = self.k, self.n, self.c
        student = make_logits(n, c, seed=self.seed, dtype=self.student)
        targets: Any
        if self.target == torch.uint8:
            targets = make_codes(k, n, c, seed=self.seed, masked=self.masked)
        else:
            # As the cache gives them: [K, N, C] seen in [N, K, C].
            targets = make_logits(n, k, c, seed=self.seed + 1, dtype=self.target).transpose(0, 1)
            if self.masked:
                targets[..., ::5] = -torch.inf
                student[:, ::5] = -torch.inf
        labels = 1 + 5 * torch.randint(
            0, (c + 3) // 5, (n,), generator=torch.Generator().manual_seed(self.seed)
        )  # never a masked class
        labels[3::4] = self.ignore_index
        weights = torch.tensor([2.0, 0.0, 1.0, 0.5, 0.0, 3.0, 1.0, 1.0][: self.k]) if self.weighted else None
        arguments = {
            "temperature": self.temperature,
            "alpha": self.alpha,
            "weights": weights,
            "combiner": self.combiner,
            "ignore_index": self.ignore_index,
            # a masked class's cross entropy is infinite
            "label_smoothing": 0.0 if self.masked or self.alpha == 1 else self.smoothing,
            "reduction": self.reduction,
        }
        return (student, targets, labels if self.alpha < 1 or self.seed % 2 else None), arguments


def sampled_cases() -> list[Case]:
    """Every pair of dtypes with every number of members; the rest drawn, the same on every run."""
    draw = random.Random(5).choice
    cases = []
    for seed, (student, target, k) in enumerate(product(FLOATS, (*FLOATS, torch.uint8), (1, 3, 8))):
        c = draw(WIDTHS)
        n = draw((0, 1, 15, 37)) if c < 5000 else draw((1, 3))
        cases.append(
            Case(
                student,
                target,
                k,
                n,
                c,
                combiner=draw(COMBINERS),
                temperature=draw((0.5, 1.0, 2.0, 5.0)),
                alpha=draw((0.0, 0.3, 1.0, 1.0)),
                reduction=draw(("mean", "sum", "none")),
                smoothing=draw((0.0, 0.1)),
                masked=draw((False, True)),
                weighted=draw((False, True)),
                ignore_index=draw((-100, 1)),
                seed=seed,
            )
        )
    return cases


@pytest.mark.parametrize("case", sampled_cases(), ids=str)
def test_fused_agrees_with_the_closed_forms(case, instruction_set):
    inputs, arguments = case.build()
    assert_close(run(*inputs, **arguments), *inputs, **arguments)


@pytest.mark.parametrize("case", sampled_cases(), ids=str)
def test_reference_agrees_with_the_closed_forms(case):
    inputs, arguments = case.build()
    assert_close(run(*inputs, impl="reference", **arguments), *inputs, **arguments)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("c", WIDTHS)
def test_every_width(c, k, instruction_set):
    n = 2 if c >= 5000 else 37
    student, targets = make_logits(n, c, seed=c), make_logits(k, n, c, seed=c + 1)
    labels = torch.arange(n) % c
    arguments = {"temperature": 2.0, "alpha": 0.6, "label_smoothing": 0.1}
    assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)
    codes = make_codes(k, n, c, seed=c)
    assert_close(run(student, codes, temperature=2.0), student, codes, temperature=2.0)


CODES_OF_A_ROW = {  # scale, largest code
    "narrow": (1e-4, 255),
    "wide": (1.5, 255),  # most classes underflow
    "all of float": (40.0, 255),
    "far from 255": (0.56, 30),  # relative to code 255 the small ones underflow
    "farther": (1.5, 80),  # and here all of them
    "constant": (0.0, 7),
}


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "tvd"])
@pytest.mark.parametrize("k", [2, 3, 7, 32])
def test_codes_of_every_range(k, divergence, instruction_set):
    n, c = len(CODES_OF_A_ROW), 1013  # a member and row of each kind, in another order for every member
    codes = make_codes(k, n, c, seed=k)
    for (scale, largest), place in zip(CODES_OF_A_ROW.values(), range(n), strict=True):
        for member in range(k):
            row = (place + member) % n
            codes.scale[member, row] = scale
            codes.codes[member, row].clamp_(max=largest)
            codes.codes[member, row, 5] = largest
    arguments = {"temperature": 1.5, "divergence": divergence, "weights": torch.linspace(0, 1, k)}
    student = make_logits(n, c, seed=0)
    assert_close(run(student, codes, **arguments), student, codes, **arguments)


def test_digits_with_real_teachers(instruction_set):
    teachers, rows = digits()
    targets, labels = torch.tensor(teachers.logits), torch.tensor(rows.labels)
    student = make_logits(len(rows), 10, seed=0)
    for combiner in COMBINERS:
        arguments = {
            "temperature": 3.0,
            "alpha": 0.7,
            "weights": torch.tensor([0.2, 0.5, 0.3]),
            "combiner": combiner,
        }
        assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


# Traps
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_student_without_mass_where_the_teacher_has_some_is_infinitely_far(impl):
    targets, student = make_logits(2, 3, 70, seed=0), make_logits(3, 70, seed=1)
    student[1, 5] = -torch.inf
    assert distillation_loss(student, targets, impl=impl, reduction="none").isinf().tolist() == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_each_part_of_the_mean_is_over_the_rows_that_it_concerns(impl, dtype, instruction_set):
    """The divergence and the z-loss of all rows, the cross entropy of the labelled ones."""
    student, targets = make_logits(15, 31, seed=0, dtype=dtype), make_logits(3, 15, 31, seed=1)
    labels, known = torch.full((15,), -100), torch.tensor([2, 5, 11, 12])
    labels[known] = torch.tensor([0, 30, 7, 7])
    arguments = {"temperature": 2.0, "z_loss": 0.01, "impl": impl}
    rows = distillation_loss(student.double(), targets, reduction="none", **arguments)
    for alpha in (0.0, 0.4, 1.0):
        leaf = student.detach().clone().requires_grad_()
        hard = torch.nn.functional.cross_entropy(leaf[known].double(), labels[known])
        soft = distillation_loss(leaf.double(), targets, alpha=1.0, temperature=2.0)
        z = 0.01 * leaf.double().logsumexp(-1).square().mean()
        expected = alpha * soft + (1 - alpha) * hard + z
        expected.backward()
        loss, gradient = run(student, targets, labels, alpha=alpha, **arguments)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(
            gradient, leaf.grad, rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-6
        )
        each = distillation_loss(
            student.double(), targets, labels, alpha=alpha, reduction="none", **arguments
        )
        own = torch.nn.functional.cross_entropy(student.double(), labels, reduction="none")
        divergence = rows - 0.01 * student.double().logsumexp(-1).square()
        torch.testing.assert_close(
            each, alpha * divergence + (1 - alpha) * own + rows - divergence, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("c", [10, 300])
def test_without_any_label_the_divergence_is_left(c, impl, alpha, instruction_set):
    student, targets, labels = make_logits(17, c, seed=0), make_logits(2, 17, c, seed=1), torch.full((17,), 3)
    for reduction in ("mean", "sum", "none"):
        expected = run(student, targets, reduction=reduction, impl=impl)
        arguments = {
            "ignore_index": 3,
            "alpha": alpha,
            "reduction": reduction,
            "label_smoothing": 0.1 if alpha < 1 else 0.0,
            "impl": impl,
        }
        loss, gradient = run(student, targets, labels, **arguments)
        torch.testing.assert_close(loss, alpha * expected[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient, alpha * expected[1], rtol=1e-6, atol=1e-7)


def test_few_labels_among_many_rows_stay_within_float16():
    """One labelled row of 200 000 has 200 000 times the weight of a row's divergence."""
    n = 200_000
    student, targets, labels = (
        torch.zeros(n, 2, dtype=torch.float16),
        torch.zeros(1, n, 2),
        torch.full((n,), -100),
    )
    labels[7] = 1
    loss, gradient = run(student, targets, labels, alpha=0.5)
    assert loss.item() == pytest.approx(0.5 * math.log(2), rel=1e-3)
    assert gradient[7].tolist() == pytest.approx([0.25, -0.25], rel=1e-3)
    assert (gradient[:7] == 0).all()


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("c", [10, 300, 20000])
def test_zero_at_the_optimum_of_equal_members(c, combiner, instruction_set):
    z = make_logits(5, c, seed=c)
    for temperature in (1.0, 2.5):
        loss, gradient = run(
            z, z.expand(3, 5, c), temperature=temperature, combiner=combiner, weights=[0.2, 0.3, 0.5]
        )
        assert abs(loss.item()) <= 1e-6 * temperature**2  # a mixture's logarithm is rounded
        assert gradient.abs().max() <= 1e-6


def test_zero_at_the_optimum_of_a_mixture():
    targets = make_logits(4, 6, 50, seed=0, dtype=torch.float64)
    optimum = 2.0 * torch.softmax(targets / 2.0, -1).mean(0).log()
    loss, gradient = run(optimum, targets, temperature=2.0)
    assert abs(loss.item()) <= 1e-14  # float64's rounding
    assert gradient.abs().max() <= 1e-14
    assert (
        distillation_loss(targets.mean(0), targets, temperature=2.0) > 0.01
    )  # the mean logits are not the optimum


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("c", [10, 300])
def test_nan_in_a_member_matters_only_if_it_is_used(c, impl, combiner, instruction_set):
    student, targets = make_logits(5, c, seed=0), make_logits(3, 5, c, seed=1)
    arguments = {"combiner": combiner, "impl": impl}
    expected = run(student, targets[[0, 2]], weights=[1.0, 3.0], **arguments)
    targets[1] = torch.nan
    loss, gradient = run(student, targets, weights=[1.0, 0.0, 3.0], **arguments)
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])
    targets[2, 3, c - 1] = torch.nan
    loss, gradient = run(student, targets, weights=[1.0, 0.0, 3.0], reduction="none", **arguments)
    assert loss.isnan().tolist() == [False, False, False, True, False]
    assert gradient.isnan().any(-1).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("c", [10, 65, 3000])
@pytest.mark.parametrize("k", [1, 3])
def test_nan_is_never_hidden(k, c, value, instruction_set):
    for place in (0, c // 2, c - 1):
        student, targets = make_logits(5, c, seed=0), make_logits(k, 5, c, seed=1)
        student[1, place] = value
        targets[k - 1, 3, place] = value
        loss, gradient = run(student, targets, reduction="none")
        assert loss.isnan().tolist() == [False, True, False, True, False]
        assert gradient.isnan().any(-1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("c", [10, 300, 3000])
@pytest.mark.parametrize("k", [1, 3])
def test_a_scale_that_is_no_number_is_never_hidden(k, c, value, instruction_set):
    """Not even by a row whose codes are all 0."""
    targets = QuantizedLogits(torch.zeros(k, 5, c, dtype=torch.uint8), torch.ones(k, 5), torch.zeros(k, 5))
    targets.scale[k - 1, 3] = value
    loss, gradient = run(make_logits(5, c, seed=0), targets, reduction="none")
    assert loss.isnan().tolist() == [False, False, False, True, False]
    assert gradient.isnan().any(-1).tolist() == [False, False, False, True, False]


def test_a_member_that_rules_out_every_class_is_nan(instruction_set):
    for c in (10, 300):
        targets = make_logits(2, 3, c, seed=0)
        targets[1, 1] = -torch.inf
        assert distillation_loss(make_logits(3, c, seed=1), targets, reduction="none").isnan().tolist() == [
            False,
            True,
            False,
        ]


@pytest.mark.parametrize("c", [10, 3000])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits(size, c, instruction_set):
    student, targets, labels = make_logits(15, c, seed=0), make_logits(3, 15, c, seed=1), torch.arange(15) % c
    arguments = {"temperature": 2.0, "alpha": 0.5}
    shifted = [(x + size) - size for x in (student, targets)]  # with the rounding of a float32 of that size
    loss, gradient = run(shifted[0] + size, shifted[1] + size, labels, **arguments)
    truth = closed_forms(*shifted, labels, **arguments)
    assert loss.item() == pytest.approx(
        truth.loss.item(), rel=1e-5
    )  # the shift is subtracted exactly; the rest is float32
    assert worst(gradient, truth.gradient) <= 1e-7
    student[0, 1], targets[:, 0, 0] = size, -size  # one far from the others
    assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("c", [10, 507])
def test_rows_need_not_be_contiguous(c, dtype, instruction_set):
    wide, targets = make_logits(15, 3 * c, seed=0, dtype=dtype), make_logits(3, 15, c, seed=1)
    labels = torch.arange(30)[::2] % c
    rows_first = wide[:, :c].T.contiguous().T
    across = targets.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for view in (
        wide[:, c - 1 : 2 * c - 1],
        wide[:, ::3],
        wide[:, :c].flip(0),
        rows_first,
        wide[:1, :c].expand(15, c),
    ):
        for z in (targets, across, targets[:1].expand(3, 15, c)):
            expected = run(view.contiguous(), z.contiguous(), labels.contiguous(), alpha=0.5)
            loss, gradient = run(view, z, labels, alpha=0.5)
            # Read across rows, the sums are in another order; on a GPU that depends on where rows begin.
            if (
                view is rows_first
                or z is across
                or instruction_set not in ops.build_info()["cpu"]["runnable"]
            ):
                assert_close((loss, gradient), view, z, labels, alpha=0.5)
            else:
                assert torch.equal(loss, expected[0])
                assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize(("n", "c"), [(2000, 10), (300, 507), (3, 50257)])
def test_same_bits_every_time_and_with_any_number_of_threads(n, c, instruction_set):
    student, targets, labels = make_logits(n, c, seed=0), make_logits(3, n, c, seed=1), torch.arange(n) % c
    arguments = {"temperature": 2.0, "alpha": 0.5, "label_smoothing": 0.1}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(student, targets, labels, **arguments)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss, gradient = run(student, targets, labels, **arguments)
            assert torch.equal(loss, expected[0])
            assert torch.equal(gradient, expected[1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_class(dtype, instruction_set):
    for k, labels in product((1, 3), (None, torch.zeros(5, dtype=torch.int64))):
        loss, gradient = run(
            make_logits(5, 1, seed=0, dtype=dtype),
            make_logits(k, 5, 1, seed=1),
            labels,
            alpha=1.0 if labels is None else 0.5,
        )
        assert abs(loss.item()) <= 1e-6  # the logarithm of 1 as a sum of rounded weights
        assert gradient.abs().max() <= 1e-6


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_empty_batch(impl, reduction):
    for targets in (torch.zeros(3, 0, 10), torch.zeros(0, 10), make_codes(2, 0, 10, seed=0)):
        labels = torch.zeros(0, dtype=torch.int64)
        loss, gradient = run(torch.zeros(0, 10), targets, labels, alpha=0.5, reduction=reduction, impl=impl)
        assert loss.shape == ((0,) if reduction == "none" else ())
        assert loss.sum() == 0
        assert gradient.shape == (0, 10)


def test_targets_in_any_wrapping():
    student, targets = make_logits(5, 31, seed=0), make_logits(3, 5, 31, seed=1)
    weights = torch.tensor([3.0, 1.0, 0.5])
    expected = distillation_loss(student, targets, weights=weights)
    assert distillation_loss(student, EnsembleLogits(targets, weights)) == expected
    assert distillation_loss(student, targets, weights=[3.0, 1.0, 0.5]) == expected
    assert (
        distillation_loss(student, EnsembleLogits(targets, torch.ones(3)), weights=weights) == expected
    )  # the argument wins
    assert distillation_loss(student, targets) != expected
    assert distillation_loss(student, targets[0]) == distillation_loss(student, targets[:1])


def test_labels_follow_cross_entropy():
    """With alpha 0 it is torch's cross entropy, ignore_index and label_smoothing included."""
    student, targets, labels = make_logits(15, 31, seed=0), make_logits(3, 15, 31, seed=1), torch.arange(15)
    labels[2] = 9
    for smoothing, reduction in product((0.0, 0.2, 1.0), ("mean", "sum", "none")):
        arguments = {"ignore_index": 9, "label_smoothing": smoothing, "reduction": reduction}
        leaf = student.double().requires_grad_()
        expected = torch.nn.functional.cross_entropy(leaf, labels, **arguments)
        expected.sum().backward()
        loss, gradient = run(student, targets, labels, alpha=0.0, temperature=3.0, **arguments)
        assert worst(loss, expected.detach()) <= 1e-5  # float32, a sum of 14 rows of about 8
        assert worst(gradient, leaf.grad) <= 1e-6
