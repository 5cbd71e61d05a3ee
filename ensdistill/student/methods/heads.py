"""One head of the student for each member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.common.scalars import check_temperature
from ensdistill.student.companion import feature
from ensdistill.student.methods.method import Method
from ensdistill.student.methods.protocol import StudentLoss
from ensdistill.student.methods.teachers import kl_rows, mean_of, member_log_p
from ensdistill.teachers.members.heads import MultiHead, split_heads

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


@dataclass(frozen=True)
class Heads(Method):
    """T² Σ_k w_k KL(p_k‖q_k): head k of the student learns member k, with the members' weights w.

    The student is a :class:`~ensdistill.teachers.members.heads.MultiHead`: the caller's network, whose last
    linear layer has K times as many outputs. It predicts the mean of its heads' probabilities, and its method
    ``heads`` returns all of them, which differ as the members do: one model that tells data uncertainty (the
    heads' mean entropy) from knowledge uncertainty (the entropy of their mean, less that).

    Parameters
    ----------
    temperature : float

    References
    ----------
    Tran et al., "Hydra: Preserving Ensemble Diversity for Model Distillation", 2020.

    Examples
    --------
    >>> Heads(temperature=2.0).layers
    ('model',)
    """

    temperature: float = 1.0
    weights: tuple[float, ...] = ()  # those of the source
    takes_mixture = False
    least_members = 2
    layers = ("model",)

    def __post_init__(self) -> None:
        check_temperature("temperature", self.temperature)

    def for_source(self, source: TargetCache | TargetSource) -> StudentLoss:
        return replace(self, weights=tuple(float(weight) for weight in source.weights))

    def network(self, factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        inner = factory if isinstance(factory, partial) else partial(factory)
        return partial(MultiHead, model=inner, weights=list(self.weights))

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        log_p = member_log_p(targets, self.temperature)
        own = split_heads(feature(batch.features, "model"), len(log_p))
        rows = kl_rows(log_p, F.log_softmax(own / self.temperature, -1))
        weights = rows.new_tensor(self.weights)
        total = (weights[:, None] * rows).sum(0) / weights.sum()
        return mean_of(self.temperature**2 * total, batch.weights)
