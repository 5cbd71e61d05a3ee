"""The distillation loss of boosted trees, with its first derivatives and the diagonal of the second, in
float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax, softmax, xlogy

from ensdistill.data import UNLABELLED
from ensdistill.loss.settings import DEFAULTS, LossSettings

LEAST = 1e-7  # share of a class in the base score, so that its logarithm is finite


@dataclass(frozen=True, eq=False)
class Objective:
    """alpha · T² · KL(p‖q_T) + (1 - alpha) · CE(y, q_1), one term for each row.

    The mean of the terms is the loss of a :class:`~ensdistill.student.StudentTrainer` on the same rows: the
    divergence is a mean over all rows, the cross entropy over those with a label.

    Parameters
    ----------
    targets : ndarray [N, C], float64
        The mixture's probabilities at T.
    hot : ndarray [N, C], float64
        The distribution that the label stands for; zeros where the label is unknown.
    soft, hard : ndarray [N], float64
        The factors of the two terms of each row: its weight and alpha are part of them.
    temperature : float

    Examples
    --------
    >>> p = np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> objective = Objective.of(LossSettings(temperature=2.0), p, np.array([-100, -100]))
    >>> bool(np.abs(objective.gradient(2 * np.log(p))).max() < 1e-12)
    True
    """

    targets: np.ndarray
    hot: np.ndarray
    soft: np.ndarray
    hard: np.ndarray
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        settings: LossSettings,
        targets: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> Objective:
        """The objective of rows with these targets [N, C], labels [N] (-100: unknown) and weights [N].

        Weights are divided by the mean of those above 0. A row of weight 0 is as one that is left out.

        Raises
        ------
        ValueError
            A setting of the loss that this objective does not have.
        """
        check_settings(settings)
        count, classes = targets.shape
        relative = np.ones(count) if weights is None else np.array(weights, np.float64)
        used = relative > 0
        relative /= max(relative[used].mean(), 1e-300) if used.any() else 1
        known = (labels != UNLABELLED) & used
        hot = np.zeros((count, classes))
        smoothing = settings.label_smoothing
        hot[known] = smoothing / classes
        hot[known, labels[known]] += 1 - smoothing
        factor = int(used.sum()) / max(int(known.sum()), 1)
        return cls(
            np.asarray(targets, np.float64),
            hot,
            settings.alpha * relative,
            (1 - settings.alpha) * factor * relative * known,
            settings.temperature,
        )

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def weights(self) -> np.ndarray:
        """The factors of both terms together, [N]; a row of 0 has no part in the loss."""
        return self.soft + self.hard

    def take(self, index: np.ndarray) -> Objective:
        """The rows at these positions."""
        parts = {name: getattr(self, name)[index] for name in ("targets", "hot", "soft", "hard")}
        return replace(self, **parts)

    def loss(self, scores: np.ndarray) -> np.ndarray:
        """The terms [N] at scores (logits) [N, C]."""
        t = self.temperature
        divergence = (xlogy(self.targets, self.targets) - self.targets * log_softmax(scores / t, axis=1)).sum(
            1
        )
        cross = -(self.hot * log_softmax(scores, axis=1)).sum(1)
        found: np.ndarray = self.soft * t**2 * divergence + self.hard * cross
        return found

    def gradient(self, scores: np.ndarray) -> np.ndarray:
        """The derivatives [N, C] by the scores: T·(q_T - p) of T²·KL, and q_1 - y of the cross entropy."""
        t = self.temperature
        found = (self.soft * t)[:, None] * (softmax(scores / t, axis=1) - self.targets)
        if self.hard.any():
            found += self.hard[:, None] * (softmax(scores, axis=1) - self.hot)
        return found

    def curvature(self, scores: np.ndarray) -> np.ndarray:
        """The second derivatives [N, C] by each score: the diagonal of the Hessian.

        T² cancels: the KL's is q_T·(1 - q_T) at any temperature.
        """
        q = softmax(scores / self.temperature, axis=1)
        found = self.soft[:, None] * q * (1 - q)
        if self.hard.any():
            q = softmax(scores, axis=1)
            found += self.hard[:, None] * q * (1 - q)
        return found

    def start(self) -> np.ndarray:
        """The scores [C] at which a booster starts: the best constant of the divergence, and of the labels
        where alpha is 0."""
        weights, rows = (self.soft, self.targets) if self.soft.any() else (self.hard, self.hot)
        mean = np.maximum((weights[:, None] * rows).sum(0) / weights.sum(), LEAST)
        found: np.ndarray = self.temperature * np.log(mean / mean.sum())
        return found

    def merged(self) -> tuple[np.ndarray, np.ndarray, float] | None:
        """Distributions [N, C], weights [N] and a scale: the weighted cross entropy to the distributions, by
        scores that are divided by the scale, has the same derivatives up to that scale.

        None where no distribution has them: at a temperature other than 1 with labels.
        """
        if not self.hard.any():
            return self.targets, self.soft, self.temperature
        if self.temperature != 1 and self.soft.any():
            return None
        weights = self.weights
        rows = self.soft[:, None] * self.targets + self.hard[:, None] * self.hot
        return rows / np.where(weights > 0, weights, 1)[:, None], weights, 1.0


def check_settings(settings: LossSettings) -> None:
    """Raise ValueError for settings that the objective of trees does not have."""
    for name in ("divergence", "z_loss", "tail"):
        value, expected = getattr(settings, name), getattr(DEFAULTS, name)
        if value != expected:
            raise ValueError(
                f"loss.{name}: expected {expected!r}, the only one for an estimator; got {value!r}"
            )
