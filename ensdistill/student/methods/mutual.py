"""Students that train together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.common.scalars import check_temperature, whole
from ensdistill.data import Rows
from ensdistill.student.inputs import call
from ensdistill.student.methods.method import Method, check_number
from ensdistill.student.methods.own import name_of
from ensdistill.student.methods.protocol import Start, StudentLoss
from ensdistill.student.methods.soft_targets import SoftTargets
from ensdistill.student.methods.teachers import kl_rows, mean_of

if TYPE_CHECKING:
    from ensdistill.student.batches import Batch
    from ensdistill.student.sources import TargetSource


@dataclass(frozen=True)
class Mutual(Method):
    """Each of P + 1 students has the loss ``of``, and ``weight_of_peers`` T² times the mean KL of the others
    from it.

    Student i learns from student j's distribution as it is in this step: KL(q_j‖q_i), without a gradient for
    j. The loss is the sum over all students, so that each has its own gradient. Peers train along and end
    with the training; the student that is returned is the first.

    Parameters
    ----------
    of : StudentLoss
        The method that each student learns by itself; by name, ``{"mutual": {"of": "labels"}}`` as in the
        paper. By default kd.
    peers : int
        P, at least 1: students of the same factory with other first weights.
    peer : callable, optional
        Makes a peer in the factory's place, such as a larger network: teacher and student together.
    weight_of_peers : float
        Of at least 0.
    temperature : float

    References
    ----------
    Zhang et al., "Deep Mutual Learning", CVPR 2018.

    Examples
    --------
    >>> Mutual(peers=2).weight_of_peers
    1.0
    """

    of: StudentLoss = field(default_factory=SoftTargets)
    peers: int = 1
    peer: Callable[[], nn.Module] | None = None
    weight_of_peers: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not whole(self.peers) or self.peers < 1:
            raise ValueError(f"peers: expected at least 1; got {self.peers!r}")
        if self.peer is not None and (isinstance(self.peer, nn.Module) or not callable(self.peer)):
            raise ValueError(f"peer: expected what makes a module; got {type(self.peer).__name__}")
        check_number("weight_of_peers", self.weight_of_peers)
        check_temperature("temperature", self.temperature)
        if self.of.layers or self.of.has_companion:
            raise ValueError(
                f"of: expected a method of outputs alone; got {name_of(self.of)}: choose kd or labels"
            )

    @property
    def takes_mixture(self) -> bool:  # type: ignore[override]
        return self.of.takes_mixture

    def check(self, rows: Rows, classes: int, cache: TargetCache | TargetSource | None) -> None:
        super().check(rows, classes, None)
        self.of.check(rows, classes, cache)

    def companion(self, start: Start) -> nn.Module:
        peers = nn.ModuleList([(self.peer or start.factory)() for _ in range(self.peers)])
        for peer in peers:
            with torch.no_grad():
                shape = call(peer.eval(), start.inputs).shape
            if tuple(shape) != (2, start.classes) and shape[1:] != (start.classes,):
                raise ValueError(f"peer: expected {start.classes} outputs; got {list(shape)}")
        return peers.train()

    def __call__(self, outputs: Tensor, targets: Any, labels: Tensor, batch: Batch) -> Tensor:
        assert isinstance(batch.own, nn.ModuleList)
        students = [outputs, *(call(peer, batch.inputs).float() for peer in batch.own)]
        logs = [F.log_softmax(one / self.temperature, -1) for one in students]
        alone = replace(batch, own=None)
        total = outputs.new_zeros(())
        for i, (one, log_q) in enumerate(zip(students, logs, strict=True)):
            others = [kl_rows(log_p.detach(), log_q) for j, log_p in enumerate(logs) if j != i]
            mean = mean_of(torch.stack(others).mean(0), batch.weights)
            total = total + self.of(one, targets, labels, alone)
            total = total + self.weight_of_peers * self.temperature**2 * mean
        return total
