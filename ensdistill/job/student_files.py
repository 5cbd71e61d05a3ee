"""``student.json`` beside each trained model of a run, by which the folder can be served as it is."""

from __future__ import annotations

from typing import Any

from ensdistill.common.files import write_json
from ensdistill.data.samples import form
from ensdistill.job.config import Config
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.thresholds import thresholds_of
from ensdistill.job.unit import Unit
from ensdistill.student.serving.student import FILE, Described, description

KINDS = {
    "direct": ("direct", "direct_label_smoothing"),
    "distill": ("student", "distilled_from_best_member"),
}
ROLES = ("target", "id", "weight")
READING = (
    "missing",
    "mode",
    "file",
    "text",
    "columns",
    "inputs_name",
)  # settings of a data set that decide how its files are read


def describe_students(run: RunFolder, unit: Unit, *, again: bool = True) -> None:
    """Write ``student.json`` for the models that a unit of the stage ``direct`` or ``distill`` has trained.

    Of several labels they have tuned thresholds. ``again``: one that is there is written anew; a finished
    unit keeps its own, whose size its record holds.
    """
    lacking = tuple(
        kind
        for kind in KINDS.get(unit.stage, ())
        if (run.of(unit) / kind / "member.json").is_file()
        and (again or not (run.of(unit) / kind / FILE).is_file())
    )
    thresholds = thresholds_of(run, unit, lacking) if lacking else {}
    for kind in lacking:
        split = run.config.split(unit.seed)
        rows = {"labelled": len(split.labelled), "pool": len(split.pool), "test": len(split.test)}
        about = {
            "run": run.config.name,
            "student": unit.student,
            "seed": unit.seed,
            "kind": kind,
            "data": reading_of(run.config),
            "rows": rows,
        }
        samples = form(split.labelled.inputs)
        described = Described(
            split.classes,
            split.labels,
            samples,
            about=about,
            task=split.task,
            thresholds=thresholds.get(kind),
        )
        write_json(run.of(unit) / kind / FILE, description(described))


def reading_of(config: Config) -> dict[str, Any]:
    """The settings of a data set by which new files are read as its own were: plain JSON.

    ``roles`` are the columns that are no inputs, by their role.
    """
    data = config.data
    roles = {role: getattr(data, role, None) for role in ROLES}
    if isinstance(roles["target"], list):  # several labels, or numbers
        roles |= {f"target {i}" if i else "target": name for i, name in enumerate(roles["target"])}
    roles |= {name: getattr(getattr(data, "parts", None), name, None) for name in ("group", "time", "column")}
    settings = {name: getattr(data, name) for name in READING if getattr(data, name, None) is not None}
    return {
        "class": type(data).__name__,
        "roles": {role: name for role, name in roles.items() if isinstance(name, str)},
        "ignored": list(getattr(data, "ignore", ())),
        **settings,
    }
