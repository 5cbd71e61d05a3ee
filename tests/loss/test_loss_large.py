"""Rows and maps with more elements than 32 bits can count, on the CPU; see test_gpu_device.py for a GPU."""

import os

import numpy as np
import pytest
import torch
from closed_forms import (
    closed_forms,
    make_logits,
    worst,
)

from ensdistill.functional import distillation_loss
from ensdistill.loss import ops


def available_memory() -> int:
    """Bytes; 0 where the system doesn't report it."""
    names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
    return (
        os.sysconf(names[0]) * os.sysconf(names[1])
        if set(names) <= set(getattr(os, "sysconf_names", ()))
        else 0
    )


# 65540 rows of 65537 classes, or as many in maps with the classes first: indices of the last rows need more
# than 32 bits.
PAST_32_BITS = {
    "classes last": (65540, 65537),
    "classes first": (1, 65537, 65540),
    "maps": (1030, 4096, 1030),
}


@pytest.mark.parametrize("layout", PAST_32_BITS)
def test_indices_past_two_to_the_32(layout):
    """Of the student, in memory that is reserved and hardly touched: all rows but the last three have no
    weight."""
    shape = PAST_32_BITS[layout]
    try:
        student = torch.from_numpy(np.zeros(shape, np.int16)).view(
            torch.bfloat16
        )  # calloc: untouched pages take no memory
    except MemoryError:
        pytest.skip("no address space for 8.6 GB")
    assert student.numel() > 2**32
    last = student[-3:] if len(shape) == 2 else student[-1, :, -3:].t()
    last[:, -40:] = make_logits(3, 40, seed=0, dtype=torch.bfloat16)
    targets = torch.zeros(shape[1]).view(-1, *(1,) * (len(shape) - 2)).expand(1, *shape)
    weights = torch.zeros((shape[0],) if len(shape) == 2 else (shape[0], shape[2]))
    weights.view(-1)[-3:] = 1
    losses = distillation_loss(student, targets, sample_weights=weights, reduction="none", class_dim=1).view(
        -1
    )
    truth = closed_forms(last, torch.zeros(1, *last.shape), reduction="none").loss
    assert truth.min() > 1e-4  # so that another row's loss would not do
    assert worst(losses[-3:], truth) <= 1e-5 * truth.max()
    assert (losses[:-3] == 0).all()


LARGE = "ENSDISTILL_TEST_LARGE"


@pytest.mark.parametrize("layout", ["classes last", "maps"])
def test_gradients_past_two_to_the_32(layout):
    """Of 8.6 GB, each row looked at; the inputs are one row or map, repeated by a stride of 0."""
    if not os.environ.get(LARGE):
        pytest.skip(
            "takes 9 GB of memory and half a minute, too much beside other work and for every run; set "
            f"{LARGE}=1 to run it"
        )
    if (free := available_memory()) < 11 * 2**30:
        pytest.skip(f"needs 11 GiB of memory; {free / 2**30:.1f} GiB are available")
    shape = PAST_32_BITS[layout]
    one, teacher = (make_logits(*shape[1:], seed=i, dtype=torch.bfloat16) for i in (0, 1))
    truth = closed_forms(as_rows(one), as_rows(teacher)[None], reduction="none")
    student = one.expand(shape).requires_grad_()
    loss = distillation_loss(student, teacher.expand(1, *shape), class_dim=1, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, student)  # .backward() would copy it
    try:
        assert gradient.numel() > 2**32
        assert worst(as_rows(gradient[0]), truth.gradient) <= 2**-8 * truth.gradient.abs().max()
        assert all(torch.equal(x, gradient[0]) for x in gradient)  # the same inputs give the same bits
        assert loss.item() == pytest.approx(truth.loss.sum().item() * shape[0], rel=1e-6)
    finally:
        del loss, gradient
        ops.release_memory()


def as_rows(x):
    """One row [C], or the pixels of a map [C, I], as [N, C]."""
    return x[None] if x.dim() == 1 else x.t()
