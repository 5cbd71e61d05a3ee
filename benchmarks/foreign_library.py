"""``python benchmarks/foreign_library.py LIBRARY``: a CPU library that was built against another torch, under
the one that runs here.

In a process of its own, without ensdistill: two libraries can't register one op. The library may be of
another Python, since torch loads only the ops in it. The loss is compared with plain torch code in float64.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F


def main(library: str) -> int:
    """Returns the exit status; raises where the library doesn't load or computes something else."""
    torch.ops.load_library(library)
    random = torch.Generator().manual_seed(0)
    student, targets = torch.randn(7, 33, generator=random), torch.randn(3, 7, 33, generator=random)
    labels = torch.arange(7)
    settings = ("logits", "forward_kl", 0.5, 2.0, 0.6, "prob", "tail", -100, 0.0, 0.0, "mean", 1.0)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        s = student.to(dtype)
        loss, gradient, _ = torch.ops.ensdistill.distill_loss(
            s, targets, *(None,) * 5, labels, None, None, *settings, True, False
        )
        exact = s.double().requires_grad_()
        p = torch.softmax(targets.double() / 2, -1).mean(0)
        truth = 0.6 * 4 * F.kl_div(
            torch.log_softmax(exact / 2, -1), p, reduction="batchmean"
        ) + 0.4 * F.cross_entropy(exact, labels)
        truth.backward()
        assert exact.grad is not None
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(loss.double(), truth.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient.double(), exact.grad, rtol=unit, atol=1e-6)
    print(f"{library} under torch {torch.__version__}: loss and gradient are right")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
