"""The findings in a user's data, and the settings of a job that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ensdistill.job.kinds_of_labels import Labels

TEST = 0.25  # share of the labelled rows for the report alone, as in `Partition`
LEAST = 3  # rows of a class: two to learn from, one to test on
SHOWN = 5  # classes, columns or files that a sentence names


@dataclass(frozen=True)
class Found:
    """Data that were looked at.

    Parameters
    ----------
    path : Path
        The file or folder.
    data : dict
        ``class_path`` and ``init_args`` of the data set.
    samples : samples of any kind
        Some of them; default models are chosen by their kind.
    classes : dict of str to int
        Labelled rows of each class; of several labels those to which each applies, of numbers all.
    unlabelled : int
        Rows without a label.
    test : int, optional
        Test rows, where a file of their own holds them.
    facts : list of (str, str)
        A word and a sentence each, for people, about the data.
    members : list of dict
        Settings of members that exist already.
    settings : dict
        Other settings that the data call for.
    labels : Labels
        The task, and the number of labels or numbers.
    known : int, optional
        Labelled rows of another task than classification.
    """

    path: Path
    data: dict[str, Any]
    samples: Any
    classes: Mapping[str, int]
    unlabelled: int = 0
    test: int | None = None
    facts: Sequence[tuple[str, str]] = ()
    members: Sequence[dict[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    known: int | None = None

    @property
    def total(self) -> int:
        """Rows with a label, without those of a test file of their own."""
        return sum(self.classes.values()) if self.known is None else self.known

    @property
    def name(self) -> str:
        """Of the run: that of the file or folder."""
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    @property
    def labelled(self) -> int:
        """Rows whose labels may be used."""
        total = self.total
        return total if self.test is not None else total - round(TEST * total)

    @property
    def rarest(self) -> int:
        """Rows of the rarest class among these; of other tasks all of these."""
        if self.known is not None:
            return self.labelled
        least = min(self.classes.values())
        return least if self.test is not None else least - max(1, -int(-TEST * least // 1))

    def lines(self) -> list[tuple[str, str]]:
        """The facts, with the sizes of the parts."""
        test = self.test if self.test is not None else self.total - self.labelled
        rows = f"{self.labelled} to learn from, {test} for testing"
        separator = self.data.get("init_args", {}).get("separator")
        if self.unlabelled and separator is not None:
            rows += f", {self.unlabelled} without tags, which are unknown (the pool)"
            rows += f"; {separator!r} alone states that none applies"
        elif self.unlabelled:
            rows += f", {self.unlabelled} without a label (the pool)"
        word = {"multilabel": "labels", "regression": "numbers"}.get(self.labels.task, "classes")
        return [(word, named_classes(self.classes)), *self.facts, ("rows", rows)]


def settings_of(found: Found, short: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The settings of a job on these data, as a YAML file would hold them, and in words.

    Parameters
    ----------
    found : Found
    short : tuple of str
        Modules whose classes are named without their module.
    """
    from ensdistill.common.as_settings import group_settings
    from ensdistill.job.defaults import defaults

    labels = replace(found.labels, rarest=found.rarest)
    made = defaults(found.samples, found.labelled, found.unlabelled, labels)
    most = max(2, found.rarest)  # folds that hold every class
    teachers = group_settings(replace(made.teachers, folds=min(made.teachers.folds, most)), short)
    students = {name: replace(s, description=_in_words(s)) for name, s in made.distill.students.items()}
    own = replace(made.distill, folds=min(made.distill.folds, most), students=students)
    cache = group_settings(made.cache, short)
    recipes = [
        recipe.name if recipe.count == 1 else f"{recipe.count} {recipe.name}"
        for recipe in made.teachers.recipes
    ]
    words = [] if found.members else [("teachers", ", ".join(recipes))]
    words.append(("students", "; ".join(map(_in_words, made.distill.students.values()))))
    settings = {
        "name": found.name,
        "data": found.data,
        "teachers": teachers | ({"members": list(found.members)} if found.members else {}),
        **({"cache": cache} if cache else {}),
        "distill": group_settings(own, short),
        **found.settings,
    }
    return settings, words


def _in_words(student: Any) -> str:
    """``MLP 128-128``: the class, and those of its arguments that are sizes."""
    model = student.model
    keywords = getattr(model, "keywords", {})
    sizes = [
        "-".join(map(str, value)) if isinstance(value, list) else f"{name} {value}"
        for name, value in keywords.items()
        if isinstance(value, (list, int)) and not isinstance(value, bool)
    ]
    return " ".join([getattr(model, "func", model).__name__, *sizes])


def check_classes(classes: Mapping[str, int], where: str) -> None:
    """Raise ValueError for classes of too few rows to be learned and judged."""
    rare = {name: count for name, count in classes.items() if count < LEAST}
    if len(rare) > max(SHOWN, len(classes) // 4):
        raise ValueError(
            f"{where}: expected classes, of at least {LEAST} rows each; got {len(classes)} different values "
            f"in {sum(classes.values())} rows, as names and ids have, {len(rare)} of them in fewer than "
            f"{LEAST} rows: choose another target, or join the rare ones to one class"
        )
    if rare:
        raise ValueError(
            f"{where}: expected at least {LEAST} rows of each class, two to learn from and one to test on; "
            f"got {named_classes(rare)}: leave these rows out, or join the classes to others"
        )


def named_classes(classes: Mapping[str, int]) -> str:
    """Classes with their rows: ``2: ham (4825), spam (747)``."""
    shown = [f"{name} ({count})" for name, count in list(classes.items())[:SHOWN]]
    return f"{len(classes)}: {', '.join(shown)}{', ...' * (len(classes) > SHOWN)}"


def listed(names: Sequence[Any]) -> str:
    """The first few of some names."""
    return f"{', '.join(str(name) for name in names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"
