"""The contract of a codec, and the batch of logits that it encodes.

Reading must not import torch, so torch is imported only inside the methods that encode or that return
tensors.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ensdistill.cache.codecs.comparison import Comparison, Tolerance, kl_divergence
from ensdistill.cache.codecs.names import PACKAGE, written_name
from ensdistill.common.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from ensdistill.loss.encoders import Impl
    from ensdistill.loss.targets import Targets

Fields = dict[str, np.ndarray]
"""A codec's fields of N records by name, each ``[N, *shape]``."""

FieldShapes = dict[str, tuple[str, tuple[int, ...]]]
"""Name of each field of a record to its little-endian NumPy dtype and its shape."""


def largest_share_distance(classes: int) -> float:
    """How far below the largest logit a class has a share of less than exp(-16) = 1e-7 at T = 1.

    All classes below that distance, taken together, have less than that share.
    """
    return math.log(classes) + 16.0


@dataclass(frozen=True)
class Batch:
    """The rows of N records that are to be stored, each C logits, or the numbers of its task.

    Logits of classification are finite or ``-inf``, at least one in each row finite. Those of multi-label
    members are log-odds, of which any may be ``-inf``. Of regression a row has D means in standardised units,
    and after them D deviations (roots of variances) or none: finite numbers.

    Parameters
    ----------
    logits : Tensor float32 [K, N, C]
        Of each member, on the device where the members run; C is D or 2 D of regression.
    names : sequence of str
        The K members.
    weights : Tensor float64 [K]
    combiner : {"prob", "logit", "log_prob"}
    temperature : float or None
        Of the mixture that the cache holds; None where it holds each member's logits.
    uids : ndarray int64 [N]
        The samples' uids, by which an error names a record.
    draw_ids : ndarray int64 [N]
        A different number for each record of the cache, for codecs that draw at random.
    impl : {"fused", "reference"}
        The implementation of ``ensdistill.loss.encoders`` to use: kernels exist for some devices only.
    seed : int or None
        Of the draws; None for codecs that do not draw.
    floor : float or None
        `Codec.floor` of this cache.
    task : {"classification", "multilabel", "regression"}
    numbers : int or None
        D, of regression.
    """

    logits: Tensor
    names: Sequence[str]
    weights: Tensor
    combiner: Any
    temperature: float | None
    uids: np.ndarray
    draw_ids: np.ndarray
    impl: Impl
    seed: int | None
    floor: float | None
    task: Task = "classification"
    numbers: int | None = None

    @cached_property
    def mixture(self) -> Tensor:
        """The mixture at ``temperature`` (at 1 where that is None), float64 [N, C].

        Log-probabilities of classification, log-odds of multi-label members, means and deviations of
        regression.
        """
        from ensdistill.cache.codecs.measures import mixture_of

        weights, temperature = self.weights.to(self.logits.device), self.temperature or 1.0
        return mixture_of(self.task, self.logits, weights, self.combiner, temperature, self.numbers)

    @property
    def values(self) -> Tensor:
        """The rows of a record, float32: of the members [K, N, C], or of the mixture [1, N, C]."""
        # float32 holds a log-probability to 6e-8 of itself, which is exact enough for codecs of logits.
        return self.logits if self.temperature is None else self.mixture.float()[None]


class Encoded(NamedTuple):
    """The fields of N records, and the measured cost of storing them.

    Attributes
    ----------
    fields : dict of str to ndarray [N, *shape]
        As `Codec.fields` names them.
    kl : ndarray float64 [K, N], optional
        The cost of each row (K = 1 for a mixture): its KL to the stored form, or of regression the largest
        error of its numbers. By default it is measured from `Codec.decode`.
    floored : sequence of K int, optional
        In how many rows of each member a finite logit was below the floor. By default in none.
    """

    fields: Fields
    kl: np.ndarray | None = None
    floored: Sequence[int] | None = None


class Codec(ABC):
    """One way to store targets. Arrays are record-major: ``[N, K, ...]``.

    A subclass has to define `fields`, `encode` and `decode`. Everything else has a default. A subclass
    outside the package is a frozen dataclass whose fields are its settings (plain numbers, strings, booleans
    or None), or a class without settings. It stands at the top level of a module that can be imported: a
    cache names it by that path.

    Attributes
    ----------
    task : {"classification", "multilabel", "regression"}
        The task of the rows that it stores; see `Batch`.
    mixture_only : bool
        The codec cannot hold members' logits, only their mixture at one temperature.
    seeded : bool
        `encode` draws at random, from ``batch.seed`` and ``batch.draw_ids`` alone.
    shifts_rows : bool
        `decode` returns a row only up to a constant. Then an ensemble's per-class scales cannot be fitted to
        it.
    step : float
        The largest distance between neighbouring codes, as a share of the row's largest absolute logit. It
        widens the tolerance of `TargetCache.verify_against` for a cache that was converted from this codec to
        a mixture.
    lossy_advice : str or None
        The advice in the warning about a row whose KL exceeds 0.01 nats; None: no warning is given.
    """

    task: Task = "classification"
    mixture_only = False
    seeded = False
    shifts_rows = False
    step = 0.0
    lossy_advice: str | None = "A more exact codec (fp16, fp32) costs less"
    built_in_name = ""  # of the package's own codecs only

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that build this codec again; of a dataclass, its fields."""
        fields: Sequence[Any] = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        return {one.name: getattr(self, one.name) for one in fields if one.init}

    @property
    def name(self) -> str:
        """The codec's name in a manifest: a short one of the package's own, or class path and settings."""
        own = type(self).__module__.startswith(PACKAGE)
        return self.built_in_name if own else written_name(type(self), self.settings)

    @abstractmethod
    def fields(self, members: int, classes: int) -> FieldShapes:
        """Name to (dtype, shape) of each field of a record.

        Parameters
        ----------
        members : int
            K; 1 for a mixture. Unless the codec is ``mixture_only``, K is the first length of each field's
            shape.
        classes : int

        Raises
        ------
        ValueError
            The codec cannot hold so few or so many classes.
        """

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """The fields of the batch's records."""

    @abstractmethod
    def decode(self, fields: Fields, classes: int) -> np.ndarray:
        """The stored rows, float32 [N, K, C]: logits, or of the mixture as `Batch.mixture` has them.

        Of classification a row may differ from the given one by a constant (``shifts_rows``). The fields are
        strided views of the gathered records. NumPy only.
        """

    def target(
        self, fields: Fields, classes: int, weights: np.ndarray, combiner: Any, temperature: float | None
    ) -> Targets:
        """The stored rows as tensors for the loss; not called for regression. By default they are decoded.

        Parameters
        ----------
        fields : dict of str to ndarray [N, *shape]
        classes : int
        weights : ndarray float64 [K]
        combiner : {"prob", "logit", "log_prob"}
        temperature : float or None
            Of the mixture; None where each member's logits are kept.
        """
        values = np.ascontiguousarray(self.decode(fields, classes), np.float32)
        return dense_target(member_major(values), weights, combiner, temperature, self.task)

    def floor(self, classes: int, combiner: str, mixture: bool, max_temperature: float) -> float | None:
        """How far below its row's largest a logit may be and still have a code; None where no limit is set.

        Of multi-label members it is the distance of a log-odds from 0.

        Parameters
        ----------
        classes : int
        combiner : {"prob", "logit", "log_prob"}
        mixture : bool
            The rows are log-probabilities of the mixture.
        max_temperature : float
            The largest temperature that the cache is made for.
        """
        return None

    def columns(self, fields: Fields, classes: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The columns [N] or [N, M] of an exported table; by default the decoded rows under the K names."""
        values = self.decode(fields, classes)
        return {name: values[:, k] for k, name in enumerate(names)}

    def compare(self, batch: Batch, fields: Fields, stored: Fields, tolerance: Tolerance) -> Comparison:
        """The distance of ``stored`` records from ``fields``, the new encoding of ``batch``.

        By default the distance is the cost of the decoded rows, as `Encoded.kl` has it.
        """
        if self.task != "classification":
            return self._compare_costs(batch, stored, tolerance)
        then = self.decode(
            {name: np.ascontiguousarray(field) for name, field in stored.items()}, batch.logits.shape[-1]
        )
        now = (batch.logits.swapaxes(0, 1) if batch.temperature is None else batch.mixture[:, None]).numpy()
        if tolerance.floor is not None:
            # Noise moves logits across the floor, too.
            near = now < now.max(-1, keepdims=True) - 0.99 * tolerance.floor
            now = np.where(near & np.isneginf(then), -np.inf, now)
        with np.errstate(invalid="ignore"):
            distance = kl_divergence(now, then)
        return Comparison("KL", distance, tolerance.kl(now))

    def _compare_costs(self, batch: Batch, stored: Fields, tolerance: Tolerance) -> Comparison:
        distance = measured_cost(self, stored, batch).T
        now = batch.values.swapaxes(0, 1).numpy()
        if self.task == "multilabel":
            return Comparison("KL", distance, tolerance.label_kl(now))
        return Comparison("error", distance, tolerance.error(now))


def dense_target(
    logits: Tensor, weights: np.ndarray, combiner: Any, temperature: float | None, task: Task
) -> Targets:
    """The loss's target of rows [K, N, C]: members' logits, or the mixture as `Batch.mixture` has it."""
    from ensdistill.loss.targets import EnsembleLogits, LogProbs

    if temperature is None:
        return EnsembleLogits(logits, tensor(weights), combiner)
    mixture = logits[0].float()
    if task == "multilabel":
        return LogProbs(log_sigmoid(mixture), temperature=temperature)
    # Rows are stored with their largest at 0, where a format of few bits is finest; so they have to be
    # normalised.
    return LogProbs(mixture.log_softmax(-1), temperature=temperature)


def beyond_floor(shifted: Tensor, floor: float | None) -> Tensor:
    """Where a finite value is further than the floor from 0: its row's maximum, or log-odds of one half."""
    return (shifted.abs() > (floor or math.inf)) & ~shifted.isneginf()


def shifted_to_zero(values: Tensor) -> Tensor:
    """Each row less its maximum."""
    return values - values.amax(-1, keepdim=True)


def log_sigmoid(log_odds: Tensor) -> Tensor:
    """Logarithms of the probabilities of these log-odds."""
    import torch

    return torch.nn.functional.logsigmoid(log_odds)


def measured_cost(codec: Codec, fields: Fields, batch: Batch) -> np.ndarray:
    """The cost of each row in the form that a reader decodes from these bytes, float64 [K, N]."""
    import torch

    from ensdistill.cache.codecs.measures import row_cost

    members, count, classes = batch.logits.shape
    values = codec.decode(fields, classes)
    shape = (count, members if batch.temperature is None else 1, classes)
    if np.shape(values) != shape:
        raise ValueError(
            f"codec: {codec.name}: expected decode to return [records, members, classes] = {list(shape)}; "
            f"got {list(np.shape(values))}"
        )
    decoded = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    rows = []
    for k in range(decoded.shape[1]):  # one member at a time, because each takes copies in float64
        exact = batch.mixture if batch.temperature is not None else batch.logits[k].double()
        if batch.task == "classification" and batch.temperature is None:
            exact = exact.log_softmax(-1)
        rows.append(row_cost(batch.task, exact, decoded[:, k].to(exact.device)))
    return torch.stack(rows).cpu().numpy()


def records(field: Tensor) -> np.ndarray:
    """[K, N, ...] on any device as [N, K, ...] in NumPy."""
    return field.cpu().numpy().swapaxes(0, 1)


def member_major(field: np.ndarray) -> Tensor:
    """[N, K, ...] as a tensor [K, N, ...] that shares its memory."""
    return tensor(field.swapaxes(0, 1))


def tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor that shares its memory."""
    import torch

    return torch.from_numpy(array)
