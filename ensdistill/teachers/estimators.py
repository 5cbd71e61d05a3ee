"""Estimators as members: copies of one, fitted side by side."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ensdistill.common.errors import is_out_of_memory
from ensdistill.data.augmentation import Augmentation
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import Member
from ensdistill.teachers.members.base import flat, warned_already
from ensdistill.teachers.members.inputs import advice
from ensdistill.teachers.members.moments import predictions_of
from ensdistill.teachers.stack import Status, Watch
from ensdistill.teachers.stack.fitting import as_member, fitted, without_stopping

ROWS = 256  # on which members are compared

NOTE = "in the fit of"


def fit(
    estimator: Any,
    jobs: Sequence[Job],
    data: TrainingRows,
    n_jobs: int | None,
    watch: Watch | None,
    *,
    augment: Augmentation | None = None,
    refit: bool = False,
    **options: Any,
) -> Iterator[tuple[Job, Member]]:
    """Fit a copy of an estimator for each job, and give out each member as it is fitted; ``n_jobs`` as in
    scikit-learn.

    ``options`` are the member's. A warning names members whose predictions equal those of an earlier one of
    the same rows.

    Raises
    ------
    MemoryError
        Memory is short; names the member. Other errors of a fit have a note that does.
    """
    from joblib import Parallel, delayed

    # joblib returns results in the order of the jobs; each is given out at once, so that it can be put away.
    results = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_fit)(estimator, job, data, augment, refit) for job in jobs
    )
    answers: dict[tuple[int | None, bytes], str] = {}
    several = len({job.part for job in jobs}) < len(jobs)
    # Each feature from another row, so that no member has seen these rows.
    features = (
        np.random.default_rng(0).permuted(flat(data.inputs), axis=0)[:ROWS]
        if several and isinstance(data.inputs, np.ndarray)
        else None
    )
    for job, one in zip(jobs, _named(results, [job.key for job in jobs]), strict=True):
        with warned_already():  # of all members, before the first was fitted
            member = as_member(one, job.name, data.classes, data.labels[job.rows], **options)
        if features is not None:
            _warn_if_alike(member, job, features, answers)
        if watch is not None:
            watch(Status((job.key,), 1, 1, np.array([np.nan]), np.array([np.nan])))
        yield job, member


def _warn_if_alike(
    member: Member, job: Job, features: np.ndarray, answers: dict[tuple[int | None, bytes], str]
) -> None:
    """Warn of a member whose predictions equal those of an earlier one of the same rows."""
    try:
        found = predictions_of(member, features).tobytes()
    except Exception:  # an estimator may refuse these rows, which are no samples: then there is no comparison
        return
    if (first := answers.setdefault((job.part, found), job.key)) != job.key:
        warnings.warn(
            f"{job.key} answers just as {first} does: its random_state has no say in it; choose "
            "method='bagging', or different estimators",
            stacklevel=3,
        )


def _fit(estimator: Any, job: Job, data: TrainingRows, augment: Augmentation | None, refit: bool) -> Any:
    """The estimator of a job, fitted, perhaps in another process: an error names it here."""
    try:
        own: dict[str, Any] = {"spare": job.spare, "augment": augment}
        made = fitted(estimator, job.key, job.seed, job.rows, data, **own)
        if refit:
            made = fitted(without_stopping(made), job.key, job.seed, job.rows, data, **own)
        return made
    except Exception as error:
        if is_out_of_memory(error):
            width = f" of {data.inputs[0].size} features" if isinstance(data.inputs, np.ndarray) else ""
            raise MemoryError(
                f"{job.key}: out of memory in its fit ({error}) to {len(job.rows)} rows{width}; fit fewer at "
                "once (n_jobs), choose fewer rows (method='subsample'), or a smaller estimator"
            ) from None
        error.add_note(f"{NOTE} {job.key}{advice(error, data.take(job.rows).inputs)}")
        raise


def _named(fitted: Iterator[Any], names: Sequence[str]) -> Iterator[Any]:
    """The same; an error without a note gets one with the names of the jobs that may have raised it.

    Errors lose their notes on their way from another process.
    """
    try:
        yield from fitted
    except Exception as error:
        own = str(error).startswith(tuple(f"{name}: " for name in names))
        if not own and not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
            error.add_note(f"{NOTE} {names[0]}" if len(names) == 1 else f"{NOTE} one of {', '.join(names)}")
        raise
