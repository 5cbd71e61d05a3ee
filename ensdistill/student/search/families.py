"""Families of students: kinds of models, from whose sizes a search chooses. Your own have an import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from ensdistill.common.tasks import Task

FAMILIES = {
    "mlp": "ensdistill.student.search.networks.Mlp",
    "embeddings": "ensdistill.student.search.networks.Embeddings",
    "cnn": "ensdistill.student.search.networks.Cnn",
    "ngrams": "ensdistill.student.search.networks.Ngrams",
    "transformer": "ensdistill.student.search.networks.Transformer",
    "boosted": "ensdistill.student.search.boosted.Boosted",
}


@dataclass(frozen=True)
class About:
    """The data that students are chosen for.

    Parameters
    ----------
    kind : str
        Of the samples: ``array``, ``table``, ``images``, ``text``, ...
    shape : tuple of int
        Of one sample of an array; empty for others.
    rows, labelled, classes : int
        Rows to learn from, and those with a label among them; classes, labels, or numbers of a row.
    gaps : bool
        Whether an array holds NaN.
    task : {"classification", "multilabel", "regression"}
    dtype : str
        Of an array.
    """

    kind: str
    shape: tuple[int, ...]
    rows: int
    labelled: int
    classes: int
    gaps: bool = False
    task: Task = "classification"
    dtype: str = ""

    @property
    def image(self) -> bool:
        """Whether a sample is an image: an array of channels, height and width, or a picture."""
        return self.kind == "images" or len(self.shape) == 3


@dataclass(frozen=True)
class Candidate:
    """One architecture: a model of one size.

    Parameters
    ----------
    family : str
    name : str
        Unique in its family, such as ``64-64``.
    model : callable, optional
        A module class, or ``functools.partial`` of one with plain arguments. ``inputs``, ``outputs``,
        ``image``, ``buckets``, ... are completed from the data. Its ``dropout`` is that of a student's first
        trial.
    estimator : mapping, optional
        In place of a model: ``class_path`` and ``init_args`` of a booster.
    preprocess : dict, str or None
        The setting as it stands in YAML: ``auto``, None, or ``class_path`` with ``init_args``.
    rate, decay : float
        The learning rate and the weight decay that a search starts with.
    seconds : float
        About how long a fit takes, where its steps do not decide: a search of too few minutes leaves the
        candidate out.
    """

    family: str
    name: str
    model: Callable[..., nn.Module] | None = None
    estimator: Mapping[str, Any] | None = None
    preprocess: Any = "auto"
    rate: float = 0.01
    decay: float = 0.01
    seconds: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"


@runtime_checkable
class Family(Protocol):
    """A kind of models.

    Attributes
    ----------
    name : str
    """

    name: str

    def refuses(self, about: About) -> str:
        """Why the family has no model for these samples; empty where it has."""
        ...

    def candidates(self, about: About) -> Sequence[Candidate]:
        """The architectures, from the smallest to the largest. The search counts their parameters and leaves
        out those beyond the budget."""
        ...


def families_for(names: Sequence[Any], about: About) -> list[Family]:
    """The families by name or import path; all of ours that fit the samples where none is named.

    Raises
    ------
    ValueError
        There is no such family, or a named one does not fit the samples, or none does.
    """
    if names:
        made = [import_family(name) for name in names]
        for one in made:
            if reason := one.refuses(about):
                raise ValueError(f"families: {one.name!r} does not fit these samples: {reason}")
        return made
    found = [one for name in FAMILIES if not (one := import_family(name)).refuses(about)]
    if not found:
        raise ValueError(
            f"families: expected samples that a family takes; got samples of kind {about.kind!r}: name a "
            "family of your own by its import path"
        )
    return found


def import_family(given: Any) -> Family:
    """The family of a name, of an import path, or as it is.

    Raises
    ------
    ValueError
        There is none, or it has no ``name``, ``refuses`` and ``candidates``.
    """
    if isinstance(given, str):
        path = FAMILIES.get(given, given)
        module, _, name = path.rpartition(".")
        try:
            given = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"families: expected one of {', '.join(FAMILIES)}, or the import path of a family; got "
                f"{given!r} ({error})"
            ) from error
    made = given() if isinstance(given, type) else given
    if not isinstance(made, Family):
        raise ValueError(
            "families: expected an object with name, refuses(about) and candidates(about); got "
            f"{type(made).__name__}"
        )
    return made
