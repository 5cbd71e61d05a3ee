"""The tensors that the losses keep between forward and backward, and their use by second derivatives."""

import weakref

import pytest
import torch
from closed_forms import make_codes, make_counts, make_logits, make_top_k
from torch.multiprocessing.reductions import StorageWeakRef

from ensdistill.functional import distillation_loss
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.targets import EnsembleLogits, LogProbs, Probs

KINDS = ("tensor", "logits", "codes", "log_probs", "probs", "topk", "counts")
DENSE = KINDS[:5]
LABELS = torch.tensor([3, -100, 0, 9, 1])
HARD = {"alpha": 0.4, "label_smoothing": 0.1}


def make_target(kind, dtype=torch.float32):
    """New at every call."""
    z = make_logits(3, 5, 10, seed=1, dtype=dtype)
    return {
        "tensor": lambda: z,
        "logits": lambda: EnsembleLogits(z, torch.ones(3)),
        "codes": lambda: make_codes(3, 5, 10, seed=1),
        "log_probs": lambda: LogProbs(torch.log_softmax(z, -1)),
        "probs": lambda: Probs(torch.softmax(z, -1)),
        "topk": lambda: make_top_k(5, 10, 4, seed=1),
        "counts": lambda: make_counts(5, 10, 9, seed=1),
    }[kind]()


def large(target):
    """Its tensor [K, N, C], where it has one."""
    names = ("logits", "codes", "log_probs", "probs")
    return (
        target
        if isinstance(target, torch.Tensor)
        else next((getattr(target, n) for n in names if hasattr(target, n)), None)
    )


def through_a_layer(student, target, labels=None, **arguments):
    """The linear loss of the same logits: the layer is the identity."""
    return linear_distillation_loss(
        student, torch.eye(10, dtype=student.dtype), target, labels, chunk_rows=2, **arguments
    )


BOTH = pytest.mark.parametrize("function", [distillation_loss, through_a_layer])


def gradient_of(function, target, labels=LABELS, **arguments):
    leaf = make_logits(5, 10, seed=0).requires_grad_()
    function(leaf, target, labels, **HARD, **arguments).sum().backward()
    return leaf.grad


# Tensors made under torch.inference_mode()
# ----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_but_the_student_may_be_made_in_inference_mode(kind, recompute, function):
    with torch.inference_mode():
        target, labels = make_target(kind), LABELS.clone()
        weights = {
            "sample_weights": torch.linspace(0, 2, 5).double(),
            "class_weights": torch.linspace(0, 2, 10).double(),
        }
    assert labels.is_inference()
    found = gradient_of(function, target, labels, recompute=recompute, **weights)
    expected = gradient_of(
        function, make_target(kind), LABELS, **{name: x.clone() for name, x in weights.items()}
    )
    assert torch.equal(found, expected)
    leaf = make_logits(5, 10, seed=0)
    assert torch.equal(
        torch.func.grad(lambda s: function(s, target, labels, recompute=recompute, **HARD, **weights))(leaf),
        expected,
    )
    if function is distillation_loss:
        found, expected = (
            torch.autograd.functional.hvp(
                lambda s, t=t: distillation_loss(s, t, recompute=recompute), leaf, leaf
            )[1]
            for t in (target, make_target(kind))
        )
        assert torch.equal(found, expected)


@BOTH
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_too(recompute, function):
    torch._dynamo.reset()
    with torch.inference_mode():
        target, labels = make_target("tensor"), LABELS.clone()
    compiled = torch.compile(
        lambda s, t, n: function(s, t, n, recompute=recompute, **HARD).sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    leaf = make_logits(5, 10, seed=0).requires_grad_()
    compiled(leaf, target, labels).backward()
    torch.testing.assert_close(
        leaf.grad, gradient_of(function, make_target("tensor")), rtol=1e-6, atol=1e-8
    )  # float32
    torch._dynamo.reset()


def test_inputs_of_a_frozen_backbone_in_inference_mode():
    """The layer is trained; its inputs were made without gradients."""
    weight, target = make_logits(10, 4, seed=2), make_target("tensor")
    with torch.inference_mode():
        features = make_logits(5, 4, seed=3)
    for arguments in ({}, {"recompute": True}, {"reduction": "none"}):
        grads = []
        for hidden in (features, features.clone()):
            leaf = weight.clone().requires_grad_()
            linear_distillation_loss(hidden, leaf, target, **arguments).sum().backward()
            grads.append(leaf.grad)
        assert torch.equal(*grads)


# Kept tensors
# ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", DENSE)
def test_targets_are_not_kept_alive(kind, function):
    expected = gradient_of(function, make_target(kind))
    target, leaf = make_target(kind), make_logits(5, 10, seed=0).requires_grad_()
    memory = StorageWeakRef(large(target).untyped_storage())
    loss = function(leaf, target, LABELS, **HARD)
    assert not memory.expired()
    del target
    assert memory.expired()
    loss.backward()
    assert torch.equal(leaf.grad, expected)


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_overwritten_after_the_forward_do_not_reach_the_gradient(kind, function):
    """A teacher's buffer that the next batch overwrites, and logits that are masked in place."""
    expected = gradient_of(function, make_target(kind))
    target, labels, leaf = make_target(kind), LABELS.clone(), make_logits(5, 10, seed=0).requires_grad_()
    logits = leaf * 1
    loss = function(logits, target, labels, **HARD)
    with torch.no_grad():
        for x in (logits, labels, *([target] if isinstance(target, torch.Tensor) else vars(target).values())):
            if isinstance(x, torch.Tensor):
                x.zero_()
    loss.backward()
    assert torch.equal(leaf.grad, expected)


def test_autograd_saves_the_gradient_and_nothing_else():
    leaf, saved = make_logits(5, 10, seed=0).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        distillation_loss(leaf, make_target("tensor"), LABELS, **HARD)
        assert saved == [(5, 10)]
        saved.clear()
        linear_distillation_loss(leaf, torch.eye(10).requires_grad_(), make_target("tensor"))
        assert saved == [(5, 10), (10, 10), (0,)]  # of the input, of the weight; there is no bias


@BOTH
@pytest.mark.parametrize("kept", [False, True])
def test_logits_are_let_go_by_the_backward(kept, function):
    """Also where the loss itself is held, to be printed after the next step; but not from a graph that is
    walked again."""
    leaf, target = make_logits(5, 10, seed=0).requires_grad_(), make_target("tensor")
    logits = leaf * torch.ones(())
    alive = weakref.ref(logits)
    loss = function(logits, target)
    del logits
    loss.backward(retain_graph=kept)
    assert (alive() is not None) == kept
    assert loss.isfinite()


# The second derivative
# ------------------------------------------------------------------------------------------------


def second(target, *, student=None, between=lambda: None, **arguments):
    """The second derivative times the gradient; ``between`` is called after the forward. Not of the forward
    KL, whose second derivative doesn't depend on the targets."""
    leaf = (make_logits(5, 10, seed=0, dtype=torch.float64) if student is None else student).requires_grad_()
    loss = distillation_loss(leaf, target, divergence="jsd", **arguments)
    del target
    between()
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_where_the_inputs_are_there(kind, recompute):
    target = make_target(kind)
    found = second(target, recompute=recompute)
    torch.testing.assert_close(
        found, second(target, impl="reference"), rtol=1e-10, atol=1e-14
    )  # float64, in another order


@pytest.mark.parametrize("layout", ["first", "last", "strided", "tokens"])
@pytest.mark.parametrize("members", [1, 3])
def test_second_derivatives_of_maps(members, layout):
    """Whether the op reads the targets in place or a copy: the ones that the caller holds are found again."""
    student, targets = (
        make_logits(2, 10, 3, 4, seed=0, dtype=torch.float64),
        make_logits(members, 2, 10, 3, 4, seed=1),
    )
    class_dim = 1
    if layout == "last":
        student = student.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        targets = targets.repeat_interleave(2, -1)[..., ::2]
    elif layout == "tokens":
        student, targets, class_dim = student.movedim(1, -1).contiguous(), targets.movedim(2, -1), -1
    for target in (targets, EnsembleLogits(targets), *((targets[0],) if members == 1 else ())):
        expected = second(target, student=student.clone(), class_dim=class_dim, impl="reference")
        found = second(target, student=student.clone(), class_dim=class_dim)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_second_derivative_without_targets_names_the_remedy():
    with pytest.raises(
        RuntimeError,
        match=(
            r"a second derivative needs the inputs, and the targets are gone; keep them.* or pass "
            r"recompute=True"
        ),
    ):
        second(make_target("tensor") * 1)
    found = second(make_target("tensor") * 1, recompute=True)
    target = make_target("tensor")
    torch.testing.assert_close(found, second(target), rtol=1e-12, atol=1e-15)


CHANGED = "changed in place; change copies"


@pytest.mark.parametrize(
    ("recompute", "message"), [(False, CHANGED), (True, "modified by an inplace operation")]
)
@pytest.mark.parametrize(("kind", "field"), [("tensor", None), ("codes", "codes"), ("topk", "tail_log_mass")])
def test_second_derivative_of_changed_inputs_is_refused_not_wrong(kind, field, recompute, message):
    target = make_target(kind)
    changed = getattr(target, field) if field else target
    with pytest.raises(RuntimeError, match=message):
        second(target, between=lambda: changed.add_(1), recompute=recompute)


def test_second_derivative_of_changed_logits_is_refused_not_wrong():
    logits = make_logits(5, 10, seed=0, dtype=torch.float64).requires_grad_() * 1
    loss = distillation_loss(logits, make_target("topk"))
    with torch.no_grad():
        logits.add_(1)
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match=CHANGED):
        first.sum().backward()


def test_inputs_changed_after_the_first_derivative_are_noticed_too():
    target, leaf = make_target("tensor"), make_logits(5, 10, seed=0, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(distillation_loss(leaf, target), leaf, create_graph=True)
    target.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()


def test_a_first_derivative_with_create_graph_needs_no_targets():
    """Optimisers pass create_graph=True, and then use second derivatives of only some parameters."""
    leaf = make_logits(5, 10, seed=0).requires_grad_()
    loss = distillation_loss(leaf, make_target("tensor") * 1, LABELS, **HARD)
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert first.requires_grad
    assert torch.equal(first.detach(), gradient_of(distillation_loss, make_target("tensor")))


def test_a_second_derivative_of_the_linear_loss_is_refused_wherever_it_leads():
    hidden, weight, bias = make_logits(5, 4, seed=0), make_logits(10, 4, seed=1), make_logits(10, seed=2)
    for leaf in (hidden, weight, bias):
        leaf.requires_grad_()
        for reduction in ("mean", "none"):
            loss = linear_distillation_loss(
                hidden, weight, make_target("tensor"), bias=bias, reduction=reduction
            ).sum()
            (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
            with pytest.raises(
                NotImplementedError, match="linear_distillation_loss: has no second derivative"
            ):
                torch.autograd.grad(first.sum() + leaf.sum(), leaf)


# torch.compile of torch.func
# ------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "transform", [torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f)), torch.func.jacrev]
)
def test_compiled_torch_func(transform, function):
    target = make_target("tensor")
    batch = transform not in (torch.func.grad, torch.func.jacrev)
    if batch and function is through_a_layer:
        return  # which has no vmap
    student = make_logits(5, 10, seed=0)
    student = torch.stack([student, 2 * student]) if batch else student
    derivative = transform(lambda s: function(s, target, LABELS, **HARD))
    expected = derivative(student)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(derivative, backend="aot_eager")(student), expected)
    torch._dynamo.reset()
    with pytest.raises(
        Exception,
        match=r"distillation_loss: torch\.compile can't take torch\.func\.grad, vjp or jacrev of it",
    ):
        torch.compile(derivative, backend="aot_eager", fullgraph=True)(student)
    torch._dynamo.reset()


def test_compiled_vmap_is_one_graph():
    torch._dynamo.reset()
    target, students = make_target("tensor"), make_logits(2, 5, 10, seed=0)
    function = torch.func.vmap(lambda s: distillation_loss(s, target, LABELS, **HARD))
    torch.testing.assert_close(
        torch.compile(function, backend="aot_eager", fullgraph=True)(students), function(students)
    )
    torch._dynamo.reset()
