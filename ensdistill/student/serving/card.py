"""The parts of a student's model card, in Hugging Face's form, that need no run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from ensdistill.student.serving.base import Predictor

TASKS = {
    "table": "tabular-classification",
    "array": "tabular-classification",
    "images": "image-classification",
    "text": "text-classification",
}
NOUNS = {"classification": "Classes", "multilabel": "Labels", "regression": "Numbers"}
FEW = 12  # classes or columns that are listed


def task_tag(student: Predictor) -> str:
    """Hugging Face's name of the task."""
    task = TASKS.get(student.samples["kind"], "other")
    if student.task == "regression":
        return "tabular-regression" if task == "tabular-classification" else "other"
    return task


def front_matter(about: Mapping[str, Any]) -> str:
    """The card's first block, YAML."""
    return f"---\n{yaml.safe_dump(dict(about), sort_keys=False, allow_unicode=True)}---"


def samples_of(student: Predictor) -> str:
    """The kind of samples that it takes."""
    form = student.samples
    if form["kind"] == "table":
        columns = [f"{name} ({kind})" for name, kind in form["columns"].items()]
        return f"rows of a table with the columns {listed(columns)}"
    shape = f" {form['dtype']} {form['shape']}" if "shape" in form else ""
    return f"{form['kind']}{shape}"


def listed(names: Iterable[Any]) -> str:
    """The first names, and the number of the others."""
    names = list(map(str, names))
    return ", ".join(names[:FEW]) + f" and {len(names) - FEW} more" * (len(names) > FEW)


def program(student: Predictor, loading: str) -> str:
    """Python that predicts with the student, which ``loading`` makes."""
    new = {"table": "frame", "images": "images", "text": "texts"}.get(student.samples["kind"], "array")
    predict = f"labels, probabilities = student.predict({new}), student.predict_proba({new})"
    if student.task == "regression":
        predict = f"numbers = student.predict({new})  # [N, {len(student.classes)}]"
    return f"```python\n{loading}\n{predict}\n```"


def short_card(student: Predictor, name: str) -> str:
    """The card of a student by itself; a run's export writes one with figures."""
    about = {
        "library_name": "ensdistill",
        "pipeline_tag": task_tag(student),
        "tags": ["ensdistill", "knowledge-distillation", "safetensors"],
    }
    lines = [
        "A small model that was distilled from an ensemble: it was trained to answer as the ensemble does.",
        "",
        f"- Samples: {samples_of(student)}",
        f"- {NOUNS[student.task]} ({len(student.classes)}): {listed(student.classes)}",
        f"- Parameters: {student.parameters:,}",
    ]
    loading = f'from ensdistill import Student\n\nstudent = Student.from_pretrained("{name}")'
    parts = [front_matter(about), f"# {name.rpartition('/')[2]}", "\n".join(lines), program(student, loading)]
    return "\n\n".join(parts) + "\n"
