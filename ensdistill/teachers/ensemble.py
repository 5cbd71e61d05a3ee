"""The ensemble: weighted, calibrated members and the rule that combines them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.combiners import COMBINERS, Combiner
from ensdistill.teachers import storage
from ensdistill.teachers.differentiable import Function, differentiable
from ensdistill.teachers.fitting.calibration import (
    PRIOR_ROWS_PER_MEMBER,
    fit_mixture_temperature,
    fit_temperature,
    fit_weights,
    log_mixture,
)
from ensdistill.teachers.fitting.selection import Metric, greedy_selection
from ensdistill.teachers.fitting.uncertainty import Uncertainty, decompose
from ensdistill.teachers.fitting.vector_scaling import fit_vector
from ensdistill.teachers.from_factories import train
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.base import as_classes, parts_of
from ensdistill.teachers.members.function import members_for
from ensdistill.teachers.members.inputs import as_batch
from ensdistill.teachers.members.outputs import Output
from ensdistill.teachers.predict import (
    answer,
    answer_on,
    apply_scales,
    check_same_classes,
    device_of,
    over_parts,
)
from ensdistill.teachers.stacked import Stack, stacked_logits
from ensdistill.teachers.stored_logits import Known, check_labels, judged, raw_logits
from ensdistill.teachers.timing import member_seconds
from ensdistill.teachers.validation import (
    as_members,
    check_known,
    check_members_logits,
    normalised,
)

Calibration = Literal["temperature", "vector", "pooled"]
PredictionWay = Literal["one_by_one", "stacked"]


class Ensemble:
    """Members with temperatures, mixture weights and a combiner. Made by :meth:`from_members`, :meth:`load`
    or ``train_ensemble``.

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
    ) -> None:
        self.members, self.classes, self.weights, self.combiner = tuple(members), classes, weights, combiner
        self.temperatures, self.temperature = np.ones(len(members)), 1.0
        self.vectors: np.ndarray | None = None
        self._stacks: dict[tuple[int, ...], Stack] = {}

    @classmethod
    def from_members(
        cls,
        members: Sequence[Any],
        *,
        weights: Sequence[float] | np.ndarray | None = None,
        combiner: Combiner = "prob",
        classes: Sequence[str] | None = None,
        output: Output = "auto",
    ) -> Ensemble:
        """An ensemble of members as they are.

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

        Raises
        ------
        ValueError
            No members, equal names, a member with a class that is not among ``classes``, or weights that do
            not fit.
        """
        if combiner not in COMBINERS:
            raise ValueError(f"combiner: expected one of {COMBINERS}; got {combiner!r}")
        order = as_classes("the ensemble", classes)
        adapted = as_members(members, output, order)
        known = next((m.classes for m in adapted if m.classes is not None), None)
        order = known if order is None else order
        check_known(
            adapted,
            order,
            "" if classes is not None else "; name the classes of all members, in order, by classes=",
        )
        return cls(adapted, order, normalised(weights, len(adapted)), combiner)

    train = classmethod(train)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def parameters(self) -> int:
        return sum(member.parameters for member in self.members)

    @property
    def bytes(self) -> int:
        return sum(member.bytes for member in self.members)

    def __len__(self) -> int:
        return len(self.members)

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
        ``predict_logits``).

        Raises
        ------
        ValueError
            The logits are not [K, N, C] for the K members and C classes, or the temperature is not positive.
        """
        if not (0 < temperature < np.inf):
            raise ValueError(f"temperature: expected a positive number; got {temperature}")
        z = check_members_logits(len(self), self.classes, logits)
        return np.exp(log_mixture(z, self.weights, self.combiner, temperature))

    def predict_proba(self, inputs: Any, temperature: float = 1.0) -> np.ndarray:
        """The mixture's probabilities at ``temperature``: float64 [N, C]. Inputs as for ``predict_logits``.

        The members' logits are divided by the temperature before they are combined.
        """
        return self.combine(self.predict_logits(inputs), temperature)

    def uncertainty(self, inputs: Any) -> Uncertainty:
        """The uncertainty of each row, split by its sources; see
        :class:`ensdistill.teachers.fitting.uncertainty.Uncertainty`."""
        return decompose(self.predict_logits(inputs).numpy(), self.weights)

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
        method : {"temperature", "vector", "pooled"}
            ``temperature``: one for each member; ``vector``: a scale and a bias for each class of each
            member. No member is worse on these rows than without. ``pooled``: one temperature for all, so
            that the mixture is calibrated, which is never worse for it.
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
        if method not in ("temperature", "vector", "pooled"):
            raise ValueError(f"method: expected temperature, vector or pooled; got {method!r}")
        raw, labels, counts = judged(self, logits, labels, uids, sample_weight, unshifted=method == "vector")
        self.temperatures, self.temperature, self.vectors = np.ones(len(self)), 1.0, None
        rows: dict[str, Any] = {"labels": labels, "sample_weight": counts}
        if method == "temperature":
            self.temperatures = np.array([fit_temperature(z, **rows) for z in raw])
        elif method == "vector":
            self.vectors = np.stack([fit_vector(z, **rows) for z in raw], axis=1)
        else:
            self.temperature = fit_mixture_temperature(raw, self.weights, combiner=self.combiner, **rows)
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
        rows: dict[str, Any] = {"labels": labels, "combiner": self.combiner, "sample_weight": counts}
        scaled, equal = apply_scales(self.vectors, raw, self.temperatures), np.full(len(self), 1 / len(self))
        # Logits of a wrong scale would make the loss one of a few rows, against which no prior counts.
        scale = fit_mixture_temperature(scaled, equal, **rows)
        weights = fit_weights(scaled / scale, prior_rows=prior_rows, **rows)
        self.temperature = fit_mixture_temperature(scaled, weights, **rows)
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
        found = greedy_selection(
            scaled,
            check_labels(labels),
            combiner=self.combiner,
            metric=metric,
            rounds=rounds,
            bags=bags,
            costs=costs,
            budget=budget,
            seed=seed,
            prior_rows=prior_rows,
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

    def for_uids(self, uids: np.ndarray, among: np.ndarray | None = None) -> Ensemble:
        """The same ensemble for these samples: members with stored predictions return those of these uids.

        Itself, where no member needs uids. Arguments as in ``ArrayMember.for_uids``; ``among`` is ``uids`` by
        default.
        """
        members = members_for(self.members, uids, uids if among is None else among)
        if members == self.members:
            return self
        asked = copy(self)
        asked.members = members
        return asked

    def only(self, *names: str) -> Ensemble:
        """An ensemble of these members, calibrated as here, with their weights' ratios; this one stays.
        ValueError where there is no such member, or no name."""
        kept = np.flatnonzero(np.isin(self.names, names))
        if len(kept) < max(1, len(set(names))):
            raise ValueError(f"name: expected one of {', '.join(self.names)}; got {', '.join(names)}")
        own = self.weights[kept]
        return self._of(kept, normalised(own if own.any() else None, len(kept)))

    def weighted(self) -> Ensemble:
        """The same mixture without members of weight 0."""
        return self.only(*np.array(self.names)[self.weights > 0])

    def _of(self, kept: np.ndarray, weights: np.ndarray) -> Ensemble:
        chosen = type(self)([self.members[k] for k in kept], self.classes, weights, self.combiner)
        chosen.temperatures, chosen.temperature = self.temperatures[kept], self.temperature
        chosen.vectors = None if self.vectors is None else self.vectors[:, kept]
        return chosen

    def seconds(self, inputs: Any, repeats: int = 5) -> np.ndarray:
        """Seconds of each member's prediction for ``inputs``: the median of ``repeats``, float64 [K]."""
        return member_seconds(self.members, as_batch(inputs), repeats)

    def fingerprint(self) -> dict[str, Any]:
        """Digests of all that its targets depend on, as JSON; ``parts`` are those of each member."""
        members = {member.name: member.fingerprint() for member in self.members}
        parts = {member.name: own for member in self.members if (own := parts_of(member))}
        return {"members": members, "parts": parts, **self.settings()}

    def settings(self) -> dict[str, Any]:
        """Its settings beside the members: combiner, classes, and all that was fitted; JSON-able."""
        return {
            "weights": self.weights.tolist(),
            "temperatures": self.temperatures.tolist(),
            "temperature": self.temperature,
            "combiner": self.combiner,
            "classes": None if self.classes is None else list(self.classes),
            **({} if self.vectors is None else {"vectors": self.vectors.tolist()}),
        }

    def save(self, folder: Path | str) -> None:
        """Write the ensemble to a folder: ``members/<name>/`` and, last, ``ensemble.json``. It takes the
        place of one that is there.

        Raises
        ------
        ValueError, TypeError
            A member that can't be saved (a module without a factory, a function); the folder is then as it
            was before.
        """
        storage.save(self, folder)

    @classmethod
    def load(cls, folder: Path | str, trusted: Sequence[str] = ()) -> Ensemble:
        """A saved ensemble, every member checked against the digest saved with it.

        Other versions of torch, scikit-learn or a class's source may load it; `fingerprint` then differs.

        Parameters
        ----------
        folder : path
        trusted : sequence of str
            Class paths that may be built beside torch's, this package's and scikit-learn's own.

        Raises
        ------
        ValueError
            Nothing complete is there, a newer version wrote it, a class is not trusted, or a file is damaged.
        """
        return storage.load(cls, folder, trusted)
