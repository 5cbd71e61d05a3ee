"""The learning curve of a student."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

CURVE_POINTS = 24


class Curve:
    """The learning curve: the mean loss between points that lie closer together at the start, and predictions at each."""

    def __init__(self, steps: int, watch: Tensor | None, classes: int) -> None:
        points = np.unique(np.geomspace(min(16, steps), steps, CURVE_POINTS).round().astype(np.int64))
        self.steps, self.watch = points, watch
        self._at = {int(step): i for i, step in enumerate(points)}
        self.losses = torch.zeros(len(points), dtype=torch.float64)
        self.watched = torch.zeros(len(points), 0 if watch is None else len(watch), classes)
        self._sum, self._count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)

    @property
    def state(self) -> dict[str, Tensor]:
        return {"curve losses": self.losses, "curve watched": self.watched, "curve sum": self._sum, "curve count": self._count}

    def has(self, step: int) -> bool:
        """Whether there is a point after ``step`` steps."""
        return step in self._at

    def predict(self, step: int, model: nn.Module) -> None:
        """Note the predictions at a point."""
        if self.watch is not None:
            device = next(model.parameters()).device
            model.eval()
            with torch.no_grad():
                for start in range(0, len(self.watch), 1024):
                    logits = model(self.watch[start : start + 1024].to(device))
                    self.watched[self._at[step], start : start + 1024] = logits.float().cpu()
            model.train()

    def add(self, done: int, losses: Tensor) -> None:
        """Note the losses of the steps after ``done`` steps."""
        for step, loss in enumerate(losses.double().cpu(), done + 1):
            self._sum += loss
            self._count += 1
            if step in self._at:
                self.losses[self._at[step]] = self._sum / self._count
                self._sum.zero_()
                self._count.zero_()
