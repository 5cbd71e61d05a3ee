"""The settings that all losses share. Their names, types, defaults and ranges stand here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import torch

from ensdistill.common.combiners import Combiner
from ensdistill.common.scalars import check_temperature, real
from ensdistill.loss import _native
from ensdistill.loss.checks import check_combiner, check_int, check_one_of

# The library's own list, csrc/divergences.def: a divergence that is added there needs no second name here.
DIVERGENCES = _native.names("divergence")
if TYPE_CHECKING:
    Divergence = str
else:
    Divergence = Literal[DIVERGENCES]
Tail = Literal["tail", "renormalize", "zero"]
Reduction = Literal["mean", "sum", "batchmean", "none"]
Impl = Literal["fused", "reference", "compile"]
_TAILS, _REDUCTIONS, _IMPLS = (get_args(kind) for kind in (Tail, Reduction, Impl))


@dataclass(frozen=True)
class LossSettings:
    """How a loss compares a student with its teachers.

    The losses take it as ``settings=``, or its fields as keywords of their own. Immutable:
    :func:`dataclasses.replace` makes a changed copy, which is checked again.

    Parameters
    ----------
    temperature : float
        T from 1e-4 to 1e4, for the divergence. LogProbs, Probs, TopK and Counts must have been made at it, to
        1e-6 of it. Above 32 all arithmetic is in double precision, which is slower: probabilities are nearly
        equal there, and T² magnifies the rounding error of their difference.
    alpha : float
        Share of the divergence, 0 to 1; cross entropy with the labels has the rest. Below 1, ``labels`` is
        needed. At 0 the targets' values don't matter, not even NaN.
    combiner : {"prob", "logit", "log_prob"}, optional
        By default the one that ``targets`` carries, as those of a cache do, else ``prob``. ``prob``: mean of
        the members' probabilities at T. ``logit`` and ``log_prob``: the softmax of the mean logits, which is
        the normalised geometric mean of their probabilities. TopK and Counts have no members, so only
        ``prob`` is legal there.
    divergence : {"forward_kl", "reverse_kl", "jsd", "tvd"}
        D = KL(p‖q); KL(q‖p); beta·KL(p‖m) + (1 - beta)·KL(q‖m) with m = beta·p + (1 - beta)·q; half of Σ|p -
        q|, whose gradient is taken as 0 where p = q.
    beta : float
        Between 0 and 1, for ``jsd``. Towards 0 it is beta times the forward KL, towards 1 it is 1 - beta
        times the reverse.
    tail : {"tail", "renormalize", "zero"}
        For :class:`~ensdistill.loss.targets.TopK`. ``tail``: all classes that aren't listed are one bucket
        with the mass that the target states. ``renormalize``: the listed ones share all mass. ``zero``: they
        keep theirs, and the rest is missing. Counts are always renormalised; ``zero`` is refused for them.
    ignore_index : int
        The label of a row whose class is unknown. Such a row has no cross entropy; its divergence and z-loss
        count as any other's. To leave a row out altogether, give it a sample weight of 0.
    label_smoothing : float
        0 to 1, as in :func:`torch.nn.functional.cross_entropy`. Smoothing needs labels, which have a share
        where alpha is below 1.
    z_loss : float
        Factor, 0 or more, of the squared log-sum-exp of the logits (at T = 1), which keeps them from
        drifting.
    reduction : {"mean", "sum", "batchmean", "none"}
        ``mean``: the divergence and the z-loss are averaged over all rows, the cross entropy over the rows
        whose label is known (0 if there are none). ``sum`` adds up all rows; ``batchmean`` divides that by
        the size of the first leading dimension.
    recompute : bool
        Keep no gradient between forward and backward: the backward reads the inputs again, which autograd
        saves for that (they stay alive, and must not be changed in place). More time, and less memory where
        the targets are small or kept anyway.

    Raises
    ------
    ValueError, TypeError
        Naming the setting, the value and the expectation.

    Examples
    --------
    >>> LossSettings(temperature=2.0, alpha=0.9).divergence
    'forward_kl'
    """

    temperature: float = 1.0
    alpha: float = 1.0
    combiner: Combiner | None = None
    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    tail: Tail = "tail"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    reduction: Reduction = "mean"
    recompute: bool = False

    def __post_init__(self) -> None:
        # Comparisons, not isfinite: torch.compile can trace them where the temperature is a variable.
        check_temperature("temperature", self.temperature)
        for name, share in (("alpha", self.alpha), ("label_smoothing", self.label_smoothing)):
            if not (real(share) and 0 <= float(share) <= 1):
                raise ValueError(f"{name}: expected a number from 0 to 1; got {share!r}")
        if not (real(self.beta) and 0 < float(self.beta) < 1):
            raise ValueError(f"beta: expected a number between 0 and 1, neither of them; got {self.beta!r}")
        if not (real(self.z_loss) and 0 <= float(self.z_loss) < math.inf):
            raise ValueError(f"z_loss: expected a finite number of at least 0; got {self.z_loss!r}")
        check_combiner("combiner", self.combiner)
        check_one_of("divergence", self.divergence, DIVERGENCES)
        check_one_of("tail", self.tail, _TAILS)
        check_one_of("reduction", self.reduction, _REDUCTIONS)
        if type(self.ignore_index) is not int or not -(2**63) <= self.ignore_index < 2**63:
            check_int("ignore_index", self.ignore_index, -(2**63), 2**63 - 1, "what int64 holds")
        if type(self.recompute) is not bool:
            raise TypeError(f"recompute: expected a bool; got {self.recompute!r}")
        # The op wants Python's own numbers, not NumPy's, and 2.0 for a temperature of 2.
        for name, kind in _NUMBERS:
            if type(value := getattr(self, name)) is not kind:
                object.__setattr__(self, name, kind(value))


_NUMBERS = [
    (field.name, {"float": float, "int": int}[str(field.type)])
    for field in fields(LossSettings)
    if field.type in ("float", "int")
]
DEFAULTS = LossSettings()


class LossKeywords(TypedDict, total=False):
    """The fields of :class:`LossSettings` as keywords, for type checkers."""

    temperature: float
    alpha: float
    combiner: Combiner | None
    divergence: Divergence
    beta: float
    tail: Tail
    ignore_index: int
    label_smoothing: float
    z_loss: float
    reduction: Reduction
    recompute: bool


def settings_of(
    settings: LossSettings | None, keywords: dict[str, Any], name: str = "settings"
) -> LossSettings:
    """The settings that a loss was given, as one object or as keywords.

    Raises
    ------
    TypeError
        Both, an unknown keyword, or ``settings`` of another type.
    """
    if settings is None:
        return _settings_of_keywords(keywords) if keywords else DEFAULTS
    if not isinstance(settings, LossSettings):
        raise TypeError(f"{name}: expected LossSettings; got {type(settings).__name__}")
    if keywords:
        raise TypeError(
            f"{name}: expected either LossSettings or keywords; got both, {', '.join(keywords)} among the "
            "keywords; pass "
            "dataclasses.replace(settings, ...)"
        )
    return settings


def _settings_of_keywords(keywords: dict[str, Any]) -> LossSettings:
    if torch.compiler.is_compiling():  # it would trace through the cache, and warn
        return LossSettings(**keywords)
    try:
        return _checked_once(**keywords)
    except TypeError:  # also for a value without a hash, which the settings name
        return LossSettings(**keywords)


# A loop gives the same keywords in every call. Typed, because True and 1.0 are equal to 1.
_checked_once = lru_cache(maxsize=64, typed=True)(LossSettings)


def check_call(statistics: Any, impl: Any) -> None:
    """The choices of a call that aren't settings of the loss."""
    check_one_of("impl", impl, _IMPLS)
    if type(statistics) is not bool:
        raise TypeError(f"statistics: expected a bool; got {statistics!r}")


def refuse_label_settings(label_smoothing: float, class_weights: Any, why: str) -> None:
    """For calls without labels, or in which labels have no share."""
    if label_smoothing > 0 or class_weights is not None:
        name = "label_smoothing" if label_smoothing > 0 else "class_weights"
        raise ValueError(f"{name}: is of the hard labels' cross entropy, {why}")


def check_trained(name: str, settings: LossSettings) -> None:
    """Check the loss of a trainer: the mean over a batch, with -100 for unknown labels, as in
    :class:`ensdistill.data.Rows`."""
    for field in ("reduction", "ignore_index"):
        value, expected = getattr(settings, field), getattr(DEFAULTS, field)
        if value != expected:
            raise ValueError(
                f"{name}.{field}: expected {expected!r}, the only one that a trainer has; got {value!r}"
            )
    if settings.label_smoothing > 0 and settings.alpha == 1:
        raise ValueError(
            f"{name}.label_smoothing: is of the hard labels' cross entropy, which has no share at alpha = "
            "1; lower alpha"
        )


def digest_parts(settings: LossSettings) -> list[Any]:
    """The values that distinguish two losses. A field that is added with its default leaves older digests
    unchanged."""
    own = {name: value for name, value in asdict(settings).items() if name not in ("temperature", "alpha")}
    changed = {name: value for name, value in own.items() if value != getattr(DEFAULTS, name)}
    return [settings.temperature, settings.alpha, *([changed] if changed else [])]
