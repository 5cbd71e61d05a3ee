"""The interface of sources of synthetic samples, and checks that they share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from ensdistill.common.describe import import_function
from ensdistill.data import batches as b

_ROUNDS = 100  # of draws for rows that violate the constraint


@runtime_checkable
class Synthetic(Protocol):
    """A source of samples that resemble the given ones; a config names its class in ``synthetic``.

    A source whose ``make`` has a third parameter, ``ensemble``, also gets the ensemble (see
    :class:`DifferentiableEnsemble`).
    """

    rows: int

    def make(self, base: Any, generator: np.random.Generator) -> Any:
        """New samples, a batch of the kind and form of ``base``: an array [rows, ...] of its dtype, a frame
        with its columns, a list of strings or of images."""
        ...


class DifferentiableEnsemble(Protocol):
    """An ensemble whose outputs have gradients with respect to its inputs."""

    def differentiable(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """For each member a function from inputs [N, ...] to its calibrated logits [N, C], through which
        gradients flow.

        Raises
        ------
        ValueError
            A member has no gradients; names it.
        """
        ...


def needs_ensemble(source: Synthetic) -> bool:
    """Whether the source's ``make`` has a parameter ``ensemble``."""
    return "ensemble" in inspect.signature(source.make).parameters


def check_rows(name: str, rows: int) -> None:
    if rows < 1:
        raise ValueError(f"{name}: rows: expected at least 1; got {rows}")


def check_share(name: str, argument: str, value: float) -> None:
    if not (0 < value <= 1):
        raise ValueError(f"{name}: {argument}: expected a number in (0, 1]; got {value}")


def imported(name: str, constraint: Any) -> Any:
    """The function that an import path names, ``package.module.function``; a function as it is."""
    if constraint is None or callable(constraint):
        return constraint
    if not isinstance(constraint, str):
        raise ValueError(
            f"{name}: constraint: expected a function, or its import path; got {type(constraint).__name__}"
        )
    return import_function(f"{name}: constraint", constraint)


def constrained(name: str, rows: int, constraint: Any, make: Callable[[np.ndarray], Any]) -> Any:
    """Rows that fulfil the constraint: those that violate it are drawn again, up to 100 times.

    Parameters
    ----------
    name : str
        Of the source, for errors.
    rows : int
    constraint : callable or None
        From a batch to bool [N], True where a row is right; or to the same rows, repaired. It judges each row
        by itself.
    make : callable
        From the positions of rows, int64 [M], among all ``rows`` to a batch of M rows.

    Raises
    ------
    TypeError, ValueError
        The constraint returns something else, or rows still violate it.
    """
    made = make(np.arange(rows))
    if constraint is None:
        return made
    verdict = constraint(made)
    if type(verdict) is type(made) and np.ndim(verdict) != 1:
        if b.describe(verdict) != b.describe(made) or b.count(verdict) != rows:
            raise ValueError(
                f"{name}: constraint: expected the {rows} rows with the same columns; got "
                f"{b.count(verdict)} rows, {b.describe(verdict)}"
            )
        return verdict
    left, rounds = np.flatnonzero(~_as_mask(name, verdict, rows)), 0
    while len(left):
        if rounds == _ROUNDS:
            raise ValueError(
                f"{name}: constraint: {len(left)} of {rows} rows still violate it after {_ROUNDS} draws, row "
                f"{left[0]} first. Loosen it, check that the data fulfil it, or let it return the batch with "
                "such rows repaired"
            )
        drawn, index = make(left), np.arange(rows)
        index[left] = rows + np.arange(len(left))
        made = b.take(b.join([made, drawn]), index)
        left = left[~_as_mask(name, constraint(drawn), len(left))]
        rounds += 1
    return made


def _as_mask(name: str, verdict: Any, rows: int) -> np.ndarray:
    mask = np.asarray(verdict)
    if mask.shape != (rows,) or mask.dtype != bool:
        raise TypeError(
            f"{name}: constraint: expected bool [{rows}], True where a row is right, or the repaired batch; "
            f"got {type(verdict).__name__} of {mask.dtype} {list(mask.shape)}"
        )
    return mask
