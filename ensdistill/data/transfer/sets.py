"""Transfer sets: the labelled samples, the pool, and samples made from both."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np

from ensdistill.common.random import random_generator
from ensdistill.data import Rows, Split, check_finite
from ensdistill.data import batches as b
from ensdistill.data.samples import as_samples, in_memory, joined, subset, whole
from ensdistill.data.tasks import unlabelled_like
from ensdistill.data.transfer.base import Synthetic, needs_ensemble
from ensdistill.data.transfer.neighbours import shared_searches
from ensdistill.data.transfer.rounds import Rounds
from ensdistill.data.transfer.unseen import Unseen

_FEW_ROWS = 128  # of each part, on which settings are tried


@dataclass(frozen=True)
class Transfer:
    """A built transfer set.

    Parameters
    ----------
    rows : Rows
        uids 0..M-1 in order. Labels of the labelled rows, in the form of their task; those of the pool and of
        synthetic rows are unknown (-100, -1, or NaN; see :mod:`ensdistill.data.tasks`).
    origin : tuple of (str, int)
        The origins of the rows, in order, with their numbers: ``labelled``, ``pool``, then one entry per
        synthetic source.
    rounds : Rounds or None
        The synthetic rows made anew, for more than one version of the rows; None where there are none, or
        where a source needs the ensemble.
    """

    rows: Rows
    origin: tuple[tuple[str, int], ...]
    rounds: Rounds | None = None

    def source(self, uid: int) -> str:
        """Where a row comes from: "row 10 of pool".

        >>> rows = Rows(np.zeros((5, 1)), np.arange(5), np.arange(5))
        >>> Transfer(rows, (("labelled", 2), ("pool", 3))).source(4)
        'row 2 of pool'
        """
        first = 0
        for name, count in self.origin:
            if uid < first + count:
                return f"row {uid - first} of {name}"
            first += count
        raise ValueError(f"uid: expected 0..{first - 1}; got {uid}")


@dataclass(frozen=True)
class TransferSet:
    """The labelled rows, the pool, and rows made from both.

    No synthetic row equals a test row, where test rows are in memory: another one takes its place.

    Parameters
    ----------
    pool : bool
        Whether the pool is used, as it is and as base of the synthetic rows.
    synthetic : sequence of Synthetic
        Sources, for example ``[Munge(rows=6600), Mixup(rows=6600)]``.
    base_rows : int
        Rows of lazy samples that are read into memory as the base of the synthetic rows, chosen by the seed.
        Samples in memory are used whole.

    Examples
    --------
    >>> from ensdistill.data import Digits
    >>> from ensdistill.data.transfer import Mixup
    >>> transfer = TransferSet(synthetic=[Mixup(rows=500)]).build(Digits().split(seed=0), seed=0)
    >>> transfer.origin, len(transfer.rows)
    ((('labelled', 200), ('pool', 900), ('mixup', 500)), 1600)
    """

    pool: bool = True
    synthetic: Sequence[Synthetic] = field(default_factory=list)
    base_rows: int = 10_000

    def __post_init__(self) -> None:
        if self.base_rows < 1:
            raise ValueError(f"transfer: base_rows: expected at least 1; got {self.base_rows}")

    def build(self, split: Split, seed: int, ensemble: Any = None) -> Transfer:
        """The transfer set of a split; the same for the same seed, and no source's rows depend on the others.

        Parameters
        ----------
        split : Split
            Of samples of any kind. Lazy ones stay unread in the transfer set.
        seed : int
        ensemble : DifferentiableEnsemble, optional
            For sources whose ``make`` has a parameter of that name.

        Raises
        ------
        TypeError, ValueError
            A source returns something else than finite samples like those of its base, or needs an ensemble;
            names the source and the row.
        """
        parts: list[tuple[str, Any]] = [("labelled", split.labelled.inputs)]
        if self.pool:
            parts.append(("pool", split.pool.inputs))
        rounds = None
        if self.synthetic:
            base, unseen = (
                self._base(joined([inputs for _, inputs in parts]), seed),
                Unseen(split.test.inputs),
            )
            if not any(map(needs_ensemble, self.synthetic)):
                rounds = self._rounds(base, sum(len(inputs) for _, inputs in parts), unseen)
            with shared_searches():
                parts += self._made(base, seed, ensemble, unseen)
        inputs = joined([part for _, part in parts])
        known = split.labelled.labels
        more = np.empty((len(inputs) - len(known), *known.shape[1:]), known.dtype)
        labels = np.concatenate([known, unlabelled_like(more)])
        uids = np.arange(len(inputs), dtype=np.int64)
        rows = Rows(inputs, uids, labels, _weights(split, self.pool, len(inputs)))
        return Transfer(rows, tuple((name, len(part)) for name, part in parts), rounds)

    def rounds(self, split: Split, seed: int) -> Rounds:
        """The synthetic rows of ``build(split, seed)``, made anew for each version of its rows.

        Raises
        ------
        ValueError
            There are no synthetic sources, or one needs an ensemble.

        Examples
        --------
        >>> from ensdistill.data import Digits
        >>> from ensdistill.data.transfer import Mixup
        >>> split, transfer = Digits().split(seed=0), TransferSet(synthetic=[Mixup(rows=500)])
        >>> rows, rounds = transfer.build(split, seed=0).rows, transfer.rounds(split, seed=0)
        >>> again = rounds.version(rows.inputs, rows.uids, view=1, seed=0)
        >>> int((again == rows.inputs).all(axis=(1, 2, 3)).sum())  # the rows that are not synthetic
        1100
        """
        self.check_rounds()
        parts = [split.labelled.inputs, split.pool.inputs] if self.pool else [split.labelled.inputs]
        base = self._base(joined(parts), seed)
        return self._rounds(base, sum(map(len, parts)), Unseen(split.test.inputs))

    def check_rounds(self) -> None:
        """Raise ValueError where the synthetic rows cannot be made anew."""
        if not self.synthetic:
            raise ValueError(
                "transfer.synthetic: expected a source of rows that are made anew, or else an augmentation, "
                "because several views without either would all be alike; got none"
            )
        for index, source in enumerate(self.synthetic):
            if needs_ensemble(source):
                raise ValueError(
                    f"{_name(index, source)}: expected a source that makes rows without the ensemble, which "
                    "is not asked for later versions; leave it out, or make one version (views: 1)"
                )

    def _rounds(self, base: Any, first: int, unseen: Unseen) -> Rounds:
        return Rounds(base, self.synthetic, [source.rows for source in self.synthetic], first, unseen)

    def _made(self, base: Any, seed: int, ensemble: Any, unseen: Unseen) -> Iterator[tuple[str, Any]]:
        """The samples of each source, with the name of its class."""
        for index, source in enumerate(self.synthetic):
            name = _name(index, source)
            generator = random_generator("transfer", seed, index)
            arguments: list[Any] = [base, generator]
            if needs_ensemble(source):
                if ensemble is None:
                    raise ValueError(
                        f"{name}: expected an ensemble: TransferSet.build(split, seed, ensemble)"
                    )
                arguments.append(ensemble)
            made = source.make(*arguments)
            _check_made(name, made, base)
            yield type(source).__name__.lower(), as_samples(unseen(made, generator))

    def check(self, split: Split) -> None:
        """Let every source make two rows from a few of the samples; those that need an ensemble are left out.

        Raises
        ------
        ValueError
            A source does not take such samples, or its settings do not fit them; names the source.
        """
        used = [split.labelled.inputs, split.pool.inputs] if self.pool else [split.labelled.inputs]
        few = whole(joined([subset(part, np.arange(min(len(part), _FEW_ROWS))) for part in used]))
        for index, source in enumerate(self.synthetic):
            if needs_ensemble(source) or not is_dataclass(source):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # build gives them
                    small: Any = replace(source, rows=min(source.rows, 2))
                    made = small.make(few, random_generator("transfer check", index))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{_name(index, source)}: {error}") from error
            _check_made(_name(index, source), made, few)

    def _base(self, samples: Any, seed: int) -> Any:
        """The samples as one batch; of lazy ones ``base_rows``."""
        if in_memory(samples) or len(samples) <= self.base_rows:
            return whole(samples)
        generator = random_generator("transfer base", seed)
        return whole(subset(samples, np.sort(generator.choice(len(samples), self.base_rows, replace=False))))


def _name(index: int, source: Synthetic) -> str:
    return f"transfer.synthetic.{index} ({type(source).__name__})"


def _weights(split: Split, pool: bool, count: int) -> np.ndarray | None:
    """The rows' weights; rows without one, and synthetic ones, have the mean of the others."""
    used = [split.labelled, split.pool] if pool else [split.labelled]
    if all(rows.weights is None for rows in used):
        return None
    known = np.concatenate(
        [np.full(len(rows), np.nan) if rows.weights is None else rows.weights for rows in used]
    )
    weights = np.full(count, np.nanmean(known))
    weights[: len(known)] = np.where(np.isnan(known), weights[: len(known)], known)
    return weights


def _check_made(name: str, made: Any, base: Any) -> None:
    """Raise ValueError where samples are not like those of the base, or hold NaN in a column where it holds
    none."""
    if isinstance(base, np.ndarray):
        expected = f"{base.dtype} rows of shape {list(base.shape[1:])}, as its base"
        got = f"{made.dtype} {list(made.shape)}" if isinstance(made, np.ndarray) else type(made).__name__
        alike = isinstance(made, np.ndarray) and made.dtype == base.dtype and made.shape[1:] == base.shape[1:]
    else:
        form = _form(base)
        try:
            found = _form(made)
        except (TypeError, ValueError):
            found = {"kind": type(made).__name__}
        expected, alike = f"samples like its base, {form}", found == form
        got = f"no rows, {found}" if alike else f"{found}"
    if not alike or b.count(made) == 0:
        raise ValueError(f"{name}: expected make to give {expected}; got {got}")
    if isinstance(base, np.ndarray) and base.dtype.kind == "f":
        gaps = np.isnan(base).any(0)
        check_finite(name, np.where(gaps & np.isnan(made), 0, made) if gaps.any() else made)


def _form(batch: Any) -> dict[str, Any]:
    """Kind and form of samples; of a frame its library's own dtypes, with their categories."""
    form = b.describe(batch)
    if form["kind"] != "table":
        return form
    import narwhals.stable.v2 as nw

    frame = nw.from_native(batch, eager_only=True)
    columns = {}
    for name in frame.columns:
        series = frame[name].to_native()
        dtype = series.dtype if hasattr(series, "dtype") else series.type
        columns[name] = str(list(dtype.categories)) if str(dtype) == "category" else str(dtype)
    return {"kind": f"{type(batch).__module__.partition('.')[0]} table", "columns": columns}
