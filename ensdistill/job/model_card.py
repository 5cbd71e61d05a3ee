"""A model card in Hugging Face's form: YAML, then the model, its figures and its making."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ensdistill
from ensdistill.job.config import Config
from ensdistill.report.measures import METRICS as METRICS_OF
from ensdistill.student.serving import Student
from ensdistill.student.serving.card import NOUNS, front_matter, listed, program, samples_of, task_tag

if TYPE_CHECKING:
    from ensdistill.job.exporting import ExportResult, Wish

OUTPUTS = {
    "classification": 'label, probabilities = session.run(["label", "probabilities"], feed)',
    "multilabel": 'labels, probabilities = session.run(["labels", "probabilities"], feed)',
    "regression": 'mean = session.run(["mean"], feed)[0]',
}
METRICS: dict[str, tuple[tuple[str, str, int, str], ...]] = {
    "classification": (
        ("accuracy", "accuracy", 100, " %"),
        ("nll", "NLL", 1, ""),
        ("brier", "Brier score", 1, ""),
    ),
    "multilabel": (("map", "mAP", 100, " %"), ("bce", "BCE", 1, "")),
    "regression": (("rmse", "RMSE, sd", 1, ""),),
}


def model_card(
    student: Student, result: ExportResult, report: Any, config: Config, path: Path, wish: Wish
) -> str:
    """Markdown.

    Parameters
    ----------
    student : Student
    result : ExportResult
    report : dict or None
        The content of report.json; without it the card has the figures of the test rows alone.
    config : Config
    path : path
        The exported file or folder.
    wish : Wish
    """
    name = str(student.about.get("student"))
    block = report["students"].get(name) if isinstance(report, dict) else None
    parts = [
        _front(student, result, wish),
        f"# {config.name}: {name}",
        _about(student, config, wish),
        "## Use",
        _use(student, path, wish),
        "## Figures",
        _variants(result),
    ]
    if block is not None:
        parts += [_compared(report, block), block["verdict"]]
    parts += ["## How it was made", _made(student, config, report, wish)]
    return "\n\n".join(parts) + "\n"


def _front(student: Student, result: ExportResult, wish: Wish) -> str:
    task = task_tag(student)
    exported = result.variants[1]
    metrics = [{"type": name, "value": round(value, 6)} for name, value in exported.figures.items()]
    data = {"name": str(student.about.get("run")), "type": "private"}
    about = {
        "license": wish.license or "unknown",
        "library_name": {"onnx": "onnxruntime", "torch": "torch", "safetensors": "ensdistill"}[wish.to],
        "pipeline_tag": task,
        "tags": ["ensdistill", "knowledge-distillation", wish.to],
        "model-index": [
            {
                "name": f"{student.about.get('run')}-{student.about.get('student')}",
                "results": [{"task": {"type": task}, "dataset": data, "metrics": metrics}],
            }
        ],
    }
    return front_matter(about)


def _about(student: Student, config: Config, wish: Wish) -> str:
    rows = student.about.get("rows", {})
    members = student.about.get("members") or [one.name for one in config.teachers.recipes]
    lines = [
        "A small model that was distilled from an ensemble: it was trained to answer as the ensemble does.",
        "",
        f"- Data: {type(config.data).__name__}, {rows.get('labelled')} labelled rows, {rows.get('pool')} "
        f"without a label, {rows.get('test')} for testing",
        f"- Samples: {samples_of(student)}",
        f"- {NOUNS[student.task]} ({len(student.classes)}): {listed(student.classes)}",
        f"- Ensemble ({len(members)} members): {listed(members)}",
        f"- Parameters: {student.parameters:,}",
        f"- Licence: {wish.license or 'unknown; that of the data decides'}",
    ]
    return "\n".join(lines)


def _use(student: Student, path: Path, wish: Wish) -> str:
    trust = ', trusted=["torch.export.load"]' if wish.to == "torch" else ""
    loading = f'from ensdistill import load_student\n\nstudent = load_student("{path.name}"{trust})'
    text = program(student, loading)
    if wish.to != "onnx":
        return text
    feeds = {"table": _COLUMNS, "array": ["feed = {'inputs': array}"], "images": _IMAGES, "text": _TEXTS}
    alone = [
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{path.name}")',
        *feeds.get(
            student.samples["kind"], ["feed = {one.name: fields[one.name] for one in session.get_inputs()}"]
        ),
        OUTPUTS[student.task],
    ]
    without = f"With onnxruntime alone:\n\n```python\n{chr(10).join(alone)}\n```"
    return "\n\n".join([without, *_label_note(student), "Or:", text])


def _label_note(student: Student) -> list[str]:
    """Where the graph's labels are of another type than the data's."""
    if student.task != "classification":
        return []
    if all(isinstance(label, bool) for label in student.labels):
        return ["`label` is an integer: 1 stands for True, 0 for False; `load_student` returns booleans."]
    if any(isinstance(label, float) for label in student.labels):
        shown = "an integer" if all(float(label).is_integer() for label in student.labels) else "a text"
        return [
            f"`label` is {shown} for each number; `load_student` returns the numbers as the data had them."
        ]
    return []


_COLUMNS = [
    "feed = {}  # frame: a pandas frame; docs/export.md shows the same with Python's csv",
    "for one in session.get_inputs():  # a gap is NaN, or an empty text",
    "    column = frame[[one.name]].astype(object)",
    "    texts = one.type == 'tensor(string)'",
    "    feed[one.name] = column.fillna('').to_numpy(object) if texts else column.to_numpy('float64')",
]
_IMAGES = ["feed = {'images': images}  # uint8 [N, height, width, channels]"]
_TEXTS = ["feed = {one.name: ids[one.name] for one in session.get_inputs()}  # int64 token ids [N, length]"]


def _variants(result: ExportResult) -> str:
    shown = [METRICS_OF[name] for name in result.variants[0].figures]
    lines = [
        f"On the {result.rows} test rows (latency in ms: {result.runtime}; trained: in torch, with "
        "its preprocessing):",
        "",
        f"| | bytes | {' | '.join(one.heading for one in shown)} | largest difference | 1 row, p50 | "
        "256 rows, p50 |",
        "|---|---:|" + "---:|" * (len(shown) + 3),
    ]
    for one in result.variants:
        speed = [f"{one.latency_ms[size]['p50']:.3f}" for size in ("batch_1", "batch_256")]
        figures = [
            f"{100 * value:.2f}" if METRICS_OF[name].percent else f"{value:.4f}"
            for name, value in one.figures.items()
        ]
        lines.append(
            f"| {one.name} | {one.bytes:,} | {' | '.join(figures)} | "
            f"{one.largest_difference:.1e} | {' | '.join(speed)} |"
        )
    return "\n".join(lines)


def _compared(report: Any, block: Any) -> str:
    """The student, the ensemble and the strongest alternative, with the gains' intervals."""
    models = {"student": block["models"]["student"], "ensemble": report["models"]["ensemble"]}
    models |= {"direct (same model, hard labels)": block["models"]["direct"]}
    seeds, rows = len(report["seeds"]), report["dataset"]["test"]
    known = METRICS[report.get("task", "classification")]
    lines = [
        f"Means over {seeds} {'seed' if seeds == 1 else 'seeds'}; brackets are 95 % bootstrap intervals over "
        f"{'seeds and ' if seeds > 1 else ''}{rows} test rows:",
        "",
        "| | " + " | ".join(title for _, title, *_ in known) + " |",
        "|---|" + "---:|" * len(known),
    ]
    for name, model in models.items():
        values = [f"{factor * model[m]['mean']:.4g}{unit}" for m, _, factor, unit in known]
        lines.append(f"| {name} | {' | '.join(values)} |")
    gains = [_interval(block["gains"]["student"][m], factor) for m, _, factor, _ in known]
    lines.append(f"| student's gain over direct (larger is better) | {' | '.join(gains)} |")
    kept = [_kept(block["retained_gain"][m]) for m, *_ in known]
    lines.append(f"| kept of the ensemble's gain | {' | '.join(kept)} |")
    return "\n".join(lines)


def _kept(retained: Any) -> str:
    """As in the report: a share of a gain that may be none means nothing."""
    return _interval(retained, 100, " %") if retained["meaningful"] else "means nothing"


def _interval(figure: Any, factor: float, unit: str = "") -> str:
    if figure["mean"] is None:
        return "the ensemble has no gain"
    ends = figure["ci95"]
    text = f"{factor * figure['mean']:.3g}{unit}"
    return text if ends is None else f"{text} [{factor * ends[0]:.3g}, {factor * ends[1]:.3g}]"


def _learned_by(student: Student, config: Config) -> str:
    """The loss of a student's training in words."""
    distill = config.distill
    own = distill.students.get(str(student.about.get("student")))
    method, loss = distill.method, distill.loss
    if own is not None and (own.method is not None or own.loss is not None):
        method, loss = own.method, own.loss or loss
    if method is not None:
        return f"method {method}"
    return f"temperature {loss.temperature:g}, alpha {loss.alpha:g}"


def _made(student: Student, config: Config, report: Any, wish: Wish) -> str:
    lines = [
        f"- ensdistill {ensdistill.__version__}, run {config.name!r}, seed {student.about.get('seed')}",
        f"- Loss: {_learned_by(student, config)}; the exported logits are divided by "
        f"{student.temperature:.4g}"
        + (" (calibrated to the ensemble on rows without labels)" if student.temperature != 1 else ""),
    ]
    if isinstance(report, dict):
        seconds, machine = report["timings_s"], report["environment"]
        stages = ", ".join(f"{stage} {spent:.0f}" for stage, spent in seconds.items())
        lines.append(
            f"- Cost: {sum(seconds.values()):.0f} s of work ({stages}), all seeds, on {machine['cpu']} with "
            f"{machine['cores']} cores"
        )
    lines.append("- All settings are in the run's run.yaml.")
    return "\n".join(lines)
