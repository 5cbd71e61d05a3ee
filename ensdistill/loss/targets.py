"""The types a teacher's word can have. Each names what it holds, so that a loss never has to guess logits
from probabilities.

Everywhere ``...`` are the student's leading dimensions: ``N`` rows, tokens [B, T], pixels [N, H, W]. Logits,
codes and probabilities of feature maps may be channels-first like the student's, [K, N, C, H, W] beside [N,
C, H, W]; the loss's ``class_dim`` says so.

Making one checks nothing and copies nothing: shapes, dtypes and values are looked at by the loss that uses
it, beside the student's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ensdistill.common.combiners import Combiner
from ensdistill.loss.gaussian import gaussian_moments

# What probabilities may be off one in sum: bfloat16 rounds each by up to 0.2 %, a store of few bits by more;
# logits are further off.
SUM_TOLERANCE = 0.05


class Movable:
    """What all targets can do. They are equal to themselves only (``eq=False``): tensors have no single
    answer to ``==``."""

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """The same targets with all tensors on ``device``; those that are there already are not copied.

        Parameters
        ----------
        device : torch.device or what names one
        non_blocking : bool
            As in :meth:`torch.Tensor.to`.

        Examples
        --------
        >>> EnsembleLogits(torch.zeros(3, 5, 10)).to("meta").logits.device
        device(type='meta')
        """
        where = torch.device(device)  # so that nobody takes a dtype for a device
        moved = {
            n: x.to(where, non_blocking=non_blocking) for n, x in vars(self).items() if isinstance(x, Tensor)
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class EnsembleLogits(Movable):
    """Raw logits of K members.

    Parameters
    ----------
    logits : Tensor [K, ..., C], float64, float32, bfloat16 or float16
        ``-inf`` marks a class that the member rules out.
    weights : Tensor [K], optional
        Non-negative mixture weights; they are normalised to sum to one. Uniform by default.
    combiner : {"prob", "logit", "log_prob"}, optional
        How the members are to be mixed; what the loss takes by default.
    max_temperature : float, optional
        Of targets from a cache: classes that would have a share at a higher temperature were stored without
        theirs, so it is refused.

    Examples
    --------
    >>> EnsembleLogits(torch.zeros(3, 5, 10)).shape
    (3, 5, 10)
    """

    logits: Tensor
    weights: Tensor | None = None
    combiner: Combiner | None = None
    max_temperature: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.logits.shape)

    def to_logits(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The members' logits as [K, ..., C]."""
        return self.logits.to(dtype)

    def rows(self, start: int, stop: int) -> EnsembleLogits:
        """Rows ``start`` to ``stop`` as a view, along the leading dimension beside the classes."""
        return replace(self, logits=self.logits[..., start:stop, :])


@dataclass(frozen=True, eq=False)
class QuantizedLogits(Movable):
    """Logits of K members as uint8 codes with one affine map per row and member, as the target cache stores
    them.

    ``logit = offset + |scale| * code``; a negative ``scale`` says that code 0 of that row means ``-inf`` (a
    masked class).

    Parameters
    ----------
    codes : Tensor [K, ..., C], uint8
        A view of the cache's records is read in place.
    scale, offset : Tensor [K, ...], float32
    weights : Tensor [K], optional
        Non-negative mixture weights; they are normalised to sum to one. Uniform by default.
    temperature : float, optional
        Where the logits stand for a mixture (K = 1, softmax(logit / T) = p), the T that it was made at; the
        loss must use the same.
    combiner : {"prob", "logit", "log_prob"}, optional
        How the members are to be mixed; what the loss takes by default.
    max_temperature : float, optional
        See :class:`EnsembleLogits`.

    Examples
    --------
    >>> codes = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    >>> q = QuantizedLogits(codes, torch.tensor([[0.5]]), torch.tensor([[-1.0]]))
    >>> q.to_logits()
    tensor([[[ -1.0000, 126.5000]]])
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    weights: Tensor | None = None
    temperature: float | None = None
    combiner: Combiner | None = None
    max_temperature: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    def to_logits(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The logits [K, ..., C], decoded in ``dtype``; the classes have to be last."""
        scale, offset = self.scale.to(dtype).unsqueeze(-1), self.offset.to(dtype).unsqueeze(-1)
        logits = offset + scale.abs() * self.codes
        return logits.masked_fill((scale < 0) & (self.codes == 0), -torch.inf)

    def rows(self, start: int, stop: int) -> QuantizedLogits:
        """Rows ``start`` to ``stop`` as a view, along the leading dimension beside the classes."""
        part = slice(start, stop)
        return replace(
            self, codes=self.codes[..., part, :], scale=self.scale[..., part], offset=self.offset[..., part]
        )


@dataclass(frozen=True, eq=False)
class LogProbs(Movable):
    """Log-probabilities of one distribution or of K members, made at one temperature.

    Rows are normalised (a log-softmax changes log-probabilities by nothing but their rounding), so a store
    that rounds may be used as it is. Rows whose log-sum-exp is further than 0.05 from zero hold something
    else, as logits or probabilities: an error, looked for in up to four rows of each member (on the CPU, in
    eager mode), since what isn't log-probabilities isn't so in any row.

    Parameters
    ----------
    log_probs : Tensor [..., C] or [K, ..., C], float64, float32, bfloat16 or float16
        Told apart by the student's number of dimensions. ``-inf`` is no mass.
    weights : Tensor [K], optional
        Non-negative mixture weights of K members; they are normalised to sum to one. Uniform by default.
    temperature : float
        The one they were made at. The loss must use the same (to 1e-6 of it): what a distribution would be at
        another can't be told for a mixture.

    Examples
    --------
    >>> LogProbs(torch.log_softmax(torch.zeros(5, 10) / 2.0, -1), temperature=2.0).shape
    (5, 10)
    """

    log_probs: Tensor
    weights: Tensor | None = None
    temperature: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.log_probs.shape)

    def to_logits(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The log-probabilities [K, ..., C]; without ``weights`` they are taken for one distribution's, [1,
        ..., C]."""
        return (self.log_probs if self.weights is not None else self.log_probs.unsqueeze(0)).to(dtype)

    def rows(self, start: int, stop: int) -> LogProbs:
        """Rows ``start`` to ``stop`` as a view, along the leading dimension beside the classes."""
        return LogProbs(self.log_probs[..., start:stop, :], self.weights, self.temperature)


@dataclass(frozen=True, eq=False)
class Probs(Movable):
    """Probabilities of one distribution or of K members, made at one temperature.

    Rows are divided by their sum, which makes up for rounding. A negative entry, or a sum further than 0.05
    from one, is an error.

    Parameters
    ----------
    probs : Tensor [..., C] or [K, ..., C], float64, float32, bfloat16 or float16
        Told apart by the student's number of dimensions.
    weights : Tensor [K], optional
        Non-negative mixture weights of K members; they are normalised to sum to one. Uniform by default.
    temperature : float
        The one they were made at; see :class:`LogProbs`.

    Examples
    --------
    >>> Probs(torch.softmax(torch.zeros(3, 5, 10), -1), weights=torch.tensor([0.5, 0.3, 0.2])).shape
    (3, 5, 10)
    """

    probs: Tensor
    weights: Tensor | None = None
    temperature: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.probs.shape)

    def rows(self, start: int, stop: int) -> Probs:
        """Rows ``start`` to ``stop`` as a view, along the leading dimension beside the classes."""
        return Probs(self.probs[..., start:stop, :], self.weights, self.temperature)


@dataclass(frozen=True, eq=False)
class TopK(Movable):
    """The k largest log-probabilities of a distribution, and the exact log-mass of all other classes.

    Parameters
    ----------
    ids : Tensor [..., k], int32 or int64
        Class ids, each at most once in a row. The loss makes an int64 copy of int32. On a GPU k is at most
        about 8190 (4090 before compute capability 9.0): a row's entries have to fit the shared memory of one
        multiprocessor; more are an error.
    log_probs : Tensor [..., k], float64, float32, bfloat16 or float16
        Log-probabilities in the whole distribution, not among the k. ``-inf`` is padding: the entry is
        skipped, its id only has to be in range.
    tail_log_mass : Tensor [...], float32 or float64, optional
        log of the mass of all classes that are not listed, from an exact sum: 1 - sum of rounded
        probabilities is noise.
    temperature : float
        The one they were made at; see :class:`LogProbs`.
    classes : int, optional
        How many there are, C: what `to_logits` needs, and what the loss then compares with the student's.

    Examples
    --------
    >>> log_p = torch.log_softmax(torch.arange(6.0), -1)
    >>> top = TopK(torch.tensor([5, 4]), log_p[[5, 4]], log_p[:4].logsumexp(-1))
    >>> top.shape
    (2,)
    """

    ids: Tensor
    log_probs: Tensor
    tail_log_mass: Tensor | None = None
    temperature: float = 1.0
    classes: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.ids.shape)

    def to_logits(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Log-probabilities [1, ..., C] in which the others' mass is spread evenly over the classes that
        aren't listed; without ``tail_log_mass`` they have none.

        Raises
        ------
        ValueError
            ``classes`` is not known.
        """
        count, padding = _known(self, self.classes), self.log_probs == -torch.inf
        others = (count - (~padding).sum(-1)).clamp(min=1)
        tail = (
            torch.full(self.ids.shape[:-1], -torch.inf, device=self.ids.device)
            if self.tail_log_mass is None
            else self.tail_log_mass
        )
        spread = (tail.to(dtype) - others.to(dtype).log()).unsqueeze(-1).repeat_interleave(count + 1, -1)
        ids = self.ids.long().masked_fill(padding, count)  # padding goes to a column that is left out
        return spread.scatter(-1, ids, self.log_probs.to(dtype))[..., :count].unsqueeze(0)

    def rows(self, start: int, stop: int) -> TopK:
        """Rows ``start`` to ``stop`` as a view, along the leading dimension beside the classes."""
        part = slice(start, stop)
        tail = None if self.tail_log_mass is None else self.tail_log_mass[..., part]
        return replace(
            self, ids=self.ids[..., part, :], log_probs=self.log_probs[..., part, :], tail_log_mass=tail
        )


@dataclass(frozen=True, eq=False)
class Counts(Movable):
    """How often each class was drawn from a distribution: p = counts / their sum, and no mass on classes that
    weren't drawn.

    The loss's ``tail`` has nothing to choose: what it calls ``renormalize`` is the definition, its default
    does the same, and ``zero`` is an error.

    Parameters
    ----------
    ids : Tensor [..., S], int32 or int64
        Class ids, each at most once in a row (except those with count 0). The loss makes an int64 copy of
        int32. On a GPU S is limited as k of :class:`TopK` is.
    counts : Tensor [..., S], integers or finite floating-point numbers of at least 0
        0 is padding: the entry is skipped, its id only has to be in range.
    temperature : float
        The one the distribution was made at; see :class:`LogProbs`.
    classes : int, optional
        How many there are, C: what `to_logits` needs, and what the loss then compares with the student's.

    Notes
    -----
    The forward KL's gradient is linear in p, so counts give it without bias, which the k largest
    probabilities don't: Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in
    LLMs", ACL 2025.

    Examples
    --------
    >>> Counts(torch.tensor([[7, 2, 0]]), torch.tensor([[5, 3, 0]])).shape
    (1, 3)
    """

    ids: Tensor
    counts: Tensor
    temperature: float = 1.0
    classes: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.ids.shape)

    def to_logits(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Log-probabilities [1, ..., C]; ``-inf`` for a class that wasn't drawn.

        Raises
        ------
        ValueError
            ``classes`` is not known.
        """
        counts = self.counts.to(dtype)
        shares = torch.zeros(
            (*self.ids.shape[:-1], _known(self, self.classes)), dtype=dtype, device=self.ids.device
        )
        return (
            shares.scatter_add(-1, self.ids.long(), counts / counts.sum(-1, keepdim=True)).log().unsqueeze(0)
        )

    def rows(self, start: int, stop: int) -> Counts:
        """Rows ``start`` to ``stop`` as a view, along the leading dimension beside the classes."""
        return replace(self, ids=self.ids[..., start:stop, :], counts=self.counts[..., start:stop, :])


@dataclass(frozen=True, eq=False)
class Moments(Movable):
    """Means and variances of K regressors, or of their mixture (K = 1), for each of D numbers.

    A target cache returns them in standardised units: a mean in the data's units is ``location + scale *
    mean``, a variance ``scale ** 2 * variance``.

    Parameters
    ----------
    mean : Tensor [K, ..., D], float32
    variance : Tensor [K, ..., D], float32, optional
        At least 0. None where the regressors predict means alone.
    weights : Tensor [K], float64, optional
        Non-negative mixture weights; they are normalised to sum to one. Uniform by default.

    Examples
    --------
    >>> Moments(torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[[0.5]], [[0.5]]])).mixture()
    (tensor([[2.]]), tensor([[1.5000]]))
    """

    mean: Tensor
    variance: Tensor | None = None
    weights: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    def rows(self, start: int, stop: int) -> Moments:
        """Rows ``start`` to ``stop`` as a view, along the leading dimension beside the numbers."""
        variance = None if self.variance is None else self.variance[..., start:stop, :]
        return replace(self, mean=self.mean[..., start:stop, :], variance=variance)

    def mixture(self) -> tuple[Tensor, Tensor]:
        """The mixture's mean and variance, float32 [..., D], by the law of total variance; see
        :func:`ensdistill.loss.gaussian.gaussian_moments`."""
        return gaussian_moments(self.mean, self.variance, weights=self.weights)


Targets = EnsembleLogits | QuantizedLogits | LogProbs | Probs | TopK | Counts


def _known(target: TopK | Counts, classes: int | None) -> int:
    if classes is None:
        raise ValueError(
            f"classes: {type(target).__name__} lists some of the classes and was not told how many there "
            "are; pass classes=C"
        )
    return classes
