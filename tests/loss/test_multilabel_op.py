"""The multi-label op as torch sees it: opcheck, torch.compile, torch.func, autograd's memory, its own checks."""

import inspect

import pytest
import torch
from closed_forms import make_codes, make_logits
from multilabel_forms import closed_forms, make_labels, make_targets, run

from ensdistill.functional import LossSettings
from ensdistill.loss import multilabel_op, multilabel_reference
from ensdistill.loss.multilabel import multilabel_distillation_loss as loss_of
from ensdistill.loss.multilabel_op import SIGNATURE


def op_arguments(kind="logits", labels=True, dtype=torch.float32, reduction="mean", maps=False):
    """Legal ones."""
    shape = (1, 10, 5) if maps else (5, 10)
    turned = (lambda x: x.mT) if maps else (lambda x: x)
    student, values = make_logits(*shape, seed=0, dtype=dtype), make_logits(3, *shape, seed=1)
    tensors = dict.fromkeys(SIGNATURE.op_tensors._fields)
    if kind == "codes":
        codes = make_codes(3, 5, 10, seed=1)
        values, tensors["scale"], tensors["offset"] = codes.codes, codes.scale, codes.offset
    elif kind == "topk":
        top, _ = make_targets("topk-tail", 1, 5, 10, seed=1)
        values, tensors["ids"], tensors["tail"] = top.log_probs, top.ids, top.tail_log_mass
    if labels:
        tensors |= {
            "labels": turned(make_labels(10, 5, seed=0).float().reshape(shape)),
            "mask": turned(torch.ones(shape, dtype=torch.uint8)),
            "class_weights": torch.linspace(0, 2, 10).double(),
            "pos_weight": torch.linspace(1, 2, 10).double(),
            "sample_weights": torch.linspace(0, 2, 5).double(),
            "weights": None if kind == "topk" else torch.arange(3.0).double(),
        }
    settings = SIGNATURE.settings(
        LossSettings(temperature=2.0, alpha=0.4 if labels else 1.0, label_smoothing=0.1),
        kind="topk" if kind == "topk" else "logits",
        combiner="prob",
        tail_mode="tail",
        reduction=reduction,
        divisor=3.0,
    )
    values = values if kind != "logits" else turned(values)
    return tuple(
        SIGNATURE.call(
            turned(student).requires_grad_(), values, *SIGNATURE.op_tensors(**tensors), *settings, True
        )
    )


@pytest.mark.parametrize(
    "change",
    [{"labels": False}, {"kind": "codes"}, {"kind": "topk", "reduction": "none"}, {"maps": True}],
    ids=str,
)
def test_opcheck(change):
    torch.library.opcheck(multilabel_op.multilabel_loss, op_arguments(**change))


def test_the_specification_has_every_argument():
    names = [argument.name for argument in multilabel_op.multilabel_loss._schema.arguments]
    assert [*inspect.signature(multilabel_reference.multilabel_loss).parameters] == names[:-1]
    assert [*SIGNATURE.call._fields] == names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiles_in_one_graph(dtype):
    torch._dynamo.reset()
    labels, mask = make_labels(5, 10, seed=0), torch.rand(5, 10) > 0.3

    def both(student, targets):
        return loss_of(
            student, targets, labels, mask=mask, alpha=0.5, temperature=2.0, weights=[1.0, 2.0, 0.0]
        ) + loss_of(student, targets)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    results = []
    for f in (compiled, both):
        leaf = make_logits(5, 10, seed=0, dtype=dtype).requires_grad_()
        loss = f(leaf, make_logits(3, 5, 10, seed=1))
        (2 * loss).backward()
        results.append((loss.detach(), leaf.grad))
    half = dtype == torch.float16  # two gradients are rounded and added
    tolerance = {"rtol": 4e-3 if half else 1e-5, "atol": 2e-4 if half else 1e-6}
    torch.testing.assert_close(results[0], results[1], **tolerance)
    torch._dynamo.reset()


@pytest.mark.parametrize("impl", ["reference", pytest.param("compile", marks=pytest.mark.slow)])
def test_the_other_implementations(impl):
    torch._dynamo.reset()
    student, targets, labels = (
        make_logits(5, 10, seed=0),
        make_logits(3, 5, 10, seed=1),
        make_labels(5, 10, seed=0),
    )
    arguments = {"alpha": 0.5, "temperature": 2.0, "mask": torch.rand(5, 10) > 0.3}
    truth = closed_forms(student, targets, labels, **arguments)
    for given in (targets, targets.double()):
        loss, gradient = run(student, given, labels, **arguments, impl=impl)
        torch.testing.assert_close(loss.double(), truth.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient.double(), truth.gradient, rtol=1e-5, atol=1e-6)
        if impl == "compile":
            break
    torch._dynamo.reset()


def test_torch_func():
    student, targets, labels = (
        make_logits(4, 5, 6, seed=0),
        make_logits(3, 5, 6, seed=1),
        make_labels(5, 6, seed=0),
    )

    def loss(s, z=targets):
        return loss_of(s, z, labels, alpha=0.5)

    truth = torch.stack([closed_forms(s, targets, labels, alpha=0.5).gradient for s in student])
    found = torch.func.vmap(torch.func.grad(loss))(student)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="student_logits: carries a forward-mode tangent"):
        torch.func.jvp(loss, (student[0],), (student[0],))
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(student[0].double())
    reference = torch.func.hessian(lambda s: loss_of(s, targets, labels, alpha=0.5, impl="reference"))
    torch.testing.assert_close(hessian, reference(student[0].double()))


def test_a_second_derivative_needs_the_targets():
    student, targets = make_logits(3, 4, seed=0).requires_grad_(), make_logits(2, 3, 4, seed=1)
    loss = loss_of(student, targets)
    targets += 1
    (first,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(
        RuntimeError,
        match="multilabel_distillation_loss: a second derivative needs the inputs, and they have been",
    ):
        first.sum().backward()


def test_scaled_and_repeated_backward():
    student, targets = make_logits(3, 40, seed=0), make_logits(2, 3, 40, seed=1)
    for recompute in (False, True):
        leaf = student.clone().requires_grad_()
        loss = loss_of(leaf, targets, reduction="none", recompute=recompute)
        factors = torch.tensor([1.0, 2.0, 3.0])
        loss.backward(factors, retain_graph=True)
        loss.backward(factors)
        truth = closed_forms(student, targets, reduction="none").gradient * factors[:, None] * 2
        torch.testing.assert_close(leaf.grad.double(), truth, rtol=1e-5, atol=1e-6)


def test_targets_and_labels_of_inference_mode():
    with torch.inference_mode():
        targets, labels = make_logits(2, 3, 4, seed=1), make_labels(3, 4, seed=0).float()
    student = make_logits(3, 4, seed=0)
    for recompute in (False, True):
        found = run(student, targets, labels, alpha=0.5, recompute=recompute)
        assert torch.equal(found[1], run(student, targets.clone(), labels.clone(), alpha=0.5)[1])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("student", torch.zeros(5), r"student: expected floating-point \[N, C\]"),
        ("targets", torch.zeros(3, 5, 11), r"targets: expected \[K, ...\] with the student's shape"),
        ("labels", torch.zeros(5, 9), "labels: expected the student's shape"),
        ("labels", torch.zeros(5, 10, dtype=torch.int64), "labels: expected uint8 or floating-point numbers"),
        ("labels", torch.zeros(5, 10, dtype=torch.float64), "float64 only beside float64 logits"),
        ("labels", None, "alpha: below 1 it mixes in hard labels, and labels is None"),
        ("mask", torch.zeros(5, 10), "mask: expected uint8"),
        ("mask", torch.zeros(10, 20, dtype=torch.uint8)[::2, ::2], "mask: expected unit stride"),
        ("pos_weight", torch.ones(10), r"pos_weight: expected a contiguous \[10\]"),
        ("weights", torch.zeros(3).double(), "weights: expected a sum above 0"),
        ("temperature", 0.0, "temperature: expected > 0, got 0"),
        ("tail_mode", "renormalize", "tail_mode: expected 'tail' or 'zero'"),
        ("divisor", 0.0, "divisor: expected > 0, got 0"),
    ],
)
def test_the_native_checks(name, value, message):
    call = SIGNATURE.call(*op_arguments())._replace(**{name: value})
    with pytest.raises(RuntimeError, match=message):
        multilabel_op.multilabel_loss(*call)
