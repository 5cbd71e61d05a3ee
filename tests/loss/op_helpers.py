"""Legal arguments of the operator ``ensdistill::distill_loss``."""

import torch
from closed_forms import make_codes, make_logits, make_top_k

from ensdistill.loss.settings import LossSettings
from ensdistill.loss.signature import OpTensors, op_call, op_settings

LABELS = torch.tensor([3, -100, 0, 9, 1])


def arguments(
    k=3,
    dtype=torch.float32,
    kind="logits",
    divergence="forward_kl",
    labels=None,
    reduction="mean",
    maps=False,
    **flags,
):
    """The op's; ``kind`` may be codes, and ``maps`` is [O, I, C] with the classes first in memory."""
    with_gradient, with_statistics = flags.get("with_gradient", True), flags.get("with_statistics", False)
    shape = (5, 10) if not maps else (1, 10, 5)
    student, values = make_logits(*shape, seed=0, dtype=dtype), make_logits(k, *shape, seed=1)
    student, values = (student.mT, values.mT) if maps else (student, values)
    scale = offset = ids = tail = None
    if kind == "codes":
        codes = make_codes(k, 5, 10, seed=1, masked=True)
        kind, values, scale, offset = "logits", codes.codes, codes.scale, codes.offset
    elif kind == "topk":
        top = make_top_k(5, 10, 4, seed=1)
        values, ids, tail = top.log_probs, top.ids.long(), top.tail_log_mass
    elif kind == "probs":
        values = values.softmax(-1)
    weights = torch.arange(k, dtype=torch.float64) if k > 1 and kind != "topk" else None
    per_class = None if labels is None else torch.linspace(0, 2, 10, dtype=torch.float64)
    rows = None if labels is None else torch.linspace(0, 3, 5, dtype=torch.float64)
    loss = LossSettings(
        divergence=divergence,
        beta=0.3,
        temperature=2.0,
        alpha=1.0 if labels is None else 0.4,
        label_smoothing=0.1,
        z_loss=0.01,
    )
    settings = op_settings(
        loss, kind=kind, combiner="prob", tail_mode="tail", reduction=reduction, divisor=3.0
    )
    tensors = OpTensors(scale, offset, ids, tail, weights, labels, per_class, rows)
    flags = {"with_gradient": with_gradient, "with_statistics": with_statistics}
    return tuple(op_call(student.requires_grad_(with_gradient), values, tensors, settings, **flags))
