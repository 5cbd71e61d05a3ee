"""Members with stored predictions in a job: these are of the data's own rows, and of no other ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensdistill.data import Split
from ensdistill.job.config import CacheConfig
from ensdistill.teachers import Ensemble
from ensdistill.teachers.existing import ExistingMembers
from ensdistill.teachers.members import ArrayMember


def of_transfer(ensemble: Ensemble, split: Split, settings: CacheConfig) -> Ensemble:
    """The ensemble for the rows of the transfer set, whose uids are 0, 1, ...; stored predictions have the
    data's uids.

    Raises
    ------
    ValueError
        A member has none for a row, or the transfer set has synthetic or augmented rows.
    """
    asked = ensemble.for_uids(_transferred(split, settings))
    if asked is not ensemble:
        stored = [m.name for m, other in zip(ensemble.members, asked.members, strict=True) if m is not other]
        _check_transfer(", ".join(stored), settings)
    return asked


def check_stored(recipe: ExistingMembers, splits: Sequence[Split], settings: CacheConfig) -> None:
    """Raise ValueError where a member with stored predictions has none for a row of the job."""
    for member in recipe.load(splits[0].classes):
        if not isinstance(member, ArrayMember) or member.inputs is not None:
            continue
        _check_transfer(member.name, settings)
        for split in splits:
            uids = np.concatenate([_transferred(split, settings), split.test.uids])
            member.for_uids(uids, uids)


def _transferred(split: Split, settings: CacheConfig) -> np.ndarray:
    return (
        np.concatenate([split.labelled.uids, split.pool.uids])
        if settings.transfer.pool
        else split.labelled.uids
    )


def _check_transfer(name: str, settings: CacheConfig) -> None:
    if settings.transfer.synthetic:
        kinds = ", ".join(type(source).__name__ for source in settings.transfer.synthetic)
        raise ValueError(
            f"cache.transfer.synthetic: expected none, because {name} has stored predictions, and none for "
            f"synthetic rows; got {kinds}"
        )
    if settings.augment is not None:
        raise ValueError(
            f"cache.augment: expected none, because {name} has stored predictions, and none for augmented "
            f"rows; got {settings.augment!r}"
        )
