"""The ensemble: weighted, calibrated members and the rule that combines them."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from torch import Tensor

from ensdistill.calibration import COMBINERS, Combiner, fit_mixture_temperature, fit_temperature, fit_weights, log_mixture
from ensdistill.data import BadRows, Rows, derive_seed
from ensdistill.describe import describe
from ensdistill.files import read_json, write_arrays, write_json
from ensdistill.fingerprint import digest
from ensdistill.members import Member, as_member, default_name, load_member
from ensdistill.specs import Job, MemberSpec, job_names

FORMAT = 1


class Ensemble:
    """Members with temperatures, mixture weights and a combiner. Made by :meth:`from_members`, :meth:`load` or ``train_ensemble``.

    Attributes
    ----------
    members : tuple of Member
    names : tuple of str [K]
    classes : tuple of str [C], or None where no member knows names
    weights : ndarray [K], float64
        Non-negative, of sum one.
    temperatures : ndarray [K], float64
        Each member's own.
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

    def __init__(self, members: Sequence[Member], classes: tuple[str, ...] | None, weights: np.ndarray, combiner: Combiner) -> None:
        self.members, self.classes, self.weights, self.combiner = tuple(members), classes, weights, combiner
        self.temperatures, self.temperature = np.ones(len(members)), 1.0

    @classmethod
    def from_members(
        cls,
        members: Sequence[Any],
        *,
        weights: Sequence[float] | np.ndarray | None = None,
        combiner: Combiner = "prob",
        classes: Sequence[str] | None = None,
    ) -> Ensemble:
        """An ensemble of members as they are.

        Parameters
        ----------
        members : sequence
            Members, torch modules and fitted scikit-learn estimators, mixed. Unnamed ones of one class are numbered. A bare module
            predicts, but can't be saved: ``TorchMember(module, name=..., factory=functools.partial(Class, argument=value, ...))``
            says how it is built again.
        weights : [K], optional
            Non-negative; normalised to sum one. Equal by default.
        combiner : {"prob", "logit", "log_prob"}
        classes : sequence of str, optional
            The order of the outputs; by default that of the first member that knows names. Others are aligned by name.

        Raises
        ------
        ValueError
            No members, equal names, members with other classes, or weights that do not fit.
        """
        if len(members) == 0:
            raise ValueError("members: expected at least one; got none")
        if combiner not in COMBINERS:
            raise ValueError(f"combiner: expected one of {COMBINERS}; got {combiner!r}")
        adapted = [as_member(m, name) for m, name in zip(members, _free_names(members), strict=True)]
        names = [m.name for m in adapted]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"members: expected different names; {names.count(name)} are called {name!r}")
        known = next((m.classes for m in adapted if m.classes is not None), None)
        order = tuple(classes) if classes is not None else known
        for member in adapted:
            if member.classes is not None and order is not None and sorted(member.classes) != sorted(order):
                raise ValueError(f"members: {member.name} has the classes {list(member.classes)}; expected {list(order)}")
        return cls(adapted, order, _normalised(weights, len(adapted)), combiner)

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
        lines = [f"    {name:<{width}}  weight {weight:.3f}, temperature {own:.3f}" for name, weight, own in members]
        return "\n".join([f"Ensemble: combiner {self.combiner!r}, temperature {self.temperature:.3f}, members", *lines])

    def member_logits(self, index: int, inputs: np.ndarray) -> np.ndarray:
        """One member's logits as it gives them (no temperature), in the ensemble's class order: float32 [N, C].

        Raises
        ------
        ValueError
            It returns another number of classes, NaN, +inf, or rules out every class of a row; names the member and the rows.
        """
        member = self.members[index]
        try:
            logits = member.predict_logits(inputs)
        except BadRows as error:
            raise BadRows(f"{member.name}: {error}", error.rows) from error
        check_logits(logits, member.name, len(inputs), self.classes)
        if member.classes is not None and self.classes is not None and member.classes != self.classes:
            logits = logits[:, [member.classes.index(name) for name in self.classes]]
        return logits

    def raw_logits(self, inputs: np.ndarray) -> np.ndarray:
        """All members' logits without temperatures: float32 [K, N, C], what ``calibrate`` and ``weigh`` are fitted on."""
        logits = [self.member_logits(i, inputs) for i in range(len(self))]
        for member, z in zip(self.members, logits, strict=True):
            if z.shape != logits[0].shape:
                raise ValueError(f"members: {member.name} has {z.shape[1]} classes, {self.members[0].name} has {logits[0].shape[1]}")
        return np.stack(logits)

    def apply_temperatures(self, raw: np.ndarray | Tensor) -> np.ndarray:
        """Raw logits [K, N, C] divided by each member's temperature and the mixture's: float32 [K, N, C]."""
        raw = np.asarray(raw)
        if raw.ndim != 3 or len(raw) != len(self):
            raise ValueError(f"logits: expected [{len(self)}, N, C], one for each member; got {list(raw.shape)}")
        return (raw / (self.temperatures * self.temperature)[:, None, None]).astype(np.float32)

    def predict_logits(self, inputs: np.ndarray) -> Tensor:
        """The members' calibrated logits for ``inputs`` [N, ...]: float32 [K, N, C]."""
        return torch.from_numpy(self.apply_temperatures(self.raw_logits(inputs)))

    def combine(self, logits: np.ndarray | Tensor, temperature: float = 1.0) -> np.ndarray:
        """The mixture's probabilities, float64 [N, C], from calibrated logits [K, N, C] (see ``predict_logits``)."""
        if not (0 < temperature < np.inf):
            raise ValueError(f"temperature: expected a positive number; got {temperature}")
        return np.exp(log_mixture(np.asarray(logits), self.weights, self.combiner, temperature))

    def predict_proba(self, inputs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """The mixture's probabilities at ``temperature``: float64 [N, C].

        The members' logits are divided by the temperature before they are combined.
        """
        return self.combine(self.predict_logits(inputs), temperature)

    def calibrate(self, logits: np.ndarray | Tensor, labels: np.ndarray) -> Ensemble:
        """Fit each member's own temperature by NLL; never worse than T = 1 on these rows. Returns self.

        Parameters
        ----------
        logits : [K, N, C]
            Raw logits (no temperature applied) of rows that the members were not trained on.
        labels : ndarray [N], int64
        """
        raw = self._check_fit(logits, labels)
        self.temperatures = np.array([fit_temperature(z, labels) for z in raw])
        return self

    def weigh(self, logits: np.ndarray | Tensor, labels: np.ndarray, *, prior_rows: float = 0.0) -> Ensemble:
        """Fit the mixture weights by NLL, then the temperature that the mixture needs. Returns self.

        Weights below 1e-3 are set to zero and the rest is normalised. Call it after ``calibrate``.

        Parameters
        ----------
        logits : [K, N, C]
            Raw logits, as for ``calibrate``.
        labels : ndarray [N], int64
        prior_rows : float
            Draws the weights to equal ones; see :func:`ensdistill.calibration.fit_weights`.
        """
        scaled = self._check_fit(logits, labels) / self.temperatures[:, None, None]
        self.weights = fit_weights(scaled, labels, self.combiner, prior_rows)
        self.temperature = fit_mixture_temperature(scaled, self.weights, labels, self.combiner)
        return self

    def _check_fit(self, logits: np.ndarray | Tensor, labels: np.ndarray) -> np.ndarray:
        raw = np.asarray(logits, np.float64)
        if raw.ndim != 3 or len(raw) != len(self) or raw.shape[1] != len(labels) or len(labels) == 0:
            raise ValueError(f"logits: expected [{len(self)}, {len(labels)}, C] for {len(labels)} labels; got {list(raw.shape)}")
        if labels.min() < 0 or labels.max() >= raw.shape[2]:
            raise ValueError(f"labels: expected 0..{raw.shape[2] - 1}; got {labels.min()}..{labels.max()}")
        for name, z in zip(self.names, raw, strict=True):
            check_logits(z, name, len(labels), None)
        return raw

    def fingerprint(self) -> dict[str, Any]:
        """What its targets depend on, field by field, JSON-able."""
        return {
            "members": {member.name: member.fingerprint() for member in self.members},
            "weights": self.weights.tolist(),
            "temperatures": self.temperatures.tolist(),
            "temperature": self.temperature,
            "combiner": self.combiner,
            "classes": None if self.classes is None else list(self.classes),
        }

    def save(self, folder: Path | str) -> None:
        """Write the ensemble to a folder: ``members/<name>/`` and, last, ``ensemble.json``.

        Raises
        ------
        ValueError, TypeError
            A member that can't be saved (a module without a factory, a function); the folder is then as it was before.
        """
        folder = Path(folder).absolute()
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            for member in self.members:
                member.save(part / member.name)
            # From here on nothing can be refused any more. Without its ensemble.json a folder that is cut short is known as such.
            (folder / "ensemble.json").unlink(missing_ok=True)
            for file in [p for p in part.rglob("*") if p.is_file()]:
                target = folder / "members" / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            write_json(folder / "ensemble.json", {"format": FORMAT, **self.fingerprint()})
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path | str, trusted: Sequence[str] = ()) -> Ensemble:
        """A saved ensemble, every member checked against its fingerprint.

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
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"folder: there is no folder {str(folder)!r}")
        about = read_json(folder / "ensemble.json")
        if about is None:
            raise ValueError(f"folder: {folder} holds no ensemble: there is no ensemble.json, which is written last; save it again")
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            got = f"format {about.get('format')!r}" if isinstance(about, dict) else "something else"
            raise ValueError(f"{folder / 'ensemble.json'}: expected an ensemble of format {FORMAT}; got {got}")
        members = [load_member(folder / "members" / _plain_name(name, folder), trusted) for name in about["members"]]
        ensemble = cls.from_members(members, weights=about["weights"], combiner=about["combiner"], classes=about["classes"])
        # As saved: normalising again could change the last bit.
        ensemble.weights = np.array(about["weights"], np.float64)
        ensemble.temperatures = np.array(about["temperatures"], np.float64)
        ensemble.temperature = float(about["temperature"])
        for key, value in ensemble.fingerprint().items():
            if value != about[key]:
                raise ValueError(f"{folder}: {key} is {value!r}; ensemble.json says {about[key]!r}")
        return ensemble


def train_ensemble(
    specs: Sequence[MemberSpec],
    labelled: Rows,
    classes: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    combiner: Combiner = "prob",
    prior_rows: float = 3.0,
    folder: Path | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Ensemble, np.ndarray]:
    """Train the members on all labelled rows, calibrated and weighted by their predictions on held-out folds of the same rows.

    Parameters
    ----------
    specs : sequence of MemberSpec
        For example :class:`ensdistill.specs.TorchMembers` and :class:`ensdistill.specs.SklearnMembers`.
    labelled : Rows
        All with labels.
    classes : sequence of str
    folds : int
        Stratified folds (Wolpert, 1992, "Stacked Generalization"): each row's held-out prediction is by members that did not see it.
    seed : int
        The folds, and (with the spec's name and the member's number) every member's seed.
    combiner : {"prob", "logit", "log_prob"}
    prior_rows : float
        See :func:`ensdistill.calibration.fit_weights`. Measured on digits with 200 labelled rows and seven members: weights fitted
        without a prior lose to equal ones (97.6 % against 98.35 %), with 2 to 5 rows they do not.
    folder : path, optional
        Every finished piece is kept there, and a long training's checkpoints; the same call goes on where a killed one stopped and
        ends with the same bits. Pieces of another configuration are replaced.
    progress : callable (name, done, total), optional

    Returns
    -------
    ensemble : Ensemble
    held_out : ndarray [K, N, C], float32
        Raw logits (no temperature) for ``labelled``, by members that did not see the row.

    Raises
    ------
    ValueError
        Bad arguments, a class with fewer rows than folds, or a member whose logits are NaN or infinite (names member and rows).

    Examples
    --------
    >>> from ensdistill.data import Digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from ensdistill.specs import SklearnMembers
    >>> split = Digits().split(seed=0)
    >>> specs = [SklearnMembers(LogisticRegression()), SklearnMembers(GaussianNB())]
    >>> ensemble, held_out = train_ensemble(specs, split.labelled, split.classes)
    >>> ensemble.names, held_out.shape
    (('logisticregression', 'gaussiannb'), (2, 200, 10))
    """
    from sklearn.model_selection import StratifiedKFold

    names = [name for spec in specs for name in job_names(spec)]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"specs: expected at least one member, all of different names; got {names}")
    rows, count = len(labelled), len(classes)
    if rows == 0 or labelled.labels.min() < 0 or labelled.labels.max() >= count:
        raise ValueError(
            f"labelled: expected rows with labels in 0..{count - 1}; got {rows} rows, labels {np.unique(labelled.labels)[:5]} ..."
        )
    per_class = np.bincount(labelled.labels, minlength=count)
    if not (2 <= folds <= per_class.min()):
        rare = int(per_class.argmin())
        raise ValueError(f"folds: expected 2 to {per_class[rare]}, the rows of the rarest class ({classes[rare]!r}); got {folds}")
    splitter = StratifiedKFold(folds, shuffle=True, random_state=derive_seed("folds", seed) % 2**32)
    parts = [(train, held) for train, held in splitter.split(np.zeros(rows), labelled.labels)]
    everything = np.arange(rows)

    members: list[Member] = []
    held_out = np.zeros((len(names), rows, count), np.float32)
    for spec in specs:
        done = 0
        seeds = [(name, derive_seed("member", seed, name)) for name in job_names(spec)]
        # A part is the rows to learn from and the rows to predict; without the latter its members are kept.
        pending = [*parts, (everything, everything[:0])]
        for group in [pending] if spec.together else [[part] for part in pending]:
            piece = _Piece(spec, labelled, tuple(classes), [(train, held, [Job(n, s, train) for n, s in seeds]) for train, held in group])
            logits, kept = piece.run(folder, progress, done, len(pending))
            for (_, held), z in zip(group, logits, strict=True):
                held_out[len(members) : len(members) + spec.count, held] = z
            done += len(group)
        members += kept
    ensemble = Ensemble.from_members(members, combiner=combiner, classes=classes)
    ensemble.calibrate(held_out, labelled.labels).weigh(held_out, labelled.labels, prior_rows=prior_rows)
    return ensemble, held_out


class _Piece:
    """The jobs of one call of ``spec.fit``: what is done again when the process was killed in the middle of it."""

    def __init__(
        self, spec: MemberSpec, labelled: Rows, classes: tuple[str, ...], parts: list[tuple[np.ndarray, np.ndarray, list[Job]]]
    ) -> None:
        self.spec, self.labelled, self.classes, self.parts = spec, labelled, classes, parts
        self.final = len(parts[-1][1]) == 0

    def run(
        self, folder: Path | str | None, progress: Callable[[str, int, int], None] | None, before: int, total: int
    ) -> tuple[list[np.ndarray], list[Member]]:
        """The parts' held-out logits [count, rows, C], and the final members (none unless the last part is for them)."""
        home, fingerprint = None, ""
        if folder is not None:
            fingerprint = self._fingerprint()
            home = Path(folder) / "pieces" / f"{self.spec.name}-{before}"
            finished = read_json(home / "piece.json")
            if isinstance(finished, dict) and finished.get("fingerprint") == fingerprint:
                if progress is not None:
                    progress(self.spec.name, before + len(self.parts), total)
                return self._load(home, finished)
            (home / "piece.json").unlink(missing_ok=True)

        def report(done: int, of: int) -> None:
            # Steps of this piece as parts of the spec, in thousandths: pieces of one spec share a bar.
            if progress is not None:
                progress(self.spec.name, round(1000 * (before + len(self.parts) * done / of)), 1000 * total)

        checkpoint = None if home is None else home / "checkpoint"
        jobs = [job for _, _, group in self.parts for job in group]
        inputs, labels = self.labelled.inputs, self.labelled.labels
        trained = self.spec.fit(inputs, labels, self.classes, jobs, checkpoint=checkpoint, progress=report)
        logits = []
        for index, (_, held, group) in enumerate(self.parts):
            if len(held) == 0:
                logits.append(np.zeros((len(group), 0, len(self.classes)), np.float32))
                continue
            those = Ensemble.from_members(trained[index * len(group) : (index + 1) * len(group)], classes=self.classes)
            try:
                logits.append(those.raw_logits(inputs[held]))
            except BadRows as error:
                raise ValueError(f"{error}; that row is the labelled row of uid {self.labelled.uids[held[error.rows[0]]]}") from error
        kept = trained[-self.spec.count :] if self.final else []
        if home is None:
            return logits, kept
        self._save(home, fingerprint, logits, kept)
        # Read back, so that a member that comes from disk and one that was just trained can't differ.
        return self._load(home, read_json(home / "piece.json"))

    def _save(self, home: Path, fingerprint: str, logits: list[np.ndarray], kept: list[Member]) -> None:
        arrays = {f"part-{i}": z for i, z in enumerate(logits)}
        write_arrays(home / "held_out.safetensors", arrays)
        for member in kept:
            member.save(home / member.name)
        content = {"fingerprint": fingerprint, "held_out": digest(arrays), "members": [m.name for m in kept]}
        write_json(home / "piece.json", content)
        shutil.rmtree(home / "checkpoint", ignore_errors=True)

    def _load(self, home: Path, finished: dict[str, Any]) -> tuple[list[np.ndarray], list[Member]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load((home / "held_out.safetensors").read_bytes())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{home}: cannot be read ({error}); delete this folder to have it trained again") from error
        if digest(arrays) != finished["held_out"]:
            raise ValueError(f"{home}: held_out.safetensors is not what was written; delete this folder to have it trained again")
        members = [load_member(home / _plain_name(name, home), self.spec.trusted) for name in finished["members"]]
        return [arrays[f"part-{i}"] for i in range(len(arrays))], members

    def _fingerprint(self) -> str:
        jobs = [[held, [(job.name, job.seed, job.rows) for job in group]] for _, held, group in self.parts]
        versions = {"torch": torch.__version__, "sklearn": sklearn.__version__, "machine": platform.machine()}
        return digest([describe(self.spec), self.labelled.inputs, self.labelled.labels, list(self.classes), jobs, versions])


def check_logits(logits: np.ndarray, name: str, rows: int, classes: Sequence[str] | None) -> None:
    """Raise ValueError, naming the member and the rows, for logits [N, C] that are no logits."""
    if logits.ndim != 2 or len(logits) != rows or (classes is not None and logits.shape[1] != len(classes)):
        expected = "C" if classes is None else len(classes)
        raise ValueError(f"{name}: expected logits [{rows}, {expected}]; got {list(logits.shape)}")
    wrong = np.isnan(logits) | np.isposinf(logits)
    bad = np.flatnonzero(wrong.any(1))
    if len(bad):
        value = logits[bad[0]][wrong[bad[0]]][0]
        raise BadRows(
            f"{name}: the logits of row {bad[0]} hold {value} ({len(bad)} such rows: {bad[:5].tolist()}{' ...' * (len(bad) > 5)})", bad
        )
    empty = np.flatnonzero(np.isneginf(logits).all(1))
    if len(empty):
        raise BadRows(f"{name}: the logits of row {empty[0]} are all -inf ({len(empty)} such rows); no class is left", empty)


def _free_names(members: Sequence[Any]) -> list[str | None]:
    """For each unnamed member what it is called: numbered where several would have one name."""
    names = [None if isinstance(m, Member) else default_name(m) for m in members]
    return [f"{n}-{names[:i].count(n) + 1}" if n is not None and names.count(n) > 1 else n for i, n in enumerate(names)]


def _normalised(weights: Sequence[float] | np.ndarray | None, count: int) -> np.ndarray:
    values = np.ones(count) if weights is None else np.array(weights, np.float64)
    if values.shape != (count,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ValueError(f"weights: expected {count} numbers of at least 0 with a positive sum; got {values.tolist()}")
    return values / values.sum()


def _plain_name(name: str, folder: Path) -> str:
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{folder}: {name!r} is no member's name")
    return name
