"""The ensemble: weighted, calibrated members and the rule that combines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.combiners import COMBINERS, Combiner
from ensdistill.common.tasks import Task
from ensdistill.teachers.base import BaseEnsemble
from ensdistill.teachers.differentiable import Function, differentiable
from ensdistill.teachers.fitting.calibration import (
    PRIOR_ROWS,
    PRIOR_ROWS_PER_MEMBER,
    fit_mixture_temperature,
    fit_temperature,
    fit_weights,
    log_mixture,
)
from ensdistill.teachers.fitting.multilabel import (
    decompose_labels,
    fit_temperatures_of_labels,
    fitted_rows,
    mixture_of_labels,
)
from ensdistill.teachers.fitting.selection import Metric, greedy_selection
from ensdistill.teachers.fitting.uncertainty import Uncertainty, decompose
from ensdistill.teachers.fitting.vector_scaling import fit_vector
from ensdistill.teachers.from_factories import train
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.base import as_classes
from ensdistill.teachers.members.outputs import Output
from ensdistill.teachers.predict import (
    answer,
    answer_on,
    apply_scales,
    check_same_classes,
    device_of,
    over_parts,
)
from ensdistill.teachers.regression import RegressionEnsemble
from ensdistill.teachers.stacked import Stack, stacked_logits
from ensdistill.teachers.stored_logits import Known, check_labels, judged, raw_logits
from ensdistill.teachers.validation import (
    as_members,
    check_known,
    check_members_logits,
    normalised,
    one_task,
)

Calibration = Literal["temperature", "vector", "per_class", "pooled"]
METHODS: dict[Task, tuple[Calibration, ...]] = {
    "classification": ("temperature", "vector", "pooled"),
    "multilabel": ("temperature", "per_class", "pooled"),
}
PredictionWay = Literal["one_by_one", "stacked"]


class Ensemble(BaseEnsemble):
    """Members with temperatures, mixture weights and a combiner. Made by :meth:`from_members`, :meth:`load`
    or ``train_ensemble``. Classifiers, or multi-label classifiers: then logits are log-odds of each label by
    itself, and probabilities need not sum to one. Regressors are a :class:`RegressionEnsemble`.

    Attributes
    ----------
    members : tuple of Member
    names : tuple of str [K]
    classes : tuple of str [C], or None where no member knows names
    weights : ndarray [K], float64
        Non-negative, of sum one.
    temperatures : ndarray [K], float64
        Each member's own.
    vectors : ndarray [2, K, C], float64, or None
        Each member's scale and bias of each class's logit, where it was calibrated by them.
    temperature : float
        The mixture's, shared by all members, on top of their own.
    combiner : {"prob", "logit", "log_prob"}
    task : {"classification", "multilabel"}

    Examples
    --------
    >>> from ensdistill.models import MLP
    >>> ensemble = Ensemble.from_members([MLP(4, [], 3), MLP(4, [8], 3)])
    >>> ensemble.predict_logits(np.zeros((5, 4), np.float32)).shape
    torch.Size([2, 5, 3])
    >>> ensemble.predict_proba(np.zeros((5, 4), np.float32)).sum(1).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        members: Sequence[Member],
        classes: tuple[str, ...] | None,
        weights: np.ndarray,
        combiner: Combiner,
        task: Task = "classification",
    ) -> None:
        self.task = task
        self.members, self.classes, self.weights, self.combiner = tuple(members), classes, weights, combiner
        self.temperatures, self.temperature = np.ones(len(members)), 1.0
        self.vectors: np.ndarray | None = None
        self._stacks: dict[tuple[int, ...], Stack] = {}

    @overload
    @classmethod
    def from_members(
        cls,
        members: Sequence[Any],
        *,
        weights: Sequence[float] | np.ndarray | None = ...,
        combiner: Combiner = ...,
        classes: Sequence[str] | None = ...,
        output: Output = ...,
        task: Literal["regression"],
    ) -> RegressionEnsemble: ...

    @overload
    @classmethod
    def from_members(
        cls,
        members: Sequence[Any],
        *,
        weights: Sequence[float] | np.ndarray | None = ...,
        combiner: Combiner = ...,
        classes: Sequence[str] | None = ...,
        output: Output = ...,
        task: Literal["classification", "multilabel"] | None = ...,
    ) -> Ensemble: ...

    @classmethod
    def from_members(
        cls,
        members: Sequence[Any],
        *,
        weights: Sequence[float] | np.ndarray | None = None,
        combiner: Combiner = "prob",
        classes: Sequence[str] | None = None,
        output: Output = "auto",
        task: Task | None = None,
    ) -> Ensemble | RegressionEnsemble:
        """An ensemble of members as they are; of regressors a :class:`RegressionEnsemble`.

        Parameters
        ----------
        members : sequence
            Members, and anything that :func:`ensdistill.teachers.members.as_member` takes: torch modules,
            fitted models of scikit-learn, XGBoost, LightGBM and CatBoost, paths of ONNX files, arrays,
            functions, mixed; and tuples (one of these, preprocess) for raw samples. Unnamed ones of one kind
            are numbered. A bare module predicts, but can't be saved: ``TorchMember(module, name=...,
            factory=functools.partial(Class, argument=value, ...))`` names the class that builds it again.
        weights : [K], optional
            Non-negative; normalised to sum one. Equal by default.
        combiner : {"prob", "logit", "log_prob"}
        classes : sequence of str, optional
            The order of the outputs; by default that of the first member that knows names. Others are aligned
            by name, models that were fitted to the integers 0..C-1 by index. A class that a member never saw
            gets probability 0 from it, with a warning. The outputs of members without names (a bare module,
            an array, a function) must have this order.
        output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
            The meaning of the outputs of arrays, functions, torch modules and ONNX files; see
            :func:`ensdistill.teachers.members.as_member`. Where they differ, make them members one by one.
        task : {"classification", "multilabel", "regression"}, optional
            By default each model's own, as :func:`ensdistill.teachers.members.as_member` finds it.

        Raises
        ------
        ValueError
            No members, equal names, members of several tasks, a member with a class that is not among
            ``classes``, or weights that do not fit.
        """
        if combiner not in COMBINERS:
            raise ValueError(f"combiner: expected one of {COMBINERS}; got {combiner!r}")
        order = as_classes("the ensemble", classes)
        adapted = as_members(members, output, order, task)
        found = one_task(adapted)
        if found == "regression":
            if combiner != "prob":
                raise ValueError(f"combiner: expected prob, the only one of regressors; got {combiner!r}")
            return RegressionEnsemble.from_members(adapted, weights=weights, classes=order)
        known = next((m.classes for m in adapted if m.classes is not None), None)
        order = known if order is None else order
        check_known(
            adapted,
            order,
            "" if classes is not None else "; name the classes of all members, in order, by classes=",
        )
        return cls(adapted, order, normalised(weights, len(adapted)), combiner, found)

    train = classmethod(train)

    def __repr__(self) -> str:
        width = max(map(len, self.names))
        members = zip(self.names, self.weights, self.temperatures, strict=True)
        lines = [
            f"    {name:<{width}}  weight {weight:.3f}, temperature {own:.3f}"
            for name, weight, own in members
        ]
        return "\n".join(
            [f"Ensemble: combiner {self.combiner!r}, temperature {self.temperature:.3f}, members", *lines]
        )

    def member_logits(self, index: int, inputs: Any, answers: np.ndarray | None = None) -> np.ndarray:
        """One member's logits as it gives them (no temperature), in the ensemble's class order: float32 [N,
        C].

        Raises
        ------
        ValueError
            It returns another number of classes, NaN, +inf, or rules out every class of a row; names the
            member and the rows.
        """
        return over_parts(inputs, lambda batch: answer(self.members[index], batch, self.classes, answers))

    def raw_logits(self, inputs: Any, way: PredictionWay = "one_by_one") -> np.ndarray:
        """All members' logits without temperatures: float32 [K, N, C]. Inputs as for ``predict_logits``."""
        if way not in ("one_by_one", "stacked"):
            raise ValueError(f"way: expected one_by_one or stacked; got {way!r}")
        return over_parts(inputs, lambda batch: self._raw(batch, way), axis=1)

    def _raw(self, inputs: Any, way: PredictionWay) -> np.ndarray:
        made: dict[int, Any] = {}
        together = stacked_logits(self.members, inputs, self._stacks, made) if way == "stacked" else {}
        logits = [answer(m, inputs, self.classes, together.get(i), made) for i, m in enumerate(self.members)]
        check_same_classes(self.members, logits)
        return np.stack(logits)

    def apply_temperatures(self, raw: np.ndarray | Tensor) -> np.ndarray:
        """Raw logits [K, N, C] divided by each member's temperature (or scaled by its vectors) and the
        mixture's: float32 [K, N, C]."""
        raw = check_members_logits(len(self), self.classes, raw)
        scaled = apply_scales(self.vectors, raw, self.temperatures * self.temperature)
        return scaled.astype(np.float32)

    def predict_logits(self, inputs: Any, way: PredictionWay = "one_by_one") -> Tensor:
        """The members' calibrated logits for N samples: float32 [K, N, C], in main memory.

        ``inputs`` are an array or a tensor [N, ...], a frame of pandas, polars or pyarrow, a list of texts or
        of images, or a mapping of names to these. Or samples that are read in batches, such as a torch
        ``Dataset``. Each member gets the batch as it is, or by its own preprocess.

        ``way="stacked"`` runs torch members of one architecture in one vmapped call, which saves time where
        they are many and small: 64 rows of 32 MLPs 64-64-10 take 1.7 ms instead of 2.8 (2-core x86). The
        logits are then the same up to rounding, and a copy of the parameters is kept.
        """
        return torch.from_numpy(self.apply_temperatures(self.raw_logits(inputs, way)))

    def predict_logits_on_device(self, inputs: Any) -> Tensor:
        """The same where its torch members predict, on a GPU if one of them does: their logits are never
        copied away.

        So ``cache_targets`` has the targets encoded there. All rows' logits are on the device at once.
        """
        device = device_of(self.members)
        return (
            self.predict_logits(inputs)
            if device.type == "cpu"
            else over_parts(inputs, lambda batch: self._logits_on(device, batch), axis=1)
        )

    def _logits_on(self, device: torch.device, inputs: Any) -> Tensor:
        raw = [answer_on(device, member, inputs, self.classes) for member in self.members]
        check_same_classes(self.members, raw)
        return apply_scales(
            self.vectors, torch.stack(raw).double(), self.temperatures * self.temperature
        ).float()

    def combine(self, logits: np.ndarray | Tensor, temperature: float = 1.0) -> np.ndarray:
        """The mixture's probabilities, float64 [N, C], from calibrated logits [K, N, C] (see
        ``predict_logits``). Of multi-label members they are each label's.

        Raises
        ------
        ValueError
            The logits are not [K, N, C] for the K members and C classes, or the temperature is not positive.
        """
        if not (0 < temperature < np.inf):
            raise ValueError(f"temperature: expected a positive number; got {temperature}")
        z = check_members_logits(len(self), self.classes, logits)
        if self.task == "multilabel":
            return mixture_of_labels(z, self.weights, self.combiner, temperature)
        return np.exp(log_mixture(z, self.weights, self.combiner, temperature))

    def predict_proba(self, inputs: Any, temperature: float = 1.0) -> np.ndarray:
        """The mixture's probabilities at ``temperature``: float64 [N, C]. Inputs as for ``predict_logits``.

        The members' logits are divided by the temperature before they are combined.
        """
        return self.combine(self.predict_logits(inputs), temperature)

    def uncertainty(self, inputs: Any) -> Uncertainty:
        """The uncertainty of each row, split by its sources; see
        :class:`ensdistill.teachers.fitting.uncertainty.Uncertainty`. Of a multi-label row it is the sum over
        its labels, and the mean of their disagreements."""
        logits = self.predict_logits(inputs).numpy()
        return (decompose_labels if self.task == "multilabel" else decompose)(logits, self.weights)

    def calibrate(
        self,
        logits: Known,
        labels: np.ndarray,
        *,
        method: Calibration = "temperature",
        uids: np.ndarray | None = None,
        sample_weight: Any = None,
    ) -> Ensemble:
        """Fit how sure the members are, by NLL. Returns self.

        An earlier calibration is replaced, the mixture's temperature too; the weights stay.

        The fit is guarded against few rows: it starts with a prior for the logits as they are, which is worth
        five rows (for vectors, five for each class). With 5 to 50 rows the result is therefore seldom worse
        on other rows than no calibration, and with some hundred it is nearly the one of the least NLL. Logits
        may be of any scale. :mod:`ensdistill.teachers.fitting.calibration` describes the prior.

        Parameters
        ----------
        logits : [K, N, C], or TargetCache
            Raw logits (no temperature applied) of rows that the members were not trained on; or a cache of
            these members' targets.
        labels : ndarray [N], int64
            Of multi-label members [N, C]: 0, 1, and -1 for unknown labels, which are left out.
        method : {"temperature", "vector", "per_class", "pooled"}
            ``temperature``: one for each member; ``vector``: a scale and a bias for each class of each
            member; ``per_class`` (multi-label, in place of it): a temperature for each. No member is worse on
            these rows than without. ``pooled``: one temperature for all, so that the mixture is calibrated,
            which is never worse for it.
        uids : ndarray [N], optional
            Needed with a cache: the uids of the rows that ``labels`` are of, in their order.
        sample_weight : [N], optional
            How much each row counts, at least 0. Only their ratios matter.

        Raises
        ------
        ValueError
            Shapes, labels or values don't fit; names the member and the rows. A cache of other members is a
            CacheMismatch.
        """
        if method not in METHODS[self.task]:
            *others, last = METHODS[self.task]
            raise ValueError(f"method: expected {', '.join(others)} or {last}; got {method!r}")
        by_class = method in ("vector", "per_class")
        raw, labels, counts = judged(self, logits, labels, uids, sample_weight, unshifted=by_class)
        self.temperatures, self.temperature, self.vectors = np.ones(len(self)), 1.0, None
        if method == "per_class":
            self.vectors = fit_temperatures_of_labels(raw, labels, counts)
            return self
        rows = fitted_rows(self.task, raw, labels, counts)
        options = rows.options(PRIOR_ROWS)
        if method == "temperature":
            self.temperatures = np.array([fit_temperature(z, **options) for z in rows.logits])
        elif method == "vector":
            self.vectors = np.stack([fit_vector(z, **options) for z in rows.logits], axis=1)
        else:
            self.temperature = fit_mixture_temperature(
                rows.logits, self.weights, combiner=self.combiner, **options
            )
        return self

    def weigh(
        self,
        logits: Known,
        labels: np.ndarray,
        *,
        prior_rows: float = PRIOR_ROWS_PER_MEMBER,
        uids: np.ndarray | None = None,
        sample_weight: Any = None,
    ) -> Ensemble:
        """Fit the mixture weights by NLL, then the temperature that the mixture needs. Returns self.

        Weights below 1e-3 (and below 0.1/K) are set to zero and the rest is normalised. Call it after
        ``calibrate``.

        Both fits are guarded against few rows. The weights start with a prior for equal ones, which is worth
        ``prior_rows`` rows for each member, and the temperature with one for 1, which is worth five. With few
        rows the ensemble stays nearly as it is. No member is left out until there are some thousand rows;
        ``prior_rows=0`` or ``select`` does so earlier.

        Parameters
        ----------
        logits, labels, uids, sample_weight
            As for ``calibrate``.
        prior_rows : float
            Draws the weights to equal ones; 0 trusts the rows alone. See
            :func:`ensdistill.teachers.fitting.calibration.fit_weights`.
        """
        shifts = self.vectors is not None
        raw, labels, counts = judged(self, logits, labels, uids, sample_weight, unshifted=shifts)
        scaled, equal = apply_scales(self.vectors, raw, self.temperatures), np.full(len(self), 1 / len(self))
        rows = fitted_rows(self.task, scaled, labels, counts)
        options = {**rows.options(PRIOR_ROWS), "combiner": self.combiner}
        # Logits of a wrong scale would make the loss one of a few rows, against which no prior counts.
        scale = fit_mixture_temperature(rows.logits, equal, **options)
        weights = fit_weights(rows.logits / scale, **{**options, **rows.options(prior_rows)})
        self.temperature = fit_mixture_temperature(rows.logits, weights, **options)
        self.weights = weights
        return self

    def select(
        self,
        logits: Known,
        labels: np.ndarray,
        *,
        metric: Metric = "nll",
        rounds: int = 50,
        bags: int = 1,
        costs: Sequence[float] | np.ndarray | None = None,
        budget: float | None = None,
        seed: int = 0,
        prior_rows: float = PRIOR_ROWS_PER_MEMBER,
        uids: np.ndarray | None = None,
    ) -> Ensemble:
        """The members that are worth having, weighted by how often they were taken: a new ensemble, this one
        stays as it is.

        Call it after ``calibrate``. With ``metric="nll"`` a prior for the whole ensemble, worth
        ``prior_rows`` rows for each member, guards the choice against few rows. The mixture's temperature is
        that of this ensemble, raised where saturated logits of few rows would be trusted too much.

        Parameters
        ----------
        logits, labels, uids
            As for ``calibrate``.
        metric, rounds, bags, costs, budget, seed, prior_rows
            See :func:`ensdistill.teachers.fitting.selection.greedy_selection`, which also returns its steps.
            ``costs`` may be ``seconds(inputs)``, then ``budget`` is the time for those inputs.

        Examples
        --------
        >>> good, bad = 4 * np.eye(3, dtype=np.float32) - 2, -np.ones((3, 3), np.float32)
        >>> ensemble = Ensemble.from_members([good, bad])
        >>> ensemble.select(np.tile([good, bad], (1, 50, 1)), np.tile(np.arange(3), 50)).names
        ('ndarray-1',)
        """
        raw = raw_logits(self, logits, labels, uids, unshifted=self.vectors is not None)
        scaled = apply_scales(self.vectors, raw, self.temperatures) / self.temperature
        rows = fitted_rows(self.task, scaled, check_labels(labels, self.task))
        found = greedy_selection(
            rows.logits,
            rows.labels,
            combiner=self.combiner,
            metric=metric,
            rounds=rounds,
            bags=bags,
            costs=costs,
            budget=budget,
            seed=seed,
            prior_rows=prior_rows * rows.per_row,
        )
        kept = np.flatnonzero(found.counts)
        chosen = self._of(kept, found.weights[kept])
        chosen.temperature *= found.temperature
        return chosen

    def differentiable(self) -> list[Function]:
        """For each member a function from a tensor of inputs to its calibrated logits, with gradients; see
        :mod:`ensdistill.teachers.differentiable`."""
        scales = self.temperatures * self.temperature
        return differentiable(self.members, self.classes, scales, self.vectors)

    def _of(self, kept: np.ndarray, weights: np.ndarray) -> Ensemble:
        chosen = type(self)([self.members[k] for k in kept], self.classes, weights, self.combiner, self.task)
        chosen.temperatures, chosen.temperature = self.temperatures[kept], self.temperature
        chosen.vectors = None if self.vectors is None else self.vectors[:, kept]
        return chosen

    def settings(self) -> dict[str, Any]:
        """Its settings beside the members: combiner, classes, and all that was fitted; JSON-able."""
        return {
            "weights": self.weights.tolist(),
            "temperatures": self.temperatures.tolist(),
            "temperature": self.temperature,
            "combiner": self.combiner,
            "classes": None if self.classes is None else list(self.classes),
            **({} if self.vectors is None else {"vectors": self.vectors.tolist()}),
            **({} if self.task == "classification" else {"task": self.task}),
        }
