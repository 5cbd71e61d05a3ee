"""Inputs perturbed so that the outputs of an ensemble's members differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.scalars import plain_fields
from ensdistill.data import batches as b
from ensdistill.data.transfer.arrays import as_array
from ensdistill.data.transfer.base import DifferentiableEnsemble, check_rows

_STEP = 256  # samples whose gradients are taken at once


@dataclass(frozen=True)
class Diversity:
    """Output-diversified sampling, ODS and ConfODS (Nam et al., 2021, "Diversity Matters When Learning From
    Ensembles").

    Passes over the base. Row x becomes x + step * sqrt(D) * g / |g| with g the gradient of w · softmax(z(x) /
    temperature) with respect to x, D the numbers of a row, z the calibrated logits of a member that is drawn
    for each row, and w drawn uniformly from [-1, 1] for each class. ConfODS multiplies the perturbation by
    the largest of the member's probabilities, so that rows of which it is unsure are moved less.

    Parameters
    ----------
    rows : int
    step : float
        The root mean square of the perturbation's numbers: in units of the inputs, which the paper's 1/255
        takes to be standardised.
    temperature : float
        Of the softmax.
    confidence : bool
        ConfODS; else ODS.
    low, high : float, optional
        Perturbed values are cut off there. By default they are not.

    Notes
    -----
    All members that are drawn have to be differentiable: torch modules on floating-point inputs. A row whose
    gradient is zero stays as it is.

    Examples
    --------
    >>> class Linear:
    ...     def differentiable(self):
    ...         return [lambda x: x @ torch.eye(2, 3, dtype=x.dtype)]
    >>> moved = Diversity(rows=4, step=0.1, confidence=False).make(
    ...     np.zeros((1, 2)), np.random.default_rng(0), Linear()
    ... )
    >>> np.linalg.norm(moved, axis=1).round(3).tolist()  # 0.1 times the square root of 2
    [0.141, 0.141, 0.141, 0.141]
    """

    rows: int
    step: float = 1 / 255
    temperature: float = 1.0
    confidence: bool = True
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rows("diversity", self.rows)
        if not (0 < self.step < np.inf) or not (0 < self.temperature < np.inf):
            raise ValueError(
                f"diversity: expected a positive step and temperature; got {self.step} and {self.temperature}"
            )

    def make(
        self, base: Any, generator: np.random.Generator, ensemble: DifferentiableEnsemble | None = None
    ) -> Any:
        """``rows`` perturbed rows of ``base``, an array or tensor [N, ...].

        Raises
        ------
        TypeError, ValueError
            The inputs are no floating-point numbers, there is no ensemble, or one of its members has no
            gradients.
        """
        kind = b.kind_of(base, "diversity").name
        inputs, restore = as_array("diversity", base) if kind in ("array", "tensor") else (None, None)
        if inputs is None or restore is None or inputs.dtype.kind != "f":
            got = kind if inputs is None else inputs.dtype
            raise TypeError(
                f"diversity: expected floating-point inputs, in which small steps can be taken; got {got}"
            )
        if not hasattr(ensemble, "differentiable"):
            raise ValueError(
                "diversity: expected an ensemble with the method differentiable(), whose members are torch "
                f"modules; got {type(ensemble).__name__}"
            )
        members = ensemble.differentiable()  # type: ignore[union-attr]
        chosen = generator.integers(len(members), size=self.rows)
        made = inputs[np.arange(self.rows) % len(inputs)]
        for k, member in enumerate(members):
            own = np.flatnonzero(chosen == k)
            for start in range(0, len(own), _STEP):
                rows = own[start : start + _STEP]
                made[rows] = self._perturbed(member, torch.from_numpy(made[rows]), generator)
        return restore(made)

    def _perturbed(self, member: Any, inputs: Tensor, generator: np.random.Generator) -> np.ndarray:
        x = inputs.clone().requires_grad_()
        with torch.enable_grad():
            probabilities = (member(x) / self.temperature).softmax(-1)
            w = torch.from_numpy(generator.uniform(-1, 1, tuple(probabilities.shape)))
            total = (w.to(probabilities) * probabilities).sum()
            (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
        if gradient is None:
            raise ValueError("diversity: a member's outputs have no gradient with respect to its inputs")
        flat = gradient.flatten(1).double()
        length = flat.norm(dim=1, keepdim=True)
        scale = self.step * flat.shape[1] ** 0.5
        if self.confidence:
            scale = scale * probabilities.detach().double().amax(-1, keepdim=True).cpu()
        moved = inputs.flatten(1).double() + torch.where(length > 0, flat / length, 0.0) * scale
        if self.low is not None or self.high is not None:
            moved = moved.clamp(self.low, self.high)
        made: np.ndarray = moved.to(inputs.dtype).view(inputs.shape).numpy()
        return made
