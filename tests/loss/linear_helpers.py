"""Layers, targets and the unfused loss that the linear loss is compared with."""

import torch
from closed_forms import make_codes, make_counts, make_logits, make_top_k

from ensdistill.functional import distillation_loss
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.targets import LogProbs, Probs

KINDS = ("logits", "codes", "log_probs", "probs", "topk", "counts")
LABELS = torch.arange(11) % 7
LABELS[3] = -100


def make_target(kind, n=11, c=20):
    z = make_logits(3, n, c, seed=5, dtype=torch.float64)
    return {
        "logits": z.float(),
        "codes": make_codes(3, n, c, seed=5),
        "log_probs": LogProbs(torch.log_softmax(z, -1).float(), torch.tensor([1.0, 0.0, 2.0])),
        "probs": Probs(torch.softmax(z, -1).float()),
        "topk": make_top_k(n, c, 4, seed=5),
        "counts": make_counts(n, c, 9, seed=5),
    }[kind]


def make_layer(n=11, d=6, c=20, dtype=torch.float64):
    """hidden, weight, bias."""
    return [
        make_logits(*shape, seed=i, dtype=dtype, spread=1.0).requires_grad_()
        for i, shape in enumerate(((n, d), (c, d), (c,)))
    ]


def unfused(hidden, weight, bias, target, labels=None, softcap=None, **arguments):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return distillation_loss(logits, target, labels, **arguments)


def both(layer, target, labels=None, *, factor=1.0, chunk_rows=4, recompute=False, **arguments):
    """Losses and gradients of the fused and of the unfused way, side by side."""
    results = []
    for function in (linear_distillation_loss, unfused):
        leaves = [None if x is None else x.detach().clone().requires_grad_() for x in layer]
        if function is unfused:
            loss = function(*leaves, target, labels, **arguments)
        else:
            loss = function(
                *leaves[:2],
                target,
                labels,
                bias=leaves[2],
                chunk_rows=chunk_rows,
                recompute=recompute,
                **arguments,
            )
        (loss * factor).sum().backward()
        results.append([loss.detach(), *(x.grad for x in leaves if x is not None)])
    return zip(*results, strict=True)
