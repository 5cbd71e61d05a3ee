"""``python -m benchmarks.sanitize``: a small launch of every layout of kernel, for compute-sanitizer to
watch.

Inputs are made on the CPU, and rows are few: a sanitizer makes kernels a hundred times slower. The results
are compared with the specification.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ensdistill.functional import distillation_loss
from ensdistill.loss import ops
from ensdistill.loss.encoders import quantize_logits, sample_counts, top_k_targets
from ensdistill.loss.explain import KernelPlan, kernel_plan
from ensdistill.loss.targets import EnsembleLogits, QuantizedLogits, Targets, TopK

_F32, _BF16, _F16, _F64, _U8 = torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8


@dataclass(frozen=True)
class Launch:
    """One call; ``layout`` is the one that an H100 uses. C = 1003 and the like: rows whose vectors aren't
    aligned."""

    layout: str
    rows: int
    classes: int
    members: int = 1
    student: torch.dtype = _F32
    targets: torch.dtype = _F32
    divergence: str = "forward_kl"
    entries: int = 0
    classes_first: bool = False

    def plan(self) -> KernelPlan:
        return kernel_plan(
            self.rows,
            self.classes,
            members=self.members,
            student=self.student,
            targets=self.targets,
            divergence=self.divergence,  # type: ignore[arg-type]
            entries=self.entries,
            classes_first=self.classes_first,
        )

    def inputs(self, device: torch.device) -> tuple[Tensor, Targets, Tensor, int]:
        """Student, targets, labels of which one is ignored, and the dimension of the classes."""
        random = torch.Generator().manual_seed(self.classes + self.members)
        n, c = self.rows, self.classes
        shape = (1, c, n) if self.classes_first else (n, c)
        student = torch.randn(shape, generator=random).to(self.student)
        labels = torch.randint(0, c, (1, n) if self.classes_first else (n,), generator=random)
        labels.view(-1)[n // 2] = -100
        targets: Targets
        if self.entries:
            log_p = torch.log_softmax(torch.randn(shape, generator=random), -1)
            top = log_p.topk(self.entries)
            tail = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
            targets = TopK(top.indices.to(device), top.values.to(device), tail.to(device))
        elif self.targets == _U8:
            codes = torch.randint(0, 256, (self.members, *shape), generator=random, dtype=_U8)
            scale = (0.02 + torch.rand(self.members, n, generator=random) / 50).to(device)
            targets = QuantizedLogits(codes.to(device), scale, -3 * torch.ones_like(scale))
        else:
            targets = EnsembleLogits(
                torch.randn(self.members, *shape, generator=random).to(self.targets).to(device)
            )
        return (
            student.to(device).requires_grad_(),
            targets,
            labels.to(device),
            1 if self.classes_first else -1,
        )


LAUNCHES = (
    Launch("staged", 300, 10, 3),
    Launch("staged", 131, 31, 1, _BF16, _U8, "jsd"),
    Launch("strided", 150, 21, 2, classes_first=True),
    Launch("strided", 33, 150, 1, _BF16, _BF16, "tvd", classes_first=True),
    Launch("tile", 37, 100, 2),
    Launch("tile", 9, 1003, 1, _BF16, _U8, "reverse_kl"),
    Launch("tile", 9, 1003, 2, _F16, _F16, "jsd"),
    Launch("block", 5, 3001, 9),  # members in turn; the others that stay on chip hold all at once
    Launch("block", 5, 4096, 1, _BF16, _BF16, "jsd"),
    Launch("block", 5, 5003, 1, _BF16, entries=20),
    Launch("cluster", 2, 50_257, 2),
    Launch("cluster", 2, 128_256, 1, _BF16, _BF16, "reverse_kl"),
    Launch("reread", 2, 262_144, 2),
    Launch("reread", 2, 262_143, 7, _BF16, _U8, "jsd"),
    Launch("reread", 2, 120_001, 1, entries=20),
    Launch("doubles", 7, 33, 2, _F64, _F64),
    Launch("doubles", 7, 33, 1, _BF16, _F16, "tvd"),
)


def run(launch: Launch, device: torch.device) -> None:
    """Loss, gradient, by-products; and the loss once more by the specification.

    Raises
    ------
    AssertionError
        It differs from the specification's result for the same inputs in float64.
    """
    student, targets, labels, class_dim = launch.inputs(device)
    upstream = 3.0  # so that the gradient is scaled, in its own memory
    arguments: dict[str, Any] = {
        "alpha": 0.6,
        "divergence": launch.divergence,
        "z_loss": 0.01,
        "class_dim": class_dim,
    }
    loss, rows = distillation_loss(
        student, targets, labels, label_smoothing=0.1, statistics=True, **arguments
    )
    (gradient,) = torch.autograd.grad(upstream * loss, student)
    exact = student.detach().double().cpu().requires_grad_()
    there: dict[str, Any] = {name: x.cpu() for name, x in vars(targets).items() if isinstance(x, Tensor)}
    on_cpu = replace(targets, **there)
    truth = distillation_loss(exact, on_cpu, labels.cpu(), label_smoothing=0.1, impl="reference", **arguments)
    (expected,) = torch.autograd.grad(upstream * truth, exact)
    unit = torch.finfo(launch.student).eps
    # Rounded to the student's type, and of logits up to 5 in float32.
    torch.testing.assert_close(loss.double().cpu(), truth.detach(), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(gradient.double().cpu(), expected, rtol=2 * unit + 1e-4, atol=upstream * 2e-6)
    assert not rows.student_entropy.view(-1)[0].isnan()


@dataclass(frozen=True)
class Encoding:
    """One call of an encoder; ``size`` is k or the number of draws."""

    encoder: str
    rows: int
    classes: int
    members: int = 1
    targets: torch.dtype = _F32
    size: int = 0

    def __str__(self) -> str:
        kind = f"{self.targets}".removeprefix("torch.")
        return f"{self.encoder} N={self.rows} C={self.classes} K={self.members} {kind} size={self.size}"

    def inputs(self) -> EnsembleLogits | QuantizedLogits:
        """Logits, of which a few are masked, or codes; on the CPU."""
        random = torch.Generator().manual_seed(self.classes + self.members)
        shape = (self.members, self.rows, self.classes)
        if self.targets == _U8:
            scale = 0.02 + torch.rand(shape[:2], generator=random) / 50
            return QuantizedLogits(
                torch.randint(0, 256, shape, generator=random, dtype=_U8), scale, -3 * torch.ones_like(scale)
            )
        logits = torch.randn(shape, generator=random).to(self.targets)
        logits[0, 0, 2::5] = -torch.inf
        return EnsembleLogits(logits)

    def encode(self, targets: EnsembleLogits | QuantizedLogits, **arguments: Any) -> tuple[Any, Tensor]:
        if self.encoder == "counts":
            return sample_counts(targets, self.size, seed=1, temperature=2.0, **arguments)
        if self.encoder == "top_k":
            return top_k_targets(targets, self.size, temperature=2.0, **arguments)
        assert isinstance(targets, EnsembleLogits)
        return quantize_logits(targets, **arguments)


# A block's working data lies in its own memory, or from some 14 000 classes or 9 000 places on in the
# device's.
ENCODINGS = (
    Encoding("uint8", 7, 10, 3),
    Encoding("uint8", 3, 1003, 2, _BF16),
    Encoding("uint8", 2, 20_011, 1, _F64),
    Encoding("top_k", 5, 33, 1, _F16, 33),
    Encoding("top_k", 3, 1003, 3, _U8, 20),
    Encoding("top_k", 2, 20_011, 2, _F32, 50),
    Encoding("top_k", 1, 12_007, 1, _F32, 10_001),
    Encoding("counts", 5, 10, 2, _F32, 7),
    Encoding("counts", 3, 1003, 3, _U8, 300),
    Encoding("counts", 2, 20_011, 1, _BF16, 40),
)


def encode(encoding: Encoding, device: torch.device) -> None:
    """An encoder, and its specification.

    Raises
    ------
    AssertionError
        They differ: in a code, an id or a count, or in the last digits of a number.
    """
    targets = encoding.inputs()
    there = replace(
        targets, **{name: x.to(device) for name, x in vars(targets).items() if isinstance(x, Tensor)}
    )
    (found, kl), (expected, expected_kl) = encoding.encode(there), encoding.encode(targets, impl="reference")
    torch.testing.assert_close(
        kl.cpu(), expected_kl, rtol=1e-11, atol=1e-12
    )  # sums of some ten thousand doubles
    for name, x in vars(expected).items():
        if isinstance(x, Tensor):
            # A logarithm's last digit decides to which of two floats it is rounded; all else is equal.
            unit = 2.0**-23 if name in ("log_probs", "tail_log_mass") else 0.0
            torch.testing.assert_close(getattr(found, name).cpu(), x, rtol=unit, atol=unit and 1e-13)


# Types, sizes that no vector divides, and where memory begins: on a vector's boundary or not.
SCALINGS = tuple(
    (dtype, size, start)
    for dtype in (_F32, _BF16, _F16, _F64)
    for size, start in ((7, 0), (5003, 0), (1031, 1))
)


def scale(
    dtype: torch.dtype,
    size: int,
    start: int,
    device: torch.device,
    op: Any = torch.ops.ensdistill.scale_gradient,
) -> None:
    """A gradient times a number, in its own memory.

    Raises
    ------
    AssertionError
        It isn't, or the memory before it has changed.
    """
    memory = torch.randn(start + size, generator=torch.Generator().manual_seed(size)).to(dtype)
    there = memory.to(device, copy=True)
    op(there[start:], torch.tensor(-3.0, device=device))
    assert torch.equal(there[:start].cpu(), memory[:start])
    # A product with 3 has two digits more at most, which float32 holds: rounded once.
    assert torch.equal(there[start:].cpu(), (memory[start:].double() * -3).to(dtype))


def lines() -> Iterator[str]:
    for launch in LAUNCHES:
        kind = f"{launch.student}".removeprefix("torch.") + "/" + f"{launch.targets}".removeprefix("torch.")
        yield (
            f"N={launch.rows} C={launch.classes} K={launch.members} {kind} {launch.divergence} "
            f"k={launch.entries}: {launch.plan()}"
        )


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanitize", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the plans, run nothing")
    parser.add_argument("--layouts", nargs="+", help="only these, of a plan; or encode, or scale")
    options = parser.parse_args()
    if options.list:
        print(
            *lines(),
            *ENCODINGS,
            *(f"scale {dtype} size={size} start={start}" for dtype, size, start in SCALINGS),
            sep="\n",
        )
        return 0
    if not (torch.cuda.is_available() and ops.build_info()["cuda"]["built"]):
        print(
            "there is no GPU, or the CUDA kernels aren't built; --list prints the launches", file=sys.stderr
        )
        return 2
    device = torch.device("cuda")
    for launch, line in zip(LAUNCHES, lines(), strict=True):
        if not options.layouts or launch.layout in options.layouts:
            run(launch, device)
            print(line, flush=True)
    for encoding in ENCODINGS if not options.layouts or "encode" in options.layouts else ():
        encode(encoding, device)
        print(encoding, flush=True)
    for scaling in SCALINGS if not options.layouts or "scale" in options.layouts else ():
        scale(*scaling, device)
        print("scale", *scaling, flush=True)
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
