"""The generations of a job's student (born-again networks): each learns from the one before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ensdistill.data.augmentation import Augmentation
from ensdistill.student.generations import seed_of
from ensdistill.student.online import OnlineTeachers
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import load_member

FOLDER = "generations"


def places(folder: Path, kind: str, generations: int) -> list[Path]:
    """The folders of all generations in the stage's, the first one first; the last is the student's own."""
    return [*(folder / FOLDER / kind / f"{g}" for g in range(1, generations)), folder / kind]


def in_turn(
    folder: Path, kind: str, generations: int, seed: int
) -> Iterator[tuple[int, int, Path, Path | None]]:
    """Each generation's number, its seed, its folder and that of its teacher, which is None of the first."""
    before: Path | None = None
    for number, place in enumerate(places(folder, kind, generations), 1):
        yield number, seed_of(number, seed), place, before
        before = place


def taught_by(
    before: Path, trusted: Sequence[str], changes: Augmentation | None, seed: int
) -> OnlineTeachers:
    """A finished generation as the source of the next one's targets.

    It predicts for the same versions of the rows as the cache holds where it has several.
    """
    ensemble = Ensemble.from_members([load_member(before, tuple(trusted))])
    return OnlineTeachers(ensemble, augment=changes, seed=seed)
