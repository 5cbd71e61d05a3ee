"""Relational knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ensdistill.common.scalars import whole
from ensdistill.student.methods.method import Method, check_number
from ensdistill.student.methods.teachers import centred, mean_logits

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch


@dataclass(frozen=True)
class Relational(Method):
    """Huber's loss of the distances between a batch's rows, and of the angles in their triples.

    Distances are divided by their mean over the pairs; an angle is the cosine at one row between two others.
    Rows are points of logits: the student's, and the members' mean, each of mean 0. Location, scale and
    rotation are free, so the probabilities are not the ensemble's: mix ``labels`` or ``kd`` in.

    Parameters
    ----------
    distance, angle : float
        Weights of the two parts, of at least 0.
    rows : int
        The first rows of a batch that are compared, at least 3: angles of B rows are B³ numbers.

    References
    ----------
    Park et al., "Relational Knowledge Distillation", CVPR 2019.

    Examples
    --------
    >>> Relational(angle=0.0).distance
    1.0
    """

    distance: float = 1.0
    angle: float = 2.0
    rows: int = 64
    takes_mixture = False
    compares_rows = True

    def __post_init__(self) -> None:
        check_number("distance", self.distance)
        check_number("angle", self.angle)
        if not whole(self.rows) or self.rows < 3:
            raise ValueError(f"rows: expected at least 3, of which there are angles; got {self.rows!r}")

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        teacher, finite = (part[: self.rows] for part in mean_logits(targets))
        student = centred(outputs[: self.rows], finite)
        total = outputs.new_zeros(())
        if self.distance:
            pair = distances(student), distances(teacher)
            total = total + self.distance * F.smooth_l1_loss(*pair)
        if self.angle:
            total = total + self.angle * F.smooth_l1_loss(angles(student), angles(teacher))
        return total


def distances(points: Tensor) -> Tensor:
    """Distances [B, B], over the mean of those that are not 0."""
    squares = (points.unsqueeze(0) - points.unsqueeze(1)).square().sum(-1)
    apart = squares > 1e-12
    # The root's slope is infinite at 0, so equal rows leave it out.
    found = squares.where(apart, 1.0).sqrt().where(apart, 0.0)
    return found / (found.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def angles(points: Tensor) -> Tensor:
    """Cosines [B, B, B]: entry (j, i, k) is the angle at j between i and k; 0 where two of them are equal."""
    edges = points.unsqueeze(0) - points.unsqueeze(1)
    directions = F.normalize(edges, dim=-1, eps=1e-6)
    return torch.bmm(directions, directions.transpose(1, 2))
