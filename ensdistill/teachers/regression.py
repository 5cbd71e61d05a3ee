"""The ensemble of regressors: weighted members, whose means and variances are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data import as_numbers
from ensdistill.data.rows import as_weights
from ensdistill.teachers.base import BaseEnsemble
from ensdistill.teachers.fitting.calibration import PRIOR_ROWS, PRIOR_ROWS_PER_MEMBER, relative_weights
from ensdistill.teachers.fitting.gaussian import (
    LEAST,
    HeldOut,
    Variances,
    conformal_quantiles,
    fit_factor,
    fit_noise,
    fit_weights_of_moments,
    mixture_moments,
)
from ensdistill.teachers.fitting.selection import Search, check_options, prices, taken
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.base import as_classes
from ensdistill.teachers.members.moments import Moments
from ensdistill.teachers.members.outputs import Output
from ensdistill.teachers.predict import answer_moments, over_parts
from ensdistill.teachers.validation import as_members, normalised

RegressionMetric = Literal["rmse", "nll"]
METRICS: tuple[RegressionMetric, ...] = ("rmse", "nll")


class RegressionEnsemble(BaseEnsemble):
    """Weighted regressors: ``Ensemble.from_members(members, task="regression")``, or ``Ensemble.load``.

    The mean is the weighted mean of the members' means; the variance is that between them plus the weighted
    mean of theirs (the law of total variance), times a fitted factor. Members without a variance, beside
    others with one, count with the mean variance of these. Where no member gives one, ``calibrate`` fits a
    noise; before that the variance is the disagreement alone.

    Attributes
    ----------
    members : tuple of Member
    names : tuple of str [K]
    classes : tuple of str [D], or None
        Names of the numbers.
    weights : ndarray [K], float64
        Non-negative, of sum one.
    variance_factor : float
        Of the total variance; 1 before ``calibrate``.
    noise : ndarray [D], float64, or None
        Fitted variance that is added where no member gives any.
    interval : tuple (level, ndarray [D]), or None
        The fitted interval: the mean plus or minus this many deviations.

    Examples
    --------
    >>> from ensdistill.teachers import Ensemble
    >>> members = [np.array([1.0, 2.0]), np.array([3.0, 2.0])]  # stored means of two rows
    >>> ensemble = Ensemble.from_members(members, task="regression")
    >>> mean, variance = ensemble.predict_distribution(np.zeros((2, 1)))
    >>> mean.tolist(), variance.tolist()
    ([[2.0], [2.0]], [[1.0], [0.0]])
    """

    task: Task = "regression"
    combiner = "prob"  # the mixture's moments; there is no other

    def __init__(
        self, members: Sequence[Member], classes: tuple[str, ...] | None, weights: np.ndarray
    ) -> None:
        self.members, self.weights = tuple(members), weights
        own = next((m.classes for m in members if m.classes is not None), None)
        self.classes = own if classes is None else classes
        self.variance_factor = 1.0
        self.noise: np.ndarray | None = None
        self.interval: tuple[float, np.ndarray] | None = None
        for member in members:
            if member.classes is not None and set(member.classes) != set(self.classes or ()):
                raise ValueError(
                    f"members: {member.name} predicts {list(member.classes)}; expected "
                    f"{list(self.classes or ())}"
                )

    @classmethod
    def from_members(
        cls,
        members: Sequence[Any],
        *,
        weights: Sequence[float] | np.ndarray | None = None,
        classes: Sequence[str] | None = None,
        output: Output = "auto",
        task: Task = "regression",
    ) -> RegressionEnsemble:
        """An ensemble of regressors as they are; see ``Ensemble.from_members``."""
        order = as_classes("the ensemble", classes)
        return cls(as_members(members, output, order, task), order, normalised(weights, len(members)))

    def __repr__(self) -> str:
        width = max(map(len, self.names))
        lines = [f"    {n:<{width}}  weight {w:.3f}" for n, w in zip(self.names, self.weights, strict=True)]
        return "\n".join([f"RegressionEnsemble: variance times {self.variance_factor:.3f}, members", *lines])

    def predict_moments(self, inputs: Any) -> Moments:
        """The members' means and variances as they give them: float64 [K, N, D]; variances None where no
        member gives one.

        Inputs as for ``Ensemble.predict_logits``.

        Raises
        ------
        ValueError
            A member returns another number of columns, NaN, infinity or a negative variance; names it and the
            rows.
        """
        given: list[bool] = []

        def predicted(batch: Any) -> np.ndarray:
            made: dict[int, Any] = {}
            found = [answer_moments(member, batch, self.classes, made) for member in self.members]
            for member, (mean, _) in zip(self.members, found, strict=True):
                if mean.shape != found[0].mean.shape:
                    raise ValueError(
                        f"members: {member.name} predicts {mean.shape[1]} numbers, {self.names[0]} predicts "
                        f"{found[0].mean.shape[1]}"
                    )
            known = [variance for _, variance in found if variance is not None]
            given[:] = [bool(known)]
            common = np.mean(known, axis=0) if known else np.zeros_like(found[0].mean)
            parts = [np.stack([mean, common if v is None else v]) for mean, v in found]
            return np.stack(parts, axis=1)  # [2, K, N, D]

        mean, variance = over_parts(inputs, predicted, axis=2)
        return Moments(mean, variance if given[0] else None)

    def combine(self, moments: Moments | np.ndarray) -> Moments:
        """The mixture's mean and variance, float64 [N, D], from the members' moments [K, N, D].

        The variance is None for a single member that gives none, without a fitted noise.

        Raises
        ------
        ValueError
            The moments are not [K, N, D] for the K members.
        """
        parts = self._variances(self._checked(moments))
        mean, total = parts[0], parts[1].total
        alone = np.count_nonzero(self.weights) == 1 and self.noise is None
        silent = alone and self._checked(moments).variance is None
        return Moments(mean, None if silent else total)

    def calibrated(self, moments: Moments | np.ndarray) -> Moments:
        """The members' moments after calibration, float64 [K, N, D]. The law of total variance alone makes of
        them the mixture that `combine` returns.

        The fitted noise is each member's variance where none gives one. The fitted factor multiplies the
        variances, and by its root the distances of the means from the mixture's.

        Raises
        ------
        ValueError
            The moments are not [K, N, D] for the K members.
        """
        mean, variance = self._checked(moments)
        if variance is None and self.noise is not None:
            variance = np.broadcast_to(self.noise, mean.shape)
        if self.variance_factor != 1:
            middle = mixture_moments(mean, None, self.weights)[0]
            mean = middle + np.sqrt(self.variance_factor) * (mean - middle)
            variance = None if variance is None else self.variance_factor * variance
        return Moments(mean, variance)

    def predict(self, inputs: Any) -> np.ndarray:
        """The mixture's mean, float64 [N, D]. Inputs as for ``Ensemble.predict_logits``."""
        return self.combine(self.predict_moments(inputs)).mean

    def predict_distribution(self, inputs: Any) -> Moments:
        """The mixture's mean and variance, float64 [N, D]; see ``combine``."""
        return self.combine(self.predict_moments(inputs))

    def predict_interval(self, inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper bounds of the fitted interval, float64 [N, D].

        Raises
        ------
        ValueError
            ``fit_interval`` was not called.
        """
        if self.interval is None:
            raise ValueError("interval: expected a fitted one; call fit_interval with held-out rows first")
        moments = self.combine(self.predict_moments(inputs))
        half = self.interval[1] * _deviations(moments)
        return moments.mean - half, moments.mean + half

    def uncertainty(self, inputs: Any) -> Variances:
        """The variance of each row by its sources; see
        :class:`ensdistill.teachers.fitting.gaussian.Variances`."""
        return self._variances(self.predict_moments(inputs))[1]

    def calibrate(
        self, moments: Moments | np.ndarray, labels: Any, *, sample_weight: Any = None
    ) -> RegressionEnsemble:
        """Fit the variance by the NLL of held-out rows. Returns self.

        Where members give variances it is one factor, with a prior for 1 that is worth five rows. Where none
        does, it is one noise for each number, added to the disagreement. An earlier interval is dropped.

        Parameters
        ----------
        moments : Moments, or ndarray [K, N, D]
            ``predict_moments`` of rows that the members were not trained on; an array holds means alone.
        labels : array-like [N] or [N, D]
            Rows without a label (NaN) are left out.
        sample_weight : [N], optional
            How much each row counts, at least 0.

        Raises
        ------
        ValueError
            Shapes or values don't fit.
        """
        mean, variance, targets, weights = self._judged(moments, labels, sample_weight)
        share = None if weights is None else relative_weights(weights)
        middle, within, between = mixture_moments(mean, variance, self.weights)
        self.variance_factor, self.noise, self.interval = 1.0, None, None
        if variance is None:
            self.noise = fit_noise(targets - middle, between, share)
        else:
            floor = np.maximum(within + between, LEAST * np.maximum(targets.var(0), 1e-300))
            self.variance_factor = fit_factor(targets - middle, floor, share, PRIOR_ROWS)
        return self

    def weigh(
        self,
        moments: Moments | np.ndarray,
        labels: Any,
        *,
        metric: RegressionMetric = "rmse",
        prior_rows: float = PRIOR_ROWS_PER_MEMBER,
        sample_weight: Any = None,
    ) -> RegressionEnsemble:
        """Fit the weights on the simplex, then the variance. Returns self.

        Few rows are guarded against as in :meth:`ensdistill.teachers.Ensemble.weigh`. Arguments as for
        ``calibrate``; ``metric="nll"`` needs variances, the members' own or the noise of ``calibrate``.
        """
        check_options(metric, METRICS, 1, 1, 1.0)
        mean, variance, targets, weights = self._judged(moments, labels, sample_weight)
        held_out = HeldOut.of(mean, self._within(variance, metric), targets, weights)
        self.weights = fit_weights_of_moments(held_out, metric, prior_rows)
        return self.calibrate(moments, labels, sample_weight=sample_weight)

    def select(
        self,
        moments: Moments | np.ndarray,
        labels: Any,
        *,
        metric: RegressionMetric = "rmse",
        rounds: int = 50,
        bags: int = 1,
        costs: Sequence[float] | np.ndarray | None = None,
        budget: float | None = None,
        seed: int = 0,
        prior_rows: float = PRIOR_ROWS_PER_MEMBER,
    ) -> RegressionEnsemble:
        """The members that are worth having, weighted by how often they were taken: a new ensemble, whose
        variance is fitted to the same rows.

        See :func:`ensdistill.teachers.fitting.selection.greedy_selection`. The prior for the whole ensemble
        is worth ``prior_rows`` rows for each member.
        """
        check_options(metric, METRICS, rounds, bags, 0.5)
        mean, variance, targets, _ = self._judged(moments, labels, None)
        price = prices(len(self), costs, budget, bags)
        held_out = HeldOut.of(mean, self._within(variance, metric), targets, None)
        loss, votes = held_out.loss(metric, prior_rows * len(self)), held_out.votes(metric)

        def losses(vote: np.ndarray) -> tuple[float, float]:
            value = loss(vote)[0]
            return value, value

        order = taken(Search(votes, losses, 0.0, rounds, price), bags, 0.5, budget, seed)
        counts = np.bincount(order, minlength=len(self))
        kept = np.flatnonzero(counts)
        chosen = self._of(kept, counts[kept] / counts.sum())
        own = self._checked(moments)
        part = Moments(own.mean[kept], None if own.variance is None else own.variance[kept])
        return chosen.calibrate(part, labels)

    def fit_interval(
        self, moments: Moments | np.ndarray, labels: Any, level: float = 0.9
    ) -> RegressionEnsemble:
        """Fit a conformal interval for each number: a new row lies in it with probability ``level`` at least.
        Returns self.

        Its half width is a multiple of each row's deviation (of a constant, where there is none). Call it
        last, because it holds for the weights and the variance as they are. A variance factor that was fitted
        to the same rows takes nothing from its validity, since it cancels out; weights and noise do a little,
        so other rows are better.

        Raises
        ------
        ValueError
            Shapes or values don't fit, or there are too few rows for the level.
        """
        mean, variance, targets, _ = self._judged(moments, labels, None)
        combined = self.combine(Moments(mean, variance))
        errors, deviations = np.abs(targets - combined.mean), _deviations(combined)
        scores = np.divide(errors, deviations, out=np.where(errors > 0, np.inf, 0.0), where=deviations > 0)
        quantiles = conformal_quantiles(scores, level)
        if np.isinf(quantiles).any():
            raise ValueError(
                f"moments: expected variances above 0; {int((deviations == 0).sum())} are 0, so no multiple "
                "of the deviation covers these rows: call calibrate first, which fits a noise"
            )
        self.interval = (float(level), quantiles)
        return self

    def settings(self) -> dict[str, Any]:
        """Its settings beside the members, and all that was fitted; JSON-able."""
        interval = self.interval and {"level": self.interval[0], "deviations": self.interval[1].tolist()}
        return {
            "task": self.task,
            "weights": self.weights.tolist(),
            "variance_factor": self.variance_factor,
            "noise": None if self.noise is None else self.noise.tolist(),
            "interval": interval,
            "classes": None if self.classes is None else list(self.classes),
        }

    def _of(self, kept: np.ndarray, weights: np.ndarray) -> RegressionEnsemble:
        chosen = type(self)([self.members[k] for k in kept], self.classes, weights)
        chosen.variance_factor, chosen.noise = self.variance_factor, self.noise
        return chosen

    def _variances(self, moments: Moments) -> tuple[np.ndarray, Variances]:
        mean, within, between = mixture_moments(moments.mean, moments.variance, self.weights)
        if self.noise is not None and moments.variance is None:
            within = within + self.noise
        within, between = self.variance_factor * within, self.variance_factor * between
        return mean, Variances(within + between, within, between)

    def _within(self, variance: np.ndarray | None, metric: str) -> np.ndarray | None:
        """The members' variances [K, N, D], or the noise for all of them."""
        if variance is not None or metric == "rmse":
            return variance
        if self.noise is None:
            raise ValueError(
                "metric: expected rmse, because no member gives a variance; got nll. Call calibrate first, "
                "which fits a noise"
            )
        return np.tile(self.noise, (len(self), 1, 1))

    def _checked(self, moments: Moments | np.ndarray) -> Moments:
        mean, variance = moments if isinstance(moments, tuple) else (moments, None)
        mean = np.asarray(mean, np.float64)
        width = "D" if self.classes is None else len(self.classes)
        if mean.ndim != 3 or len(mean) != len(self) or width not in ("D", mean.shape[2]):
            raise ValueError(f"moments: expected means [{len(self)}, N, {width}]; got {list(mean.shape)}")
        if variance is None:
            return Moments(mean, None)
        variance = np.asarray(variance, np.float64)
        if variance.shape != mean.shape:
            raise ValueError(f"moments: expected variances {list(mean.shape)}; got {list(variance.shape)}")
        return Moments(mean, variance)

    def _judged(
        self, moments: Moments | np.ndarray, labels: Any, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]:
        """Moments, targets and weights of the rows with a label and a weight above 0."""
        (mean, variance), targets = self._checked(moments), as_numbers(labels)
        if targets.shape != mean.shape[1:]:
            raise ValueError(f"labels: expected {list(mean.shape[1:])}; got {list(targets.shape)}")
        if not np.isfinite(mean).all() or (variance is not None and not (variance >= 0).all()):
            raise ValueError("moments: expected finite means, and variances of at least 0; got others")
        kept = ~np.isnan(targets[:, 0])
        weights = None
        if sample_weight is not None:
            weights = as_weights("sample_weight", sample_weight, len(targets))
            kept &= weights > 0
            if not kept.any():
                raise ValueError(
                    f"sample_weight: expected a weight above 0 among {len(targets)} rows; got none"
                )
            weights = weights[kept]
        return mean[:, kept], None if variance is None else variance[:, kept], targets[kept], weights


def _deviations(moments: Moments) -> np.ndarray:
    """The root of the variance [N, D]; 1 where there is none."""
    return np.ones_like(moments.mean) if moments.variance is None else np.sqrt(moments.variance)
