"""Distillation from the ensemble's targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ensdistill.cache import TargetCache
from ensdistill.data import UNLABELLED, Rows
from ensdistill.loss.functional import distillation_loss
from ensdistill.loss.settings import DEFAULTS, Impl, LossSettings, check_trained, digest_parts
from ensdistill.loss.targets import Targets
from ensdistill.student.methods.protocol import StudentLoss

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


class SoftTargets(StudentLoss):
    """The distillation loss against the ensemble's targets, mixed with the labels' cross entropy where
    ``settings.alpha`` is below 1.

    Parameters
    ----------
    settings : LossSettings
        With the reduction ``mean`` and the default ``ignore_index``.
    weights : Tensor [K], optional
        The members' weights in place of those of the source.
    member : str, optional
        The name of the one member that ``weights`` selects; :meth:`of_member` derives them from it.
    impl : {"fused", "reference", "compile"}

    Examples
    --------
    >>> SoftTargets(LossSettings(temperature=2.0, alpha=0.9)).settings.alpha
    0.9
    """

    task = "classification"
    takes_mixture = True
    _loss: ClassVar[Callable[..., Tensor]] = staticmethod(distillation_loss)

    def __init__(
        self,
        settings: LossSettings = DEFAULTS,
        weights: Tensor | None = None,
        member: str | None = None,
        *,
        impl: Impl = "fused",
    ) -> None:
        check_trained("settings", settings)
        self.settings, self.weights, self.member, self.impl = settings, weights, member, impl

    @classmethod
    def of_member(
        cls,
        settings: LossSettings,
        cache: TargetCache | TargetSource,
        member: str | None,
        impl: Impl = "fused",
    ) -> SoftTargets:
        """The loss against one member of a cache, or with ``member=None`` against the members' mixture."""
        weights = None if member is None else weights_of_member(cache, member)
        return cls(settings, weights, member, impl=impl)

    def __call__(self, outputs: Tensor, targets: Targets, labels: Tensor, batch: Batch) -> Tensor:
        if self.settings.alpha == 1:
            return distillation_loss(
                outputs,
                targets,
                settings=self.settings,
                weights=self.weights,
                sample_weights=batch.weights,
                impl=self.impl,
            )
        factor = batch.label_factor
        return distillation_loss(
            outputs,
            targets,
            labels,
            settings=self.settings,
            weights=self.weights,
            sample_weights=batch.weights,
            class_weights=None
            if factor is None
            else torch.full((outputs.shape[1],), factor, dtype=torch.float64),
            impl=self.impl,
        )

    def each(self, outputs: Tensor, targets: Targets, labels: Tensor) -> Tensor:
        """The loss of each row [B], all of which have labels where these have a share."""
        return self._loss(
            outputs,
            targets,
            None if self.settings.alpha == 1 else labels,
            settings=replace(self.settings, reduction="none"),
            weights=self.weights,
            impl=self.impl,
        )

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        """Raise ValueError for rows without labels where they have a share, and for a cache without targets
        of the temperature, the member or the combiner."""
        if self.settings.alpha < 1:
            self._check_labels(rows, classes)
        if cache is not None:
            self._check_source(cache)

    def fingerprint(self) -> Any:
        weights = [] if self.weights is None or self.member is not None else [self.weights]
        return [self.member, *digest_parts(self.settings), *weights]

    def _check_labels(self, rows: Rows, classes: int) -> None:
        labelled = rows.labels != UNLABELLED
        if not labelled.any():
            raise ValueError(
                f"alpha, rows.labels: alpha = {self.settings.alpha} mixes in cross entropy, but none of the "
                f"{len(rows)} rows has a "
                "label; pass labels or alpha=1.0"
            )
        wrong = np.flatnonzero(labelled & ((rows.labels < 0) | (rows.labels >= classes)))
        if len(wrong):
            raise ValueError(
                f"rows.labels: expected 0..{classes - 1} or {UNLABELLED}; uid {rows.uids[wrong[0]]} has "
                f"{rows.labels[wrong[0]]}"
            )

    def _check_source(self, source: TargetCache | TargetSource) -> None:
        made_at, name = source.temperature, name_of_source(source)
        check_temperature_of(self.settings.temperature, source)
        check_member(self.member, source)
        combiner = self.settings.combiner
        if made_at is not None and combiner not in (None, source.combiner):
            raise ValueError(
                f"combiner: {combiner!r}, but {name} holds the mixture by {source.combiner!r} only; leave "
                "the combiner out, or build the cache again without mixture_at"
            )


def check_temperature_of(temperature: float, source: TargetCache | TargetSource) -> None:
    """Raise ValueError for a temperature that a source's targets do not serve."""
    made_at, name = source.temperature, name_of_source(source)
    if made_at is not None and made_at != temperature:
        raise ValueError(
            f"temperature: {temperature}, but {name} holds the mixture at {made_at} only; set "
            f"temperature={made_at}, or build the cache again without mixture_at, or with another"
        )
    if source.max_temperature is not None and temperature > source.max_temperature:
        raise ValueError(
            f"temperature: {temperature}, but {name} holds rows that serve temperatures up to "
            f"{source.max_temperature:g} only; build it again with max_temperature={temperature}, or "
            "with codec='fp32'"
        )


def weights_of_member(source: TargetCache | TargetSource, member: str) -> Tensor:
    """The weights, float64 [K], that select one member of a source."""
    if member not in source.names:
        raise ValueError(f"member: expected one of {', '.join(source.names)}; got {member!r}")
    return torch.tensor([float(name == member) for name in source.names], dtype=torch.float64)


def check_member(member: str | None, source: TargetCache | TargetSource) -> None:
    """Raise ValueError for a member of a source that holds the mixture alone."""
    if member is not None and source.temperature is not None:
        raise ValueError(
            f"member: {member!r} is not in {name_of_source(source)}: it holds the members' mixture only; "
            "build it again without mixture_at"
        )


def name_of_source(source: TargetCache | TargetSource) -> str:
    """The name of a source of targets in a message."""
    path = getattr(source, "path", None)
    return type(source).__name__ if path is None else f"the cache {path}"
