"""The linear loss under torch.func, torch.compile and opcheck."""

import pytest
import torch
from linear_helpers import LABELS, make_layer, make_target

from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.settings import LossSettings
from ensdistill.loss.signature import OpTensors, op_settings


def test_second_derivatives_are_refused_and_first_ones_are_not():
    hidden, weight, _ = make_layer()
    loss = linear_distillation_loss(hidden, weight, make_target("logits"))
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(
        NotImplementedError,
        match="linear_distillation_loss: has no second derivative; take distillation_loss",
    ):
        first.sum().backward()


def test_torch_func():
    hidden, weight, _ = make_layer()
    target = make_target("logits")

    def loss(h, w):
        return linear_distillation_loss(h, w, target, chunk_rows=4)

    found = torch.func.grad(loss, (0, 1))(hidden.detach(), weight.detach())
    expected = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-15)
    with pytest.raises(
        NotImplementedError, match=r"linear_distillation_loss: has no rule for torch\.func\.vmap"
    ):
        torch.func.vmap(lambda h: linear_distillation_loss(h, weight.detach(), target))(
            hidden.detach().expand(2, 11, 6)
        )


def test_forward_mode_is_refused_by_name():
    hidden, weight, _ = (x.detach() for x in make_layer())

    target = make_target("logits")

    def loss(h):
        return linear_distillation_loss(h, weight, target)

    for derivative in (
        torch.func.hessian(loss),
        torch.func.jacfwd(loss),
        lambda h: torch.func.jvp(loss, (h,), (h,)),
    ):
        with pytest.raises(
            NotImplementedError,
            match=r"linear_distillation_loss: has no forward-mode derivative \(torch.func.jvp",
        ):
            derivative(hidden)


def test_batched_upstream_factors():
    """is_grads_batched: scalars can; factors of rows need the op once for each of the batch, which is
    refused."""
    hidden, weight, _ = make_layer()
    loss = linear_distillation_loss(hidden, weight, make_target("logits"))
    (found,) = torch.autograd.grad(
        loss, weight, torch.linspace(0, 1, 3, dtype=torch.float64), is_grads_batched=True, retain_graph=True
    )
    torch.testing.assert_close(found[2], torch.autograd.grad(loss, weight)[0], rtol=1e-13, atol=1e-15)
    rows = linear_distillation_loss(hidden, weight, make_target("logits"), reduction="none")
    with pytest.raises(
        NotImplementedError, match="nor for many backward passes in one with reduction='none'"
    ):
        torch.autograd.grad(rows, weight, torch.eye(11, dtype=torch.float64), is_grads_batched=True)
    with pytest.raises(
        NotImplementedError, match="nor for many backward passes in one with reduction='none'"
    ):
        torch.func.jacrev(
            lambda w: linear_distillation_loss(hidden.detach(), w, make_target("logits"), reduction="none")
        )(weight.detach())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(backend):
    torch._dynamo.reset()
    target = make_target("codes")

    def loss(h, w, b, reduction):
        return (
            linear_distillation_loss(
                h, w, target, LABELS, alpha=0.5, bias=b, softcap=5.0, chunk_rows=4, reduction=reduction
            ).sum()
            * 2
        )

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for reduction in ("mean", "none"):
        layer = make_layer()
        found, expected = (torch.autograd.grad(f(*layer, reduction), layer) for f in (compiled, loss))
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
    torch._dynamo.reset()


@pytest.mark.parametrize("each_row", [False, True])
def test_opcheck(each_row):
    hidden, weight, bias = make_layer()
    tensors = OpTensors(None, None, None, None, None, LABELS, None, None)
    reduction = {"reduction": "none" if each_row else "sum", "divisor": 1.0}
    settings = op_settings(
        LossSettings(divergence="jsd", alpha=0.5, label_smoothing=0.1),
        kind="logits",
        combiner="prob",
        tail_mode="tail",
        **reduction,
    )
    layer = (5.0, 4, torch.float64, *(not each_row,) * 3, True, None)
    call = (hidden, weight, bias, make_target("logits"), *tensors, *settings, *layer)
    results = torch.library.opcheck(torch.ops.ensdistill.linear_distill_loss.default, call)
    assert set(results.values()) == {"SUCCESS"}
