"""The ensemble of a job's cache: members with stored predictions, and the targets of labelled rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ensdistill.data import Split
from ensdistill.job.config import CacheConfig
from ensdistill.job.predictions import HeldOut
from ensdistill.teachers import Ensemble
from ensdistill.teachers.existing import ExistingMembers
from ensdistill.teachers.labelled_targets import LabelledTargets
from ensdistill.teachers.lookups import looks_up
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


def labelled_targets(
    ensemble: Ensemble, settings: CacheConfig, held_out: Path, member: str | None = None
) -> Ensemble | LabelledTargets:
    """The ensemble without members of weight 0, or its one ``member``, with the targets that the settings
    choose for labelled rows.

    Parameters
    ----------
    ensemble : Ensemble
    settings : CacheConfig
    held_out : path
        The file of held-out predictions and labels that the teachers' stage wrote.
    member : str, optional
    """
    one = ensemble.weighted() if member is None else ensemble.only(member)
    if settings.labelled == "in_sample":
        return one
    stored = HeldOut.read(held_out)
    uids = np.arange(len(stored.labels))  # the labelled rows are the first of the transfer set
    if settings.labelled == "out_of_fold":
        own = stored.of_members(np.isin(ensemble.names, one.names))
        return LabelledTargets(one, uids, held_out=own)
    return LabelledTargets(one, uids, labels=stored.labels, share=settings.label_share)


def warn_of_look_ups(ensemble: Ensemble, settings: CacheConfig) -> None:
    """Warn of members that look rows up where they give targets for rows that they hold themselves."""
    names = [member.name for member in ensemble.members if looks_up(member)]
    if names and settings.labelled == "in_sample":
        warnings.warn(
            f"cache.labelled: {', '.join(names)} look rows up among those that they were fitted to, so their "
            "answers for labelled rows are the labels themselves; choose out_of_fold",
            stacklevel=2,
        )


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
