"""The learning curve of a student."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.student.inputs import Inputs, call, moved

CURVE_POINTS = 24


class Curve:
    """The mean loss between points, and the predictions for watched inputs at each. Points lie closer
    together at the start.

    Parameters
    ----------
    steps : int
        Steps of the training; the last point lies there.
    watched : int
        Samples M that the student predicts at each point.
    batches : callable, or None
        Goes through the inputs of these samples in order, a batch at a time; None where there are none.
    outputs : int
        Of the student, for each sample.

    Examples
    --------
    >>> curve = Curve(steps=2, watched=0, batches=None, outputs=10)
    >>> curve.add(0, torch.tensor([3.0, 1.0]))
    >>> curve.steps.tolist(), curve.losses.tolist()
    ([2], [2.0])
    """

    def __init__(
        self, steps: int, watched: int, batches: Callable[[], Iterator[Inputs]] | None, outputs: int
    ) -> None:
        points = np.unique(np.geomspace(min(16, steps), steps, CURVE_POINTS).round().astype(np.int64))
        self.steps = points
        self.batches = batches
        self._at = {int(step): i for i, step in enumerate(points)}
        self.losses = torch.zeros(len(points), dtype=torch.float64)
        self.watched = torch.zeros(len(points), watched, outputs)
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.int64)

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        return {
            "curve losses": self.losses,
            "curve watched": self.watched,
            "curve sum": self._sum,
            "curve count": self._count,
        }

    def has(self, step: int) -> bool:
        """Whether there is a point after ``step`` steps."""
        return step in self._at

    def predict(self, step: int, model: nn.Module) -> None:
        """Record the predictions for the watched inputs at a point; the model goes back to training mode."""
        if self.batches is None:
            return
        device, start = next(model.parameters()).device, 0
        model.eval()
        with torch.no_grad():
            for inputs in self.batches():
                logits = call(model, moved(inputs, device)).float().cpu()
                self.watched[self._at[step], start : start + len(logits)] = logits
                start += len(logits)
        model.train()

    def add(self, done: int, losses: Tensor) -> None:
        """Record the losses [steps] of the steps after the first ``done`` steps."""
        for step, loss in enumerate(losses.double().cpu(), done + 1):
            self._sum += loss
            self._count += 1
            if step in self._at:
                self.losses[self._at[step]] = self._sum / self._count
                self._sum.zero_()
                self._count.zero_()

    def end(self, step: int, model: nn.Module, *, again: bool) -> None:
        """End the curve at ``step``, where the training ended; with ``again`` its last predictions are those
        of ``model``, which has got other weights since."""
        count = int(np.searchsorted(self.steps, step, side="right"))
        if count == 0 or self.steps[count - 1] != step:
            self.steps[count], self._at[step] = step, count
            self.losses[count] = self._sum / self._count
            count, again = count + 1, True
        self.steps, self.losses, self.watched = (
            self.steps[:count],
            self.losses[:count],
            self.watched[:count],
        )
        if again:
            self.predict(step, model)
