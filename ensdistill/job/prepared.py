"""A student of a job with the preprocess that was fitted for it, and the model that takes its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ensdistill.common.completion import completed
from ensdistill.common.random import derive_seed
from ensdistill.data import Split
from ensdistill.data.preprocess import Preprocess, fitted
from ensdistill.data.samples import joined
from ensdistill.job.student_config import StudentConfig


@dataclass(frozen=True)
class PreparedStudent:
    """A student's factory and preprocess.

    Parameters
    ----------
    factory : callable
        Makes the module; its sizes are those of the preprocessed samples.
    preprocess : Preprocess or None
    """

    factory: Callable[[], nn.Module]
    preprocess: Preprocess | None


def prepare_student(student: StudentConfig, split: Split, seed: int) -> PreparedStudent:
    """Fit a student's preprocess to the labelled rows and the pool, and complete its model.

    No label has a part in it, and no test row.
    """
    return prepare(student.network, student.preprocess, split, seed, variance=student.variance)


def prepare(
    model: Callable[[], nn.Module], setting: Any, split: Split, seed: int, *, variance: bool = False
) -> PreparedStudent:
    """The same for the model and the setting of its preprocess; ``variance`` is that of the student."""
    samples = joined([split.labelled.inputs, split.pool.inputs]) if len(split.pool) else split.labelled.inputs
    preprocess = fitted(setting, samples, seed=derive_seed("preprocess", seed))
    example = samples[:2] if preprocess is None else preprocess(samples[:2])
    outputs = len(split.classes) * (1 + variance)
    return PreparedStudent(completed(model, example, outputs, preprocess), preprocess)
