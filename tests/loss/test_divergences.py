"""Every divergence with every kind of target, against the closed forms in float64; and the closed forms
against finite differences."""

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from closed_forms import (
    DIVERGENCES,
    assert_close,
    closed_forms,
    make_codes,
    make_counts,
    make_logits,
    make_top_k,
    run,
    teacher,
    worst,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ensdistill.common.combiners import COMBINERS
from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import Counts, LogProbs, Probs, TopK

KINDS = ("logits", "codes", "log_probs", "probs", "topk-tail", "topk-renormalize", "topk-zero", "counts")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (2, 10, 33, 64, 100, 1000, 5003, 40000)
MEMBERS = (1, 2, 3, 8, 32)


def make_targets(
    kind: str,
    k: int,
    n: int,
    c: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
) -> Any:
    """Targets of one kind, and the loss's arguments that belong to them."""
    if kind.startswith("topk"):
        entries = max(1, min(c // 2, 20))
        target = make_top_k(
            n, c, entries, seed=seed, temperature=temperature, padding=int(entries > 2), dtype=dtype
        )
        return target, {"tail": kind.removeprefix("topk-")}
    if kind == "counts":
        return replace(make_counts(n, c, 12, seed=seed), temperature=temperature), {}
    if kind == "codes":
        return make_codes(k, n, c, seed=seed), {}
    z = make_logits(k, n, c, seed=seed, dtype=torch.float64)
    if kind == "logits":
        return z.to(dtype), {}
    z = torch.log_softmax(z / temperature, -1)
    return (
        LogProbs(z.to(dtype), None, temperature)
        if kind == "log_probs"
        else Probs(z.exp().to(dtype), None, temperature)
    ), {}


def legal(kind: str, divergence: str) -> bool:
    return divergence != "reverse_kl" or kind not in ("topk-renormalize", "topk-zero", "counts")


PAIRS = [pair for pair in product(KINDS, DIVERGENCES) if legal(*pair)]


def sampled(seeds: range) -> list[Any]:
    """Every kind with every divergence, each several times; the rest drawn, the same on every run."""
    draw = random.Random(7).choice
    cases = []
    for seed, (kind, divergence) in product(seeds, PAIRS):
        c = draw(WIDTHS)
        many = c < 1000
        cases.append(
            {
                "kind": kind,
                "divergence": divergence,
                "student": draw(FLOATS),
                "target": draw(FLOATS),
                "k": draw(MEMBERS) if many else draw((1, 2, 3)),
                "n": draw((1, 7, 37)) if many else draw((1, 2)),
                "c": c,
                "seed": 100 * seed + len(cases),
                "temperature": draw((0.5, 1.0, 2.0)),
                "combiner": draw(COMBINERS),
                "beta": draw((0.1, 0.5, 0.9)),
                "reduction": draw(("mean", "sum", "batchmean", "none")),
                "labels": draw((False, True)),
                "alpha": draw((0.4, 1.0)),
                "smoothing": draw((0.0, 0.1)),
                "class_weights": draw((False, True)),
                "sample_weights": draw((False, True)),
                "z_loss": draw((0.0, 0.01)),
            }
        )
    return cases


def build(case: dict[str, Any]) -> tuple[tuple[Tensor, Any, Tensor | None], dict[str, Any]]:
    k, n, c, seed, alpha = (case[name] for name in ("k", "n", "c", "seed", "alpha"))
    targets, arguments = make_targets(
        case["kind"], k, n, c, seed=seed + 1, dtype=case["target"], temperature=case["temperature"]
    )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (n,), generator=generator)
    labels[3::4] = -100
    arguments |= {
        name: case[name]
        for name in ("divergence", "temperature", "combiner", "beta", "reduction", "alpha", "z_loss")
    }
    if isinstance(targets, TopK | Counts):
        arguments["combiner"] = "prob"
    if not (case["labels"] or alpha < 1):
        labels = None
    per_class = 2 * torch.rand(c, generator=generator)
    if alpha < 1:
        arguments |= {
            "label_smoothing": case["smoothing"],
            "class_weights": per_class if case["class_weights"] else None,
        }
    if case["sample_weights"]:
        arguments["sample_weights"] = 3 * torch.rand(n, generator=generator)
        arguments["sample_weights"][::5] = 0
    if k > 1 and not isinstance(targets, TopK | Counts):
        arguments["weights"] = torch.rand(k, generator=generator)
        arguments["weights"][1 % (k - 1)] = 0 if k > 2 else 0.5
    return (make_logits(n, c, seed=seed, dtype=case["student"]), targets, labels), arguments


def name(case: dict[str, Any]) -> str:
    dtypes = "-".join(str(case[side]).removeprefix("torch.") for side in ("student", "target"))
    return f"{case['kind']}-{case['divergence']}-{dtypes}-K{case['k']}-N{case['n']}-C{case['c']}"


@pytest.mark.parametrize("case", sampled(range(4)), ids=name)
def test_fused_agrees_with_the_closed_forms(case, instruction_set):
    inputs, arguments = build(case)
    assert_close(run(*inputs, **arguments), *inputs, **arguments)


@pytest.mark.parametrize("case", sampled(range(2)), ids=name)
def test_reference_agrees_with_the_closed_forms(case):
    inputs, arguments = build(case)
    assert_close(run(*inputs, impl="reference", **arguments), *inputs, **arguments)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("c", WIDTHS)
def test_every_width(c, divergence, instruction_set):
    n = 2 if c >= 5000 else 37
    student = make_logits(n, c, seed=c)
    for kind, k in (("logits", 1), ("logits", 3), ("codes", 2), ("probs", 2), ("topk-tail", 0)):
        targets, arguments = make_targets(kind, k, n, c, seed=c + 1, temperature=2.0)
        arguments |= {"temperature": 2.0, "divergence": divergence, "beta": 0.3}
        assert_close(run(student, targets, **arguments), student, targets, **arguments)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 2, 5, 16, 32])
def test_every_number_of_members(k, divergence, instruction_set):
    for c, combiner in product((10, 300), COMBINERS):
        student, targets = make_logits(9, c, seed=k), make_logits(k, 9, c, seed=k + 1)
        arguments = {"divergence": divergence, "combiner": combiner, "weights": torch.linspace(0.1, 1, k)}
        assert_close(run(student, targets, **arguments), student, targets, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_widest_rows(divergence, dtype, instruction_set):
    student = make_logits(1, 262144, seed=0, dtype=dtype)
    targets, labels = make_logits(2, 1, 262144, seed=1, dtype=dtype), torch.tensor([262143])
    arguments = {"temperature": 2.0, "divergence": divergence, "alpha": 0.5}
    assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


# Orders of differentiation
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "divergence"), PAIRS)
def test_gradients_of_first_and_second_order(kind, divergence):
    targets, arguments = make_targets(kind, 2, 3, 6, seed=1, dtype=torch.float64, temperature=2.0)
    student, labels = (
        make_logits(3, 6, seed=0, dtype=torch.float64).requires_grad_(),
        torch.tensor([1, -100, 4]),
    )
    arguments |= {
        "temperature": 2.0,
        "divergence": divergence,
        "alpha": 0.6,
        "beta": 0.3,
        "z_loss": 0.1,
        "label_smoothing": 0.1,
    }
    arguments |= {"class_weights": [1.0, 2.0, 0.5, 1.0, 3.0, 0.0], "sample_weights": [0.5, 1.0, 2.0]}
    for reduction in ("mean", "none"):
        assert gradcheck(
            lambda s, r=reduction: distillation_loss(s, targets, labels, reduction=r, **arguments), student
        )
        # Number by number of the mean; in random directions, which a wrong number changes, of each row.
        assert gradgradcheck(
            lambda s, r=reduction: distillation_loss(s, targets, labels, reduction=r, **arguments),
            student,
            fast_mode=reduction == "none",
        )


@pytest.mark.parametrize(("kind", "divergence"), PAIRS)
def test_the_closed_forms_are_themselves_right(kind, divergence):
    """The truth's gradient against finite differences of its loss, so that a wrong closed form can't pass for
    truth."""
    targets, arguments = make_targets(kind, 2, 3, 6, seed=1, dtype=torch.float64, temperature=2.0)
    student, labels = make_logits(3, 6, seed=0, dtype=torch.float64, spread=1.0), torch.tensor([1, -100, 4])
    arguments |= {
        "temperature": 2.0,
        "divergence": divergence,
        "beta": 0.3,
        "z_loss": 0.1,
        "label_smoothing": 0.1,
    }
    arguments |= {
        "class_weights": torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 0.0]),
        "sample_weights": torch.tensor([0.5, 1.0, 2.0]),
    }
    axes = list(torch.eye(18, dtype=torch.float64).reshape(18, 3, 6))
    oblique = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    oblique = [oblique / oblique.norm()]
    for alpha, reduction in product((0.3, 1.0), ("mean", "sum", "batchmean")):
        arguments |= {"alpha": alpha, "reduction": reduction}
        gradient = closed_forms(student, targets, labels, **arguments).gradient
        # A wrong number shows in every oblique direction; each number by itself is looked at once.
        for direction in axes if (alpha, reduction) == (0.3, "mean") else oblique:
            step = 2e-3 * direction
            # Sixth order: (2e-3)^6 of it is lost, and a rounding of 1e-16 / 2e-3.
            slope = sum(
                factor * (closed_forms(student + i * step, targets, labels, **arguments).loss
                          - closed_forms(student - i * step, targets, labels, **arguments).loss)
                for i, factor in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
            ) / 2e-3  # fmt: skip
            assert abs(slope - (direction * gradient).sum()) <= 1e-10


# Values that are known otherwise
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["fused", "reference"])
def test_values_by_hand(impl):
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    found = {
        d: distillation_loss(q.log()[None], Probs(p[None]), divergence=d, beta=0.25, impl=impl).item()
        for d in DIVERGENCES
    }
    assert found["forward_kl"] == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)
    m = 0.25 * p + 0.75 * q
    assert found["reverse_kl"] == pytest.approx(float((q * (q / p).log()).sum()), abs=1e-6)
    assert found["jsd"] == pytest.approx(
        float(0.25 * (p * (p / m).log()).sum() + 0.75 * (q * (q / m).log()).sum()), abs=1e-6
    )
    assert found["tvd"] == pytest.approx(0.25, abs=1e-6)


def test_jsd_tends_to_the_kls():
    """beta * KL(p || q) for beta to 0, (1 - beta) * KL(q || p) for beta to 1: generalised JSD's two ends."""
    student, targets = make_logits(15, 31, seed=0, dtype=torch.float64), make_logits(2, 15, 31, seed=1)
    for beta, divergence in ((1e-5, "forward_kl"), (1 - 1e-5, "reverse_kl")):
        near = distillation_loss(student, targets, divergence="jsd", beta=beta) / 1e-5
        assert near.item() == pytest.approx(
            distillation_loss(student, targets, divergence=divergence).item(), rel=2e-2
        )  # (p/q)·beta


@pytest.mark.parametrize("divergence", ["jsd", "tvd"])
def test_bounds(divergence, instruction_set):
    """JSD at beta = 1/2 is at most log 2, TVD at most 1; both are reached where nothing overlaps."""
    student, targets = torch.full((4, 40), -200.0), torch.full((4, 40), -200.0)
    student[:, :20], targets[:, 20:] = 0, 0
    bound = {"jsd": 0.6931471805599453, "tvd": 1.0}[divergence]
    loss, gradient = run(student, targets, divergence=divergence)
    assert loss.item() == pytest.approx(bound, rel=1e-6)
    assert gradient.isfinite().all()


def test_tvd_has_gradient_zero_at_the_optimum(instruction_set):
    z = make_logits(5, 300, seed=0)
    loss, gradient = run(z, z[None], divergence="tvd")
    assert loss == 0
    assert (gradient == 0).all()


def test_dense_kinds_of_the_same_distribution_agree():
    z, student = (
        make_logits(3, 15, 31, seed=1, dtype=torch.float64),
        make_logits(15, 31, seed=0, dtype=torch.float64),
    )
    log_p = torch.log_softmax(z / 2.0, -1)
    weights = torch.tensor([1.0, 0.0, 2.0])
    for divergence, combiner in product(DIVERGENCES, COMBINERS):
        arguments = {"temperature": 2.0, "divergence": divergence, "combiner": combiner}
        expected = run(student, z, weights=weights, **arguments)
        for targets in (
            LogProbs(log_p, weights, 2.0),
            Probs(log_p.exp(), weights, 2.0),
            LogProbs(log_p + 0.04, weights, 2.0),
        ):
            loss, gradient = run(student, targets, **arguments)
            assert worst(loss, expected[0]) <= 1e-12
            assert worst(gradient, expected[1]) <= 1e-12


def test_probabilities_are_divided_by_their_sum():
    p, student = torch.softmax(make_logits(15, 31, seed=1), -1), make_logits(15, 31, seed=0)
    expected = run(student, Probs(p))
    loss, gradient = run(student, Probs(p * 1.04))
    assert worst(loss, expected[0]) <= 1e-6
    assert worst(gradient, expected[1]) <= 1e-7


# Weights of rows and classes, z-loss, by-products
# ---------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
def test_cross_entropy_is_torchs(reduction):
    """With alpha 0, with class weights, smoothing and ignored rows; but the mean is over rows, not over their
    weights."""
    student, labels = make_logits(15, 31, seed=0, dtype=torch.float64), torch.arange(15)
    labels[4] = -100
    class_weights = torch.linspace(0, 2, 31, dtype=torch.float64)
    for smoothing in (0.0, 0.2):
        arguments = {
            "alpha": 0.0,
            "class_weights": class_weights,
            "label_smoothing": smoothing,
            "reduction": reduction,
        }
        loss, gradient = run(student, student[None], labels, **arguments)
        leaf = student.clone().requires_grad_()
        rows = torch.nn.functional.cross_entropy(
            leaf, labels, weight=class_weights, label_smoothing=smoothing, reduction="none"
        )
        expected = {"mean": rows.sum() / 14, "sum": rows.sum(), "batchmean": rows.sum() / 15, "none": rows}[
            reduction
        ]
        expected.sum().backward()
        assert worst(loss, expected.detach()) <= 1e-12
        assert worst(gradient, leaf.grad) <= 1e-13


def test_a_row_without_weight_is_not_read_but_counts(instruction_set):
    for c in (10, 300):
        student, targets = make_logits(17, c, seed=0), make_logits(2, 17, c, seed=1)
        weights = torch.linspace(0.5, 2, 17)
        weights[4] = 0
        arguments = {"sample_weights": weights, "z_loss": 0.01}
        expected = run(student, targets, **arguments)
        rows = distillation_loss(student, targets, z_loss=0.01, reduction="none")
        assert expected[0].item() == pytest.approx(((rows * weights).sum() / 17).item(), rel=1e-6)
        student[4], targets[:, 4] = torch.nan, torch.inf
        for impl in ("fused", "reference"):
            loss, gradient = run(student, targets, impl=impl, **arguments)
            assert worst(loss, expected[0]) <= (0 if impl == "fused" else 1e-6)
            assert worst(gradient, expected[1]) <= (0 if impl == "fused" else 1e-6)


@pytest.mark.parametrize("c", [10, 5000])
def test_rows_that_do_not_count_are_not_read(c, instruction_set):
    """The prompts of a batch, its padding: not computed and thrown away, but passed over."""
    student, targets, labels = make_logits(20, c, seed=0), make_logits(1, 20, c, seed=1), torch.arange(20) % c
    counted = torch.arange(20) % 3 == 0
    student[~counted], targets[:, ~counted] = torch.nan, torch.inf
    student.requires_grad_()
    loss = distillation_loss(student, targets, labels, alpha=0.5, sample_weights=counted.float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad[~counted].count_nonzero() == 0
    assert student.grad[counted].isfinite().all()


def test_z_loss_is_at_temperature_one():
    student = make_logits(15, 31, seed=0)
    base, with_z = (
        distillation_loss(student, student[None], temperature=3.0, z_loss=z, reduction="none")
        for z in (0.0, 0.1)
    )
    torch.testing.assert_close(with_z - base, 0.1 * student.logsumexp(-1) ** 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics(kind, instruction_set):
    for k, c in product((1, 3), (10, 300)):
        targets, arguments = make_targets(kind, k, 15, c, seed=3, temperature=2.0)
        student, labels = make_logits(15, c, seed=0), torch.arange(15) % c
        labels[3] = -100
        if k == 3 and kind in ("logits", "codes", "log_probs", "probs"):
            arguments["weights"] = torch.tensor([0.5, 0.0, 1.0])
        arguments["temperature"] = 2.0
        teachers_class = teacher(
            targets, c, 2.0, arguments.get("weights"), "prob", arguments.get("tail", "tail"), torch.float64
        ).p.argmax(-1)
        student[torch.arange(5), teachers_class[:5]] = 20
        leaf = student.clone().requires_grad_()
        loss, rows = distillation_loss(leaf, targets, labels, statistics=True, **arguments)
        truth = closed_forms(student, targets, labels, **arguments).statistics
        found = torch.stack(
            [rows.student_entropy, rows.mixture_entropy, rows.agreement, rows.disagreement], -1
        )
        torch.testing.assert_close(
            found.double(), truth, rtol=1e-5, atol=1e-5, equal_nan=True
        )  # float32, a few nats
        assert not any(
            x.requires_grad
            for x in (rows.student_entropy, rows.mixture_entropy, rows.agreement, rows.disagreement)
        )
        assert torch.equal(loss.detach(), distillation_loss(student, targets, labels, **arguments))
        assert 5 <= truth[:, 2].sum() < 15
