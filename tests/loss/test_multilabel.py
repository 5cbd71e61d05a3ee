"""The multi-label loss with every kind of target, dtype, layout and weight, against the closed forms in float64; and the closed
forms against finite differences. They run once more on the CUDA kernels, with another fixture ``instruction_set``."""

import pytest
import torch
from closed_forms import make_logits, worst
from multilabel_forms import KINDS, assert_close, closed_forms, make_labels, make_targets, run
from torch.autograd import gradcheck, gradgradcheck

from ensdistill.loss.multilabel import multilabel_distillation_loss
from ensdistill.loss.targets import LogProbs, Probs, QuantizedLogits, TopK

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (1, 10, 33, 64, 129, 1000)
MEMBERS = (1, 2, 3, 7)


def hard(n, c, seed=0):
    """Labels and all that belongs to them."""
    random = torch.Generator().manual_seed(seed)
    weights = {name: torch.rand(c, generator=random) * 2 for name in ("class_weights", "pos_weight")}
    weights["class_weights"][::5] = 0
    rows = torch.rand(n, generator=random)
    rows[1:2] = 0
    mask = torch.rand(n, c, generator=random) > 0.2
    return make_labels(n, c, seed=seed), {
        "alpha": 0.3,
        "label_smoothing": 0.1,
        "mask": mask,
        "sample_weights": rows,
    } | weights


@pytest.mark.parametrize("c", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_widths(kind, c, instruction_set):
    if kind.startswith("topk") and c == 1:
        pytest.skip("one class has no rest")
    for k in MEMBERS if kind == "logits" and c in (10, 129) else (2,):
        n = 19 if c < 100 else 2
        targets, more = make_targets(kind, k, n, c, seed=1)
        student, (labels, weighted) = make_logits(n, c, seed=0), hard(n, c)
        for arguments in ({}, weighted):
            arguments = arguments | more | {"temperature": 2.0}
            given = labels if "alpha" in arguments else None
            assert_close(run(student, targets, given, **arguments), student, targets, given, **arguments)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, dtype, instruction_set):
    labels, weighted = hard(5, 70)
    for of_targets, reduction in (
        (torch.float32, "mean"),
        (dtype, "none"),
        (dtype, "batchmean"),
        (dtype, "sum"),
    ):
        targets, more = make_targets(kind, 3, 5, 70, seed=1, dtype=of_targets)
        student = make_logits(5, 70, seed=0, dtype=dtype)
        arguments = weighted | more | {"temperature": 2.0, "reduction": reduction}
        if reduction in ("mean", "none") or kind == "logits":
            assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


@pytest.mark.parametrize("combiner", ["logit", "log_prob"])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_geometric_mixtures(kind, combiner, instruction_set):
    for dtype in (torch.float32, torch.float64):
        targets, _ = make_targets(kind, 3, 4, 40, seed=1, dtype=dtype)
        student = make_logits(4, 40, seed=0, dtype=dtype)
        arguments = {"combiner": combiner, "temperature": 2.0, "weights": [0.0, 1.0, 3.0]}
        assert_close(run(student, targets, **arguments), student, targets, **arguments)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 32.0, 33.0, 1000.0])
def test_temperatures(temperature, instruction_set):
    student, targets = make_logits(4, 100, seed=0), make_logits(3, 4, 100, seed=1)
    labels = make_labels(4, 100, seed=0)
    for arguments in ({}, {"alpha": 0.5}, {"alpha": 0.0}):
        arguments = arguments | {"temperature": temperature}
        given = labels if "alpha" in arguments else None
        assert_close(run(student, targets, given, **arguments), student, targets, given, **arguments)


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([[True, False, True]]),
        torch.tensor([[1, 0, -1]], dtype=torch.int8),
        torch.tensor([[1, 0, 255]], dtype=torch.uint8),
        torch.tensor([[1, 0, -1]], dtype=torch.int32),
        torch.tensor([[0.25, 1.0, -1.0]], dtype=torch.bfloat16),
        torch.tensor([[0.25, 1.0, -1.0]], dtype=torch.float64),
    ],
    ids=lambda x: str(x.dtype).removeprefix("torch."),
)
def test_labels_of_any_dtype(labels, instruction_set):
    for dtype in (torch.float32, torch.float64):
        student, targets = make_logits(1, 3, seed=0, dtype=dtype), make_logits(2, 1, 3, seed=1)
        arguments = {"alpha": 0.5}
        assert_close(run(student, targets, labels, **arguments), student, targets, labels, **arguments)


def test_cross_entropy_is_torchs(instruction_set):
    student, labels = make_logits(6, 50, seed=0), torch.rand(6, 50)
    weights, positive = torch.rand(50), 3 * torch.rand(50)
    found = multilabel_distillation_loss(
        student, student, labels, alpha=0.0, class_weights=weights, pos_weight=positive
    )
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        student, labels, weights, pos_weight=positive, reduction="sum"
    )
    torch.testing.assert_close(found, expected / 6, rtol=1e-6, atol=0)


# Memory
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [3, 40])
def test_layouts(c, instruction_set):
    """Feature maps, sliced and expanded tensors are the same rows."""
    n = 30
    student, targets = make_logits(n, c, seed=0), make_logits(2, n, c, seed=1)
    labels, weighted = hard(n, c)
    arguments = weighted | {"temperature": 2.0, "reduction": "sum"}
    expected = run(student, targets, labels, **arguments)

    def maps(x):  # [..., N, C] as [..., 2, C, 3, 5]
        return x.reshape(*x.shape[:-2], 2, 3, 5, c).movedim(-1, -3).contiguous()

    def gapped(x):
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]

    def first(x):  # classes first in memory
        return x.mT.contiguous().mT

    per_row = arguments | {"sample_weights": arguments["sample_weights"].reshape(2, 3, 5)}
    loss, gradient = run(
        maps(student), maps(targets), maps(labels), **per_row | {"mask": maps(arguments["mask"])}, class_dim=1
    )
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
    assert worst(gradient.movedim(1, -1).reshape(n, c), expected[1]) <= 1e-6
    for change in (gapped, first):
        for which in range(4):
            parts = [student, targets, labels.float(), arguments["mask"]]
            parts[which] = change(parts[which])
            loss, gradient = run(*parts[:3], **arguments | {"mask": parts[3]})
            torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
            assert worst(gradient, expected[1]) <= 1e-6
    one = run(
        student, targets, labels[:1].expand(n, c), **arguments | {"mask": arguments["mask"][:1].expand(n, c)}
    )
    copied = labels[:1].repeat(n, 1)
    assert_close(one, student, targets, copied, **arguments | {"mask": arguments["mask"][:1].repeat(n, 1)})


def test_rows_of_nothing(instruction_set):
    for shape in ((0, 5), (2, 0, 5)):
        loss, gradient = run(torch.zeros(shape), torch.zeros(3, *shape))
        assert loss == 0
        assert gradient.shape == shape


def test_one_row_without_leading_dimensions(instruction_set):
    student, targets = make_logits(7, seed=0), make_logits(3, 7, seed=1)
    loss, gradient = run(student, targets, reduction="none")
    assert loss.shape == ()
    assert_close((loss[None], gradient[None]), student[None], targets[:, None], reduction="none")


def test_same_bits_with_any_number_of_threads(instruction_set):
    student, targets = make_logits(200, 300, seed=0), make_logits(3, 200, 300, seed=1)
    expected, before = run(student, targets), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = run(student, targets)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
    finally:
        torch.set_num_threads(before)


# Traps
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "c"),
    [(2, 1), (130, 20), (7, 1000), (2049, 1), (512, 4), (2, 2047)],  # less, more, and as much as a long row
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_rows_are_computed_as_long_ones(n, c, dtype, instruction_set):
    """Where only the sum of the losses is wanted; a loss for each row has them one by one."""
    random = torch.Generator().manual_seed(n)
    student, targets = make_logits(n, c, seed=0, dtype=dtype), make_logits(3, n, c, seed=1, dtype=dtype)
    labels = torch.randint(-1, 2, (n, c), generator=random)
    mask = torch.rand(n, c, generator=random) > 0.2
    labels[-1], mask[:1, :1] = 1, False
    for more in ({}, {"mask": mask}, {"mask": mask, "alpha": 0.25}):
        arguments = {"temperature": 2.0, **more}
        marks = labels if "alpha" in more else None
        alone, gradient_alone = run(student, targets, marks, reduction="none", **arguments)
        total, gradient = run(student, targets, marks, reduction="sum", **arguments)
        torch.testing.assert_close(total.double(), alone.double().sum(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, gradient_alone)
    assert total > 0


@pytest.mark.parametrize("c", [4, 40])
def test_sure_teachers_and_students(c, instruction_set):
    """Probabilities of exactly 0 and 1, and logits of up to 1e4."""
    student = torch.tensor([-1e4, -100.0, 100.0, 1e4]).repeat(c // 4).expand(5, c).contiguous()
    p = torch.tensor([0.0, 1.0, 1e-3, 0.3, 0.0])[:, None].expand(5, c)
    for targets in (Probs(p), LogProbs(p.log()), p.log() - (-p).log1p()):
        loss, gradient = run(student, targets, reduction="none")
        truth = closed_forms(student, targets, reduction="none")
        assert loss.isfinite().all()
        torch.testing.assert_close(loss.double(), truth.loss, rtol=1e-5, atol=0)
        assert worst(gradient, truth.gradient) <= 1e-6
    arguments = {"alpha": 0.5, "reduction": "none"}
    labels = torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0])[:, None].expand(5, c)
    assert_close(run(student, Probs(p), labels, **arguments), student, Probs(p), labels, **arguments)


@pytest.mark.parametrize("c", [5, 40])
@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_sure_members_and_the_classes_beside_them(k, c, instruction_set):
    """The members' odds have a product that no float32 holds, in one class: the others keep their bits."""
    student, targets = make_logits(3, c, seed=0), make_logits(k, 3, c, seed=1)
    before = run(student, targets)[1]
    for sure in (-30.0, -60.0, -1e4, -1e12, -1e30, 60.0, 1e4, 1e12, 1e30):
        targets[:, 1, 3] = sure
        (loss, gradient), truth = run(student, targets), closed_forms(student, targets)
        torch.testing.assert_close(loss.double(), truth.loss, rtol=1e-5, atol=0)
        assert worst(gradient, truth.gradient) <= 1e-6
        others = torch.ones(3, c, dtype=torch.bool)
        others[1, 3] = False
        assert torch.equal(gradient[others], before[others])
    targets[:, 1, 3] = torch.linspace(-90.0, 90.0, k + 1)[1:]
    assert_close(run(student, targets), student, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_ruled_out(dtype, instruction_set):
    student = torch.tensor([[-torch.inf, 0.0, -torch.inf, torch.inf]], dtype=dtype)
    targets = torch.tensor([[-torch.inf, -torch.inf, -90.0, torch.inf]], dtype=dtype)
    loss, gradient = run(student[:, [0, 1, 3]], targets[:, [0, 1, 3]])
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5, 0.0]], dtype=dtype))
    # A mass that the student gives none of: infinite, unless it is lost in the precision.
    assert run(student[:, 2:3], torch.zeros(1, 1, dtype=dtype))[0] == torch.inf
    hard, _ = run(student, targets, torch.tensor([[0, 1, 0, 1]]), alpha=0.0)
    assert hard.item() == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("c", [5, 50])
def test_what_does_not_count_is_not_looked_at(c, instruction_set):
    student, targets, labels = (
        make_logits(6, c, seed=0),
        make_logits(3, 6, c, seed=1),
        make_labels(6, c, seed=2),
    )
    mask, rows, classes = torch.rand(6, c) > 0.3, torch.tensor([1.0, 0, 1, 1, 0, 2]), torch.ones(c)
    classes[2] = 0
    arguments = {
        "alpha": 0.5,
        "mask": mask,
        "sample_weights": rows,
        "class_weights": classes,
        "weights": [1.0, 0.0, 2.0],
    }
    expected = run(student, targets, labels, **arguments)
    unused = ~mask | (rows == 0)[:, None] | (classes == 0)
    bad = labels.float().masked_fill(unused, torch.nan)
    spoilt = targets.masked_fill(unused, torch.nan)
    spoilt[1] = torch.nan
    loss, gradient = run(student.masked_fill(unused, torch.nan), spoilt, bad, **arguments)
    # A row counts as labelled by what is known in it, so unknown labels must stay unknown.
    assert loss.isfinite()
    assert torch.equal(gradient[unused], torch.zeros(int(unused.sum())))
    assert expected[1].isfinite().all()
    same = labels.float().where(~unused | (labels == -1), torch.nan)
    again = run(student.masked_fill(unused, torch.nan), spoilt, same, **arguments)
    assert torch.equal(again[0], expected[0])
    assert torch.equal(again[1], expected[1])


def test_a_diverged_model_is_seen(instruction_set):
    student, targets = make_logits(3, 40, seed=0), make_logits(2, 3, 40, seed=1)
    student[0, 7], targets[1, 1, 3] = torch.nan, torch.nan
    loss, gradient = run(student, targets, reduction="none")
    assert loss.isnan().tolist() == [True, True, False]
    assert gradient.isnan().sum() == 2


def test_teachers_without_a_share_have_none(instruction_set):
    student, labels = make_logits(3, 40, seed=0), make_labels(3, 40, seed=0)
    loss, gradient = run(student, torch.full((2, 3, 40), torch.nan), labels, alpha=0.0)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_masked_codes(instruction_set):
    """A negative scale: code 0 is a class that the member rules out."""
    codes = torch.tensor([[[0, 100, 200]]], dtype=torch.uint8)
    targets = QuantizedLogits(codes, torch.tensor([[-0.05]]), torch.tensor([[-5.0]]))
    student = torch.zeros(1, 3)
    assert_close(run(student, targets), student, targets)
    assert run(student, targets)[1][0, 0] == 0.5


def test_listed_classes_of_which_all_are_listed(instruction_set):
    log_p = torch.tensor([[-0.1, -2.0, -1.0]])
    top = TopK(torch.tensor([[2, 0, 1]]), log_p, torch.tensor([-torch.inf]))
    student = make_logits(1, 3, seed=0)
    truth = run(student, LogProbs(log_p[:, [1, 2, 0]]))
    found = run(student, top)
    torch.testing.assert_close(found, truth)


def test_float16_means_keep_their_digits(instruction_set):
    n = 4096
    student, targets = make_logits(n, 8, seed=0, dtype=torch.float16), make_logits(2, n, 8, seed=1)
    loss = multilabel_distillation_loss(student.requires_grad_(), targets)
    (loss * n).backward()
    truth = closed_forms(student, targets).gradient * n
    assert worst(student.grad, truth) <= 2**-11


# The closed forms, and second derivatives
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logits", "log_probs", "topk-tail"])
def test_gradients_of_first_and_second_order(kind):
    targets, more = make_targets(kind, 2, 2, 3, seed=1, dtype=torch.float64)
    student, (labels, weighted) = make_logits(2, 3, seed=0, dtype=torch.float64).requires_grad_(), hard(2, 3)
    arguments = weighted | more | {"temperature": 2.0}

    def loss(s):
        return multilabel_distillation_loss(s, targets, labels, **arguments, recompute=True)

    assert gradcheck(loss, student)
    if kind == "logits":
        assert gradgradcheck(loss, student)


def test_the_closed_forms_are_themselves_right():
    targets, _ = make_targets("logits", 2, 3, 5, seed=1, dtype=torch.float64)
    student, (labels, weighted) = make_logits(3, 5, seed=0, dtype=torch.float64), hard(3, 5)
    arguments = weighted | {"temperature": 2.0}
    answer, h = closed_forms(student, targets, labels, **arguments), 1e-6
    for i in range(15):
        step = torch.zeros(15, dtype=torch.float64).scatter(0, torch.tensor(i), h).reshape(3, 5)
        up, down = (closed_forms(student + d, targets, labels, **arguments).loss for d in (step, -step))
        assert ((up - down) / (2 * h)).item() == pytest.approx(answer.gradient.flatten()[i].item(), abs=1e-9)
