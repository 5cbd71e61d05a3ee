"""Estimators as factories: copies of one, fitted side by side."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ensdistill.common.errors import is_out_of_memory
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.base import flat, warned_already
from ensdistill.teachers.stack.fitting import TrainingRows, as_member, fitted, seeds_of

ROWS = 256  # on which members are compared

NOTE = "in the fit of"

Job = tuple[Any, int, np.ndarray, str]
"""Estimator, seed, rows, name."""


def check_seeds(counts: Sequence[tuple[Any, int]], rows_differ: bool) -> None:
    """Refuse members that would be equal: several of an estimator that has no seed, on the same rows."""
    for estimator, count in counts:
        if count > 1 and not rows_differ and not seeds_of(estimator, 0):
            raise ValueError(
                f"factory: {type(estimator).__name__} has no random_state that is None, so its {count} members would be equal; "
                "choose method='bagging', or different estimators"
            )


def fit(jobs: Sequence[Job], data: TrainingRows, n_jobs: int | None) -> Iterator[tuple[str, Member]]:
    """Fitted members by name, as they are done; ``n_jobs`` means what it means in scikit-learn.

    Raises
    ------
    MemoryError
        Memory is short; names the member. Other errors of a fit have a note that does.
    """
    from joblib import Parallel, delayed

    # joblib's results come in the order of the jobs; what is done is given out at once, so that it can be put away.
    results = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(_fit)(job, data) for job in jobs)
    names = [name for *_, name in jobs]
    for (_, _, rows, name), estimator in zip(jobs, _named(results, names), strict=True):
        with warned_already():  # of all members, before the first was fitted
            member = as_member(estimator, name, data.classes, data.labels[rows])
        yield name, member


def alike(members: Iterable[tuple[str, Member]], inputs: np.ndarray) -> Iterator[tuple[str, Member]]:
    """The members themselves; a warning tells of those that answer as an earlier one does."""
    # Rows that nobody has learned by heart: every feature from another one.
    features = np.random.default_rng(0).permuted(flat(inputs), axis=0)[:ROWS]
    known: dict[bytes, str] = {}
    for name, member in members:
        first = known.setdefault(member.predict_logits(features).tobytes(), name)
        if first != name:
            warnings.warn(
                f"{name} answers just as {first} does: its random_state has no say in it; choose method='bagging', or different estimators",
                stacklevel=2,
            )
        yield name, member


def _fit(job: Job, data: TrainingRows) -> Any:
    """The estimator of a job, fitted, perhaps in another process: an error says here whose it is."""
    estimator, seed, rows, name = job
    try:
        return fitted(estimator, name, seed, rows, data, spare=np.setdiff1d(np.arange(len(data.labels)), rows))
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(
                f"{name}: out of memory in its fit ({error}) to {len(rows)} rows of {data.inputs[0].size} features; fit fewer at once "
                "(n_jobs), choose fewer rows (method='subsample'), or a smaller estimator"
            ) from None
        error.add_note(f"{NOTE} {name}")
        raise


def _named(fitted: Iterator[Any], names: Sequence[str]) -> Iterator[Any]:
    """The same; an error that lost its note on its way from another process, or that tells of such a process's end, has at least one that
    says whose it may be."""
    try:
        yield from fitted
    except Exception as error:
        own = str(error).startswith(tuple(f"{name}: " for name in names))
        if not own and not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            error.add_note(f"{NOTE} {names[0]}" if len(names) == 1 else f"{NOTE} one of {', '.join(names)}")
        raise
