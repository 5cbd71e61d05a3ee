"""Students of students: born-again networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ensdistill.cache import TargetCache
from ensdistill.common.random import derive_seed
from ensdistill.common.scalars import whole
from ensdistill.data import Rows
from ensdistill.student.online import OnlineTeachers
from ensdistill.student.sources import TargetSource
from ensdistill.student.trainer import StudentTrainer, Trained
from ensdistill.teachers.ensemble import Ensemble


def seed_of(generation: int, seed: int) -> int:
    """The seed of a generation, 1, 2, ...: that of the training for the first."""
    return seed if generation == 1 else derive_seed("generation", generation, seed)


def born_again(
    trainer: StudentTrainer,
    factory: Callable[[], nn.Module],
    rows: Rows,
    cache: TargetCache | TargetSource,
    *,
    generations: int = 3,
    seed: int = 0,
    **options: Any,
) -> tuple[Trained, ...]:
    """Train a student from the targets, then each further one from the one before it.

    Parameters
    ----------
    trainer : StudentTrainer
        Its loss is that of all generations. With alpha below 1, or ``labels`` in its method, the labels have
        their share in each, as in the paper.
    factory, rows, cache
        See :meth:`StudentTrainer.distill`; ``cache`` holds the targets of the first generation.
    generations : int
        At least 1, which is :meth:`StudentTrainer.distill` alone.
    seed : int
        Of the first generation; those of the next are derived from it (:func:`seed_of`).
    **options
        Of ``distill``, but for checkpoints, which would be of several trainings.

    Returns
    -------
    tuple of Trained
        One of each generation. ``Ensemble.from_members([one.member(f"generation-{g}") for g, one in ...])``
        is the paper's born-again ensemble.

    Raises
    ------
    ValueError
        A number of generations below 1, or a checkpoint.

    References
    ----------
    Furlanello et al., "Born Again Neural Networks", ICML 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from ensdistill import Ensemble, Optimization
    >>> x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    >>> rows = Rows(x, np.arange(40), np.full(40, -100))
    >>> teachers = OnlineTeachers(Ensemble.from_members([nn.Linear(4, 3), nn.Linear(4, 3)]))
    >>> trainer = StudentTrainer(Optimization(steps=8, batch_size=10))
    >>> len(born_again(trainer, lambda: nn.Linear(4, 3), rows, teachers, generations=2))
    2
    """
    if not whole(generations) or generations < 1:
        raise ValueError(f"generations: expected at least 1; got {generations!r}")
    if given := [name for name in ("checkpoint", "folder") if options.get(name) is not None]:
        raise ValueError(
            f"{given[0]}: expected none for several trainings; got {options[given[0]]!r}: call distill for "
            "each generation with a folder of its own"
        )
    found: list[Trained] = []
    source: TargetCache | TargetSource = cache
    for generation in range(generations):
        trained = trainer.distill(factory, rows, source, seed=seed_of(generation + 1, seed), **options)
        found.append(trained)
        source = OnlineTeachers(Ensemble.from_members([trained.member(f"generation-{generation}")]))
        options = {name: value for name, value in options.items() if name not in ("member", "augment")}
    return tuple(found)
