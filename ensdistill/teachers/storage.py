"""An ensemble as a folder: ``members/<name>/`` and, written last, ``ensemble.json``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ensdistill.common.files import read_json, write_json
from ensdistill.common.tasks import check_task
from ensdistill.teachers.members import Member, load_member
from ensdistill.teachers.members.base import warned_already
from ensdistill.teachers.members.needs import check_needs
from ensdistill.teachers.validation import plain_name

if TYPE_CHECKING:
    from ensdistill.teachers.base import BaseEnsemble

FORMAT = 1


def save(ensemble: BaseEnsemble, folder: Path | str) -> None:
    """See :meth:`ensdistill.teachers.Ensemble.save`."""
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for member in ensemble.members:
            member.save(part / plain_name(member.name, folder))
        # From here on nothing can be refused any more. Without its ensemble.json a folder that is cut short
        # is known as such.
        (folder / "ensemble.json").unlink(missing_ok=True)
        (folder / "members").mkdir(parents=True, exist_ok=True)
        for old in (folder / "members").iterdir():  # members of an earlier ensemble
            if old.name in ensemble.names or (old / "member.json").is_file():
                shutil.rmtree(old)
        for new in part.iterdir():
            os.replace(new, folder / "members" / new.name)
        write_about(ensemble, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(cls: Any, folder: Path | str, trusted: Sequence[str]) -> Any:
    """See :meth:`ensdistill.teachers.Ensemble.load`; ``cls`` has ``from_members``."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder: there is no folder {str(folder)!r}")
    about = read_json(folder / "ensemble.json")
    if about is None:
        raise ValueError(
            f"folder: {folder} holds no ensemble: there is no ensemble.json, which is written last; save it "
            "again"
        )
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = f"format {about.get('format')!r}" if isinstance(about, dict) else "something else"
        raise ValueError(f"{folder / 'ensemble.json'}: expected an ensemble of format {FORMAT}; got {got}")
    check_needs(folder, about)
    task = check_task(about.get("task", "classification"), f"{folder / 'ensemble.json'}: task")
    try:
        members = [
            load_member(folder / "members" / plain_name(name, folder), trusted)
            for name in dict(about["members"])
        ]
        with warned_already():
            more = {"combiner": about["combiner"]} if task != "regression" else {}
            ensemble = cls.from_members(
                members, weights=about["weights"], classes=about["classes"], task=task, **more
            )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'ensemble.json'}: is none that was saved ({type(error).__name__}: {error})"
        ) from error
    for name, content in _contents(members, folder).items():
        if content != about["members"][name]:
            raise ValueError(
                f"{folder}: the content of {name} is {content!r}; ensemble.json says "
                f"{about['members'][name]!r}"
            )
    _restore(ensemble, about, folder / "ensemble.json")
    return ensemble


def write_about(ensemble: BaseEnsemble, folder: Path) -> None:
    """Write ``ensemble.json``, the last file of a saved ensemble, whose members are there."""
    members = _contents(ensemble.members, folder)
    files = sorted(file for member in members for file in (folder / "members" / member).rglob("member.json"))
    needs = {name: one for file in files for name, one in read_json(file).get("needs", {}).items()}
    about = {"format": FORMAT, "members": members, **ensemble.settings()}
    # Loading elsewhere needs these packages; the versions are those here.
    write_json(folder / "ensemble.json", {**about, "needs": dict(sorted(needs.items()))})


def _contents(members: Sequence[Member], folder: Path) -> dict[str, Any]:
    """By name, the digests of saved members' content, as written beside them: reading a forest again would
    take seconds."""
    return {
        member.name: read_json(folder / "members" / member.name / "member.json")["fingerprint"]
        for member in members
    }


def _restore(ensemble: Any, about: dict[str, Any], file: Path) -> None:
    """Restore the fitted numbers to the last bit: normalising weights again could change them."""
    count = len(ensemble)

    def numbers(key: str, ranks: int, condition: str, fits: Callable[[np.ndarray], Any]) -> np.ndarray:
        try:
            value = np.array(about.get(key), np.float64)
        except (TypeError, ValueError):
            value = np.array(np.nan)
        if value.ndim != ranks or not np.isfinite(value).all() or not fits(value):
            raise ValueError(f"{file}: {key}: expected {condition}; got {about.get(key)!r}")
        return value

    ensemble.weights = numbers(
        "weights",
        1,
        f"{count} numbers of at least 0 and of sum 1",
        lambda w: len(w) == count and (w >= 0).all() and abs(w.sum() - 1) < 1e-9,
    )
    if ensemble.task == "regression":
        width = "D" if ensemble.classes is None else len(ensemble.classes)
        ensemble.variance_factor = float(numbers("variance_factor", 0, "a positive number", lambda f: f > 0))
        if about.get("noise") is not None:
            ensemble.noise = numbers(
                "noise",
                1,
                f"{width} numbers of at least 0",
                lambda v: (v >= 0).all() and width in ("D", len(v)),
            )
        if about.get("interval") is not None:
            about = dict(about["interval"])
            level = float(numbers("level", 0, "a number in (0, 1)", lambda p: 0 < p < 1))
            half = numbers(
                "deviations",
                1,
                f"{width} numbers of at least 0",
                lambda v: (v >= 0).all() and width in ("D", len(v)),
            )
            ensemble.interval = level, half
        return
    ensemble.temperatures = numbers(
        "temperatures", 1, f"{count} positive numbers", lambda t: len(t) == count and (t > 0).all()
    )
    ensemble.temperature = float(numbers("temperature", 0, "a positive number", lambda t: t > 0))
    if about.get("vectors") is not None:
        classes = "C" if ensemble.classes is None else len(ensemble.classes)
        ensemble.vectors = numbers(
            "vectors",
            3,
            f"numbers [2, {count}, {classes}]",
            lambda v: v.shape[:2] == (2, count) and classes in ("C", v.shape[2]),
        )
