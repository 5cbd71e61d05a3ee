"""Predictions of regressors: means [N, D] and, where a member gives them, variances [N, D]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ensdistill.common.describe import class_path
from ensdistill.common.tasks import task_of
from ensdistill.data import BadRows

MEAN_AND = ("mean_and_variance", "mean_and_log_variance")


class Moments(NamedTuple):
    """Means and variances in the data's units.

    Parameters
    ----------
    mean : ndarray [N, D], float64
        Of an ensemble's members [K, N, D].
    variance : ndarray [N, D], float64, or None
        Of the same shape; None where it is not predicted.
    """

    mean: np.ndarray
    variance: np.ndarray | None

    def take(self, index: Any) -> Moments:
        """Those of some rows, or of an ensemble's members, by positions or a mask along the first axis."""
        return Moments(self.mean[index], None if self.variance is None else self.variance[index])


def as_arrays(outputs: Any) -> dict[str, np.ndarray]:
    """Logits, or Moments, as arrays of a file: ``logits``, or ``mean`` and, where there is one, ``variance``.

    >>> list(as_arrays(Moments(np.zeros((2, 1)), None)))
    ['mean']
    """
    if not isinstance(outputs, Moments):
        return {"logits": outputs}
    mean, variance = outputs
    return {"mean": mean} if variance is None else {"mean": mean, "variance": variance}


def of_arrays(arrays: Mapping[str, np.ndarray]) -> Any:
    """The logits or the Moments that :func:`as_arrays` made arrays of."""
    return Moments(arrays["mean"], arrays.get("variance")) if "mean" in arrays else arrays["logits"]


def as_moments(name: str, mean: Any, variance: Any = None) -> Moments:
    """Numbers [N] or [N, D] as moments; NaN, infinity and negative variances are left to `check_moments`."""
    parts = [None if part is None else np.asarray(part) for part in (mean, variance)]
    shaped = [None if p is None else p[:, None] if p.ndim == 1 else p for p in parts]
    first, second = shaped
    if first is None or first.ndim != 2 or first.dtype.kind not in "fiu":
        got = "none" if first is None else f"{first.dtype} {list(first.shape)}"
        raise ValueError(f"{name}: expected numbers [N] or [N, D]; got {got}")
    if second is not None and second.shape != first.shape:
        raise ValueError(
            f"{name}: expected variances {list(first.shape)}, one for each mean; got {list(second.shape)}"
        )
    return Moments(first.astype(np.float64), None if second is None else second.astype(np.float64))


def check_moments(moments: Moments, name: str, rows: int, names: Sequence[str] | None) -> Moments:
    """The moments themselves.

    Raises
    ------
    ValueError
        Another number of rows or columns, a number that is not finite, or a negative variance; names the
        member and the rows.
    """
    expected = "D" if names is None else len(names)
    mean, variance = moments
    if mean.ndim != 2 or len(mean) != rows or (names is not None and mean.shape[1] != len(names)):
        raise ValueError(f"{name}: expected means [{rows}, {expected}]; got {list(mean.shape)}")
    for kind, values in (("means", mean), ("variances", variance)):
        if values is None:
            continue
        if values.shape != mean.shape:
            raise ValueError(f"{name}: expected {kind} {list(mean.shape)}; got {list(values.shape)}")
        wrong = ~np.isfinite(values) | ((values < 0) & (kind == "variances"))
        if len(bad := np.flatnonzero(wrong.any(1))):
            value = values[bad[0]][wrong[bad[0]]][0]
            raise BadRows(f"{name}: the {kind} of row {bad[0]} hold {value} ({len(bad)} such rows)", bad)
    return moments


def moments_of(member: Any, inputs: Any) -> Moments:
    """The moments that a member predicts.

    Raises
    ------
    TypeError
        It is no regressor.
    """
    if not hasattr(member, "predict_moments"):
        raise TypeError(
            f"{member.name}: expected a regressor, with predict_moments; got {type(member).__name__}"
        )
    mean, variance = member.predict_moments(inputs)
    return Moments(mean, variance)


def predictions_of(member: Any, inputs: Any) -> np.ndarray:
    """The means that a regressor predicts, float64 [N, D]; of any other member its logits, float32 [N, C]."""
    if task_of(member) == "regression":
        return moments_of(member, inputs).mean
    logits: np.ndarray = member.predict_logits(inputs)
    return logits


def split_moments(name: str, values: np.ndarray, output: str) -> Moments:
    """Outputs [N, D], or [N, 2 D] with the (log-)variances after the means, by the stated kind."""
    if output not in MEAN_AND:
        return as_moments(name, values)
    if values.ndim != 2 or values.shape[1] % 2:
        raise ValueError(
            f"output: {name}: expected outputs [N, 2 D], means and then variances, for {output}; got "
            f"{list(values.shape)}"
        )
    mean, spread = np.split(np.asarray(values, np.float64), 2, axis=1)
    return as_moments(name, mean, spread if output == "mean_and_variance" else np.exp(spread))


def joined_moments(name: str, outputs: Any, output: str) -> Any:
    """The outputs of a module or a function as one tensor or array: two parts stand side by side, [N, 2 D].

    Raises
    ------
    ValueError
        Two parts where one is stated: they could be mean and variance, its logarithm or root, or bounds.
    TypeError
        No numbers, or another number of parts.
    """
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    elif not isinstance(outputs, (Tensor, np.ndarray, tuple, list)) and hasattr(outputs, "logits"):
        outputs = outputs.logits  # as Hugging Face calls the outputs of its regressions
    if not isinstance(outputs, (tuple, list)):
        return outputs
    parts = [part[:, None] if part.ndim == 1 else part for part in outputs if hasattr(part, "ndim")]
    if len(parts) == 1:
        return parts[0]
    if len(parts) != 2 or len(outputs) != 2:
        raise TypeError(
            f"{name}: expected a mean, or a mean and a variance; got {class_path(type(outputs))} of "
            f"{len(outputs)} parts"
        )
    if output not in MEAN_AND:
        raise ValueError(
            f"output: {name}: it returns two parts; state output='mean_and_variance' or "
            "output='mean_and_log_variance'"
        )
    if isinstance(parts[0], Tensor):
        import torch

        return torch.cat(parts, dim=1)
    return np.concatenate(parts, axis=1)
