"""The shapes that are timed, and the bytes that they have to move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

TEMPERATURE = 2.0  # a usual choice; at 1 no division is needed, which spares the plain code two passes
ALPHA = 0.5  # where there are hard labels
SIDE = 64  # of a feature map
MULTILABEL = "bernoulli_kl"  # the divergence of C sigmoids, of which each row may have any number
TEACHER_HIDDEN = (
    64  # of linear cases: Liger's fused loss multiplies the teacher's layer too, which so costs it little
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One shape: N rows, C classes, K members.

    Parameters
    ----------
    student : {"float32", "bfloat16", "float16"}
    targets : {"float32", "bfloat16", "float16", "uint8", "topk"}
        Logits; affine codes; the 64 largest log-probabilities with the tail's mass.
    divergence : str
        Of distributions over C classes, or ``MULTILABEL``.
    labels : bool
        Mixed half and half with cross entropy.
    layout : {"rows", "map"}
        [N, C], or feature maps [N, C, 64, 64].
    hidden : int
        D of a last layer [C, D] that makes the logits; 0 for logits that are there.
    small : bool
        A batch as small as it comes, where most time goes into starting the work: many batches outrun the
        caches, not a large one.
    statistics : bool
        With the by-products of each row.
    """

    rows: int
    classes: int
    members: int
    student: str
    targets: str
    divergence: str = "forward_kl"
    labels: bool = False
    layout: str = "rows"
    hidden: int = 0
    small: bool = False
    statistics: bool = False

    @property
    def label(self) -> str:
        """Its name, which no other case of a run has."""
        kind = f"float32/{self.targets}" if self.student == "float32" != self.targets else self.targets
        return " ".join(filter(None, (f"C={self.classes} K={self.members} {kind}", self.family)))

    @property
    def family(self) -> str:
        """The difference from a forward KL of logits [N, C]; empty for one."""
        words = (
            (f"{self.student} student", self.student not in ("float32", self.targets)),
            (self.divergence, self.divergence != "forward_kl"),
            ("labels", self.labels),
            ("[N,C,H,W]", self.layout == "map"),
            (f"linear D={self.hidden}", self.hidden),
            (f"N={self.rows}", self.small),
            ("statistics", self.statistics),
        )
        return " ".join(word for word, present in words if present)

    @property
    def listed(self) -> int:
        """k of top-k targets."""
        return min(64, max(1, self.classes // 2))

    @property
    def divisor(self) -> int:
        """Of the sum over rows. float16 gradients of a mean over many rows would round to nothing in any
        implementation."""
        return 1 if self.student == "float16" else self.rows

    def bytes_moved(self, gradient: bool) -> int:
        """Fewest bytes through memory: student and targets read once, the gradient written once.

        N·C·(b_student·(1 or 2) + K·b_targets); for codes 8 more for the scale and offset of each of the K·N
        rows; for top-k targets N·(8·k + 4) (int32 ids, float32 log-probabilities, tail) instead of theirs; 8
        a label; 16 a row's by-products. Reading a line of the gradient before it is written, as ordinary
        stores do, is not counted: the floor pays for it too. With a last layer: hidden, weight and their
        gradients.
        """
        b, n = DTYPES[self.student].itemsize, self.rows
        own = self.hidden * (n + self.classes) if self.hidden else n * self.classes
        total = own * b * (1 + gradient) + n * (8 * self.labels + 16 * self.statistics)
        if self.targets == "topk":
            return total + n * (8 * self.listed + 4)
        if self.targets == "uint8":
            return total + self.members * n * (self.classes + 8)
        return total + self.members * n * self.classes * DTYPES[self.targets].itemsize

    def describe(self) -> dict[str, Any]:
        """As the columns of a result's row."""
        return {**vars(self), "case": self.label, "family": self.family}


def make_case(
    data_bytes: int, classes: int, members: int, targets: str, student: str | None = None, **family: Any
) -> Case:
    """The case whose inputs and gradient take about ``data_bytes``; rows come in fours, so that threads share
    them evenly.

    By default the student's dtype is that of the targets, and float32 beside codes and top-k targets.
    """
    student = student or (targets if targets in DTYPES else "float32")
    row = Case(1, classes, members, student, targets, **family).bytes_moved(gradient=True)
    step = SIDE * SIDE if family.get("layout") == "map" else 4
    return Case(max(step, data_bytes // row // step * step), classes, members, student, targets, **family)
