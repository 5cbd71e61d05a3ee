"""Several methods at once, each with a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.data import Rows
from ensdistill.student.methods.own import changes_network, name_of
from ensdistill.student.methods.protocol import Start, StudentLoss

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


@dataclass(frozen=True)
class Mix(StudentLoss):
    """The weighted sum of several methods' losses.

    Parameters
    ----------
    parts : sequence of StudentLoss
    weights : sequence of float
        Of at least 0; one of each part.

    Examples
    --------
    >>> from ensdistill.student.methods import Decoupled, SoftTargets
    >>> Mix((SoftTargets(), Decoupled()), (1.0, 0.5)).takes_mixture
    True
    """

    parts: tuple[StudentLoss, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if changed := [name_of(part) for part in self.parts if changes_network(part)][1:]:
            raise ValueError(
                f"method: expected one part at most that changes the student; got {changed[0]}, too"
            )

    @property
    def takes_mixture(self) -> bool:  # type: ignore[override]
        return all(part.takes_mixture for part in self.parts)

    @property
    def least_members(self) -> int:
        return max(getattr(part, "least_members", 1) for part in self.parts)

    @property
    def temperatures(self) -> Sequence[float]:
        return tuple(t for part in self.parts for t in temperatures_of(part))

    @property
    def layers(self) -> Sequence[str]:  # type: ignore[override]
        return tuple(dict.fromkeys(name for part in self.parts for name in part.layers))

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        losses = []
        for i, (part, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            own = batch if batch.own is None else replace(batch, own=batch.own[f"{i}"])  # type: ignore[index]
            losses.append(weight * part(outputs, targets, labels, own))
        return torch.stack(losses).sum()

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        for part in self.parts:
            part.check(rows, classes, cache)

    def for_source(self, source: TargetCache | TargetSource) -> StudentLoss:
        return replace(self, parts=tuple(part.for_source(source) for part in self.parts))

    def network(self, factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        for part in self.parts:
            factory = part.network(factory)
        return factory

    @property
    def has_companion(self) -> bool:
        return any(part.has_companion for part in self.parts)

    def companion(self, start: Start) -> nn.Module | None:
        own = {f"{i}": part.companion(start) for i, part in enumerate(self.parts)}
        if all(module is None for module in own.values()):
            return None
        return nn.ModuleDict({i: nn.Identity() if module is None else module for i, module in own.items()})

    def fingerprint(self) -> Any:
        return ["mix", [[w, part.fingerprint()] for w, part in zip(self.weights, self.parts, strict=True)]]


def temperatures_of(method: Any) -> Sequence[float]:
    """The temperatures at which a method reads the targets; (1,) where it does not state them."""
    settings = getattr(method, "settings", None)
    if (own := getattr(settings, "temperature", None)) is not None:
        return (float(own),)
    return tuple(getattr(method, "temperatures", (1.0,)))
