"""The plan of ``teachers: auto`` in a run's folder: ``teachers.yaml``, written before the first member is
trained, by which a resumed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ensdistill.common.as_settings import group_settings
from ensdistill.common.files import write_bytes
from ensdistill.data import Split
from ensdistill.data.tasks import has_gaps
from ensdistill.job.config import TeachersConfig
from ensdistill.teachers.auto import MINUTES, Plan, auto_plan, facts_of

HEAD = """\
# The members that `teachers: auto` chose, by a rule of cost for one core: the same on every machine that has
# the same packages. Runs in this folder go by this file; without it the members are chosen anew.
# `settings` are the same members for a settings file of your own, under `teachers:`.
"""
SHORT = ("ensdistill.teachers.recipes", "ensdistill.models", "ensdistill.data.preprocess")


def plan_of(settings: TeachersConfig, split: Split, file: Path) -> Plan:
    """The plan in ``file`` where it is for these rows, this budget and these folds; else a new one.

    Parameters
    ----------
    settings : TeachersConfig
        With ``members: auto``.
    split : Split
        Of the first seed: all seeds have the same members.
    file : path

    Raises
    ------
    ValueError
        Samples of another kind, a budget that is too small for one member, or a file that is no plan.
    """
    minutes, folds = settings.minutes or MINUTES, settings.folds
    samples, classes = split.labelled.inputs, len(split.classes)
    kind: dict[str, Any] = {"task": split.task, "gaps": has_gaps(split.labelled.labels)}
    if file.is_file():
        kept = _read(file)
        facts = facts_of(samples, classes, **kind)
        if (kept.facts, kept.minutes, kept.folds) == (facts, float(minutes), folds):
            return kept
    try:
        return auto_plan(samples, classes, minutes=minutes, folds=folds, **kind)
    except ValueError as error:
        text = str(error)
        where = "" if text.startswith("teachers") else "teachers."
        raise type(error)(f"{where}{text}") from error


def write_plan(plan: Plan, settings: TeachersConfig, file: Path) -> None:
    """Write the plan, and its members as settings of a job."""
    made = group_settings(settings.planned(plan), SHORT)
    content: dict[str, Any] = {**plan.plain(), "settings": made}
    text = HEAD + yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)
    if not file.is_file() or file.read_text() != text:
        write_bytes(file, text.encode())


def _read(file: Path) -> Plan:
    try:
        return Plan.of(yaml.safe_load(file.read_text()))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"teachers: auto: {file} is no plan that this version can read ({error}): delete it, and the "
            "members are chosen anew"
        ) from error
