"""Networks that predict at each position of a sample, such as each pixel or anchor, as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ensdistill.common.combiners import COMBINERS, Combiner
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import state_data
from ensdistill.common.tasks import Task
from ensdistill.teachers.members.behaviour import behaviour
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.members.module import predicting


class PositionEnsemble:
    """Torch modules that map [N, ...] to logits at positions: [N, C, H, W] of pixels, [N, A, C] of anchors.

    ``cache_targets(ensemble, rows, path, lengths=ensemble.lengths(rows))`` stores them: one record for each
    position, in row-major order.

    Parameters
    ----------
    modules : sequence of Module
        Predict in eval mode, without gradients.
    classes : sequence of str [C]
    names : sequence of str, optional
        By default ``member-1`` and so on.
    weights : sequence of float, optional
        Of the members; equal by default.
    combiner : {"prob", "logit", "log_prob"}
    task : {"classification", "multilabel"}
        ``multilabel``: each class has a sigmoid of its own, as the heads of detectors have.
    class_dim : int
        The dimension of the classes in the modules' outputs: 1 for [N, C, H, W], -1 for [N, A, C].
    batch_size : int

    Raises
    ------
    ValueError
        Numbers that do not fit each other. ``predict_logits`` raises it for outputs of another shape.

    Examples
    --------
    >>> ensemble = PositionEnsemble([nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)], classes=["sky", "road"])
    >>> ensemble.predict_logits(np.zeros((5, 3, 4, 6), np.float32)).shape
    (2, 5, 24, 2)
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        classes: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        combiner: Combiner = "prob",
        task: Task = "classification",
        class_dim: int = 1,
        batch_size: int = 64,
    ) -> None:
        if not modules:
            raise ValueError("modules: expected at least one; got none")
        count = len(modules)
        own = [f"member-{i + 1}" for i in range(count)] if names is None else list(names)
        shares = np.ones(count) if weights is None else np.asarray(weights, np.float64)
        for argument, given in (("names", own), ("weights", shares)):
            if len(given) != count:
                raise ValueError(f"{argument}: expected {count}, one for each module; got {len(given)}")
        if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
            raise ValueError(
                f"weights: expected numbers of at least 0 with a positive sum; got {shares.tolist()}"
            )
        if combiner not in COMBINERS:
            raise ValueError(f"combiner: expected one of {', '.join(COMBINERS)}; got {combiner!r}")
        if task not in ("classification", "multilabel"):
            raise ValueError(f"task: expected classification or multilabel; got {task!r}")
        self.modules, self.names, self.classes = list(modules), tuple(own), tuple(map(str, classes))
        self.weights, self.combiner, self.task = shares / shares.sum(), combiner, task
        self.class_dim, self.batch_size = class_dim, batch_size

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Logits of all members at all positions, float32 [K, N, L, C], for an array [N, ...]."""
        return np.stack(
            [self._of(module, name, inputs) for module, name in zip(self.modules, self.names, strict=True)]
        )

    def lengths(self, rows: Any) -> np.ndarray:
        """The number of positions of each row, int64 [N]; all rows have the shape of the first."""
        first = self._of(self.modules[0], self.names[0], rows.inputs[np.arange(1)])
        return np.full(len(rows), first.shape[1])

    def fingerprint(self) -> dict[str, Any]:
        """Digests of the members' weights and code, and the mixture."""
        members = [digest([state_data(one), behaviour(one)]) for one in self.modules]
        mixture = [self.weights.tolist(), self.combiner, self.class_dim]
        return {"members": dict(zip(self.names, members, strict=True)), "mixture": mixture}

    def _of(self, module: nn.Module, name: str, inputs: Any) -> np.ndarray:
        found = []
        with predicting(module) as device, torch.no_grad():
            for start in range(0, len(inputs), self.batch_size):
                part = np.ascontiguousarray(inputs[start : start + self.batch_size])
                logits = logits_of_positions(module(torch.from_numpy(part).to(device)))
                if logits.ndim < 3 or logits.shape[self.class_dim] != len(self.classes):
                    raise ValueError(
                        f"modules: {name}: expected logits at positions with {len(self.classes)} classes in "
                        f"dimension {self.class_dim} (class_dim); got {list(logits.shape)}"
                    )
                found.append(logits.movedim(self.class_dim, -1).flatten(1, -2).float().cpu().numpy())
        return np.concatenate(found)


def logits_of_positions(outputs: Any) -> torch.Tensor:
    """The tensor that a module returned, or the one that it calls ``logits`` or, as torchvision, ``out``."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, dict) and isinstance(outputs.get("out"), torch.Tensor):
        return outputs["out"]
    return logits_of(outputs)
