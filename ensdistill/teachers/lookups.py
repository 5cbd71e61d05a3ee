"""Members that look rows up: on rows that they were fitted to, they answer with these rows' own labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensdistill.teachers.members import Member, SklearnMember, inner

# Names of classes, because the libraries of in-context models need not be installed.
NAMES = (
    "KNeighbors",
    "RadiusNeighbors",
    "GaussianProcess",
    "TabPFN",
    "TabICL",
    "TabDPT",
)
_WITHIN = ("best_estimator_", "estimator_", "final_estimator_", "estimator")


def looks_up(member: Member) -> bool:
    """Whether a member looks up the rows that it was fitted to: neighbours, Gaussian processes, in-context
    models such as TabPFN; also at the end of a pipeline, and in ensembles of scikit-learn.

    Its targets of labelled rows tell little but the labels, so they should be those of members that were
    fitted to other rows (out of fold).

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from ensdistill.teachers.members import as_member
    >>> looks_up(as_member(KNeighborsClassifier(1).fit(np.eye(3), [0, 1, 2])))
    True
    """
    own = inner(member)
    return isinstance(own, SklearnMember) and any(
        cls.__name__.startswith(NAMES) for part in _parts(own.estimator) for cls in type(part).__mro__
    )


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator, and those within that decide its answer."""
    yield estimator
    within = [getattr(estimator, name, None) for name in _WITHIN]
    within += [step for _, step in getattr(estimator, "steps", ())[-1:]]
    listed = getattr(estimator, "estimators_", ())
    within += listed if isinstance(listed, list) else []
    within += getattr(estimator, "calibrated_classifiers_", [])
    for part in within:
        if part is not None and not isinstance(part, str):
            yield from _parts(part)
