"""The student of a finished run as files for other programs, judged on the run's test rows."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.common.files import write_bytes, write_json
from ensdistill.data import Split
from ensdistill.data.samples import whole
from ensdistill.job.contents import report_of
from ensdistill.job.evaluate import latency
from ensdistill.job.exports import FOLDER, figures_file, fingerprint_of
from ensdistill.job.model_card import model_card
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.scaling import calibration_rows
from ensdistill.job.serving import command_for, student_folder
from ensdistill.job.thresholds import Thresholds
from ensdistill.job.unit import Unit
from ensdistill.report.measures import MEASURES
from ensdistill.report.multilabel_metrics import LabelProbabilities
from ensdistill.report.regression_metrics import Forecasts
from ensdistill.student.serving import Student
from ensdistill.teachers import Ensemble

Format = Literal["onnx", "torch", "safetensors"]
FILES = {"onnx": "student.onnx", "torch": "student.pt2", "safetensors": "student"}
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Wish:
    """A student to be exported, and the form of the files.

    Parameters
    ----------
    to : {"onnx", "torch", "safetensors"}
    path : path, optional
        By default ``export/<student>/student.onnx`` (``.pt2``, or the folder ``student``) in the run's.
    student : str, optional
        The first by default.
    seed : int
    int8 : bool
        Also an ONNX file whose weights have eight bits.
    calibrated : bool
        Divide the logits by the temperature that the report fits for "student, temperature scaled"; of a
        regression the same for its variance. Several labels have the report's thresholds in any case.
    license : str, optional
        Of the model, for its card; unknown by default.
    """

    to: Format
    path: Path | None = None
    student: str | None = None
    seed: int = 0
    int8: bool = False
    calibrated: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        if self.to not in FILES:
            raise ValueError(f"to: expected one of {', '.join(FILES)}; got {self.to!r}")
        if self.int8 and self.to != "onnx":
            raise ValueError(f"int8: expected to='onnx', whose runtime has such weights; got {self.to!r}")
        suffix = SUFFIXES.get(self.to)
        if self.path is not None and suffix is not None and self.path.suffix != suffix:
            raise ValueError(f"path: expected a file that ends in {suffix}; got {str(self.path)!r}")


@dataclass(frozen=True)
class Variant:
    """One file, or the trained student itself, on the test rows."""

    name: str
    bytes: int
    figures: dict[str, float]
    latency_ms: dict[str, Any]
    largest_difference: float

    def plain(self) -> dict[str, Any]:
        """As JSON, with its figures by their names: ``accuracy`` and ``nll``, ``map`` and ``bce``, or
        ``rmse`` and ``nll``."""
        more = {name: value for name, value in vars(self).items() if name not in ("name", "bytes", "figures")}
        return {"name": self.name, "bytes": self.bytes, **self.figures, **more}


@dataclass(frozen=True)
class ExportResult:
    """Files that were written, and how they compare on the test rows.

    Parameters
    ----------
    files : list of Path
        The model's first.
    rows : int
        Test rows.
    temperature : float
    variants : list of Variant
        The trained student's first.
    runtime : str
        That of the exported files' latencies.
    """

    files: list[Path]
    rows: int
    temperature: float
    variants: list[Variant] = field(default_factory=list)
    runtime: str = ""


def export(run: RunFolder, wish: Wish) -> ExportResult:
    """Write a student's files, its model card (``<file>.md``) and its figures (``<file>.json``).

    Raises
    ------
    ValueError
        The run, or this student of it, has not finished, or was made from other data or settings than it has
        now; or the format can't express the student (names the part, and a format that can).
    ImportError
        A library that the format needs is not installed.
    """
    folder = student_folder(run.path, wish.student, wish.seed)
    name = folder.parent.name
    unit = Unit("distill", wish.seed, name)
    if not run.is_finished(unit):
        raise ValueError(
            f"path: {run.path}: the data or the settings have changed since {unit} was made: "
            f"`{command_for(run.path)}` makes it again"
        )
    split = run.config.split(wish.seed)
    loaded = Student.load(folder, run.trusted)
    report = report_of(run.path)
    if report is None:
        warnings.warn(
            f"{run.path} has no report of its present students, so the card has no comparison: "
            f"`{command_for(run.path)}` makes it",
            stacklevel=2,
        )
    own = {key: value for key, value in loaded.settings().items() if key != "task"}
    calibration = own | (_calibration(run, wish.seed, name, loaded) if wish.calibrated else {})
    about = {**loaded.about, **_figures(report, name), "license": wish.license or "unknown"}
    student = Student(
        loaded.member, loaded.classes, loaded.labels, loaded.samples, about=about, **calibration
    )
    temperature = student.temperature
    default = run.path / FOLDER / (name if not wish.seed else f"{name}-seed-{wish.seed}") / FILES[wish.to]
    path = wish.path or default
    files, variants, runtime = _WRITERS[wish.to](student, split, path, wish)
    result = ExportResult(files, len(split.test), temperature, variants, runtime)
    beside = path / "README.md" if path.is_dir() else path.with_name(f"{path.name}.md")
    card = model_card(student, result, report, run.config, path, wish)
    write_bytes(beside, card.encode())
    figures = figures_file(path)
    write_json(figures, {**_as_json(result, student), "fingerprint": fingerprint_of(folder)})
    return ExportResult([*files, beside, figures], result.rows, temperature, variants, runtime)


def _calibration(run: RunFolder, seed: int, name: str, student: Student) -> dict[str, Any]:
    """The settings of a served student, as the report fits them; see :mod:`ensdistill.job.scaling`."""
    ensemble = Ensemble.load(run.of(Unit("teachers", seed)) / "ensemble", run.trusted)
    rows = calibration_rows(run, seed, ensemble)
    if rows is None:
        warnings.warn(
            "calibrated: the run has no rows without a label, neither a pool nor synthetic ones, to which "
            "the temperature is fitted: it stays 1, as in the report",
            stacklevel=3,
        )
        return {}
    scaling = rows.scaling(student.member)
    if student.task == "regression":
        return {"variance_factor": scaling.variance_factor, "noise": scaling.noise}
    if student.task == "classification":
        return {"temperature": scaling.temperature}
    tuned = Thresholds.of(run, seed, name, rows).of_member("student", student.member, scaling)
    return {"temperature": scaling.temperature, "thresholds": tuned}


def _answers(student: Any) -> Callable[[Any], Any]:
    """The method by which a student predicts: probabilities, or the moments of a regression."""
    method: Callable[[Any], Any] = (
        student.predict_distribution if student.task == "regression" else student.predict_proba
    )
    return method


def _judged(name: str, answer: Any, split: Split, expected: Any, size: int, speed: dict[str, Any]) -> Variant:
    """The figures of one model's predictions of the test rows: probabilities [N, C], or Moments [N, D]."""
    labels, weights, task = split.test.labels, split.test.weights, split.task
    if task == "regression":
        mean, variance = answer
        unit = np.maximum(labels.std(0), 1e-300)
        difference = float((np.abs(np.asarray(mean) - expected.mean) / unit).max())
        given = None if variance is None else np.asarray(variance, np.float64)
        values: Any = Forecasts(np.asarray(mean, np.float64), given)
    else:
        exact = np.asarray(answer, np.float64)
        difference = float(np.abs(exact - expected).max())
        if task == "classification":
            exact /= exact.sum(1, keepdims=True)  # float32 sums are off by more than the metrics allow
        values = LabelProbabilities(exact) if task == "multilabel" else exact
    deciding = MEASURES[task].deciding
    figures = {one.name: one.of(values, labels, weights) for one in deciding if one.defined([values])}
    return Variant(name, size, figures, speed, difference)


def _trained(student: Student, split: Split, expected: Any) -> Variant:
    speed = latency(_answers(student), split.test.inputs[:256])
    return _judged("trained", expected, split, expected, student.bytes, speed)


def _to_onnx(student: Student, split: Split, path: Path, wish: Wish) -> tuple[list[Path], list[Variant], str]:
    found = importlib.import_module("ensdistill.student.export")
    inputs = whole(split.test.inputs)
    exported = found.to_onnx(student, inputs, int8=wish.int8)
    expected = _answers(student)(inputs)
    variants = [_trained(student, split, expected)]
    labels: Any = split.test.labels
    if student.task == "classification":
        labels = [student.labels[place] for place in labels]
    models = {"onnx": exported.model}
    if exported.int8 is not None:
        models["onnx, int8"] = exported.int8
    for name, model in models.items():
        blob = model.SerializeToString()
        measured = found.figures(blob, inputs, labels, exported.files)
        speed = {f"batch_{rows}": ms for rows, ms in measured["latency"].items()}
        answer = found.run_onnx(blob, inputs, exported.files)
        answer = answer if student.task == "regression" else answer[1]
        variants.append(_judged(name, answer, split, expected, len(blob), speed))
    import onnxruntime

    return exported.save(path), variants, f"onnxruntime {onnxruntime.__version__}, threads: 1"


def _to_torch(
    student: Student, split: Split, path: Path, wish: Wish
) -> tuple[list[Path], list[Variant], str]:
    from ensdistill.student.serving.as_torch import to_torch
    from ensdistill.student.serving.of_torch import LOADER, ProgramPredictor

    inputs = whole(split.test.inputs)
    exported = to_torch(student, inputs)
    files = exported.save(path)
    return files, _read_again(student, split, ProgramPredictor(path, [LOADER]), path, wish.to), _torch()


def _to_folder(
    student: Student, split: Split, path: Path, wish: Wish
) -> tuple[list[Path], list[Variant], str]:
    if path.exists() and not (path / "student.json").is_file() and any(path.iterdir()):
        raise WrongArgument(f"path: {path} holds other files than a student: choose another folder")
    student.save(path)
    trusted = student.member.untrusted() if hasattr(student.member, "untrusted") else []
    recipe = getattr(getattr(student.member, "member", student.member), "recipe", None) or {}
    again = Student.load(path, [*trusted, *filter(None, [recipe.get("class_path")])])
    return [path], _read_again(student, split, again, path, wish.to), _torch()


def _read_again(student: Student, split: Split, again: Any, path: Path, name: str) -> list[Variant]:
    """The trained student, and the one that the written files hold."""
    inputs = whole(split.test.inputs)
    expected = _answers(student)(inputs)
    speed = latency(_answers(again), split.test.inputs[:256])
    found = _answers(again)(inputs)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    judged = _judged(name, found, split, expected, size or path.stat().st_size, speed)
    if not judged.largest_difference <= 1e-4:
        raise ValueError(
            f"export: {path} predicts otherwise than the student, by {judged.largest_difference:.2g}"
        )
    return [_trained(student, split, expected), judged]


def _torch() -> str:
    import torch

    return f"torch {torch.__version__}, threads: {torch.get_num_threads()}, with preprocessing"


_WRITERS: dict[str, Callable[[Student, Split, Path, Wish], tuple[list[Path], list[Variant], str]]] = {
    "onnx": _to_onnx,
    "torch": _to_torch,
    "safetensors": _to_folder,
}


def _figures(report: Any, name: str) -> dict[str, Any]:
    """The report's figures of the student that stay with it."""
    if not isinstance(report, dict) or name not in report.get("students", {}):
        return {}
    block = report["students"][name]
    model = block["models"]["student"]
    known = ("accuracy", "nll", "brier", "ece", "map", "bce", "rmse")
    means = {metric: model[metric]["mean"] for metric in known if model.get(metric) is not None}
    return {
        "members": [member["name"] for member in report["members"]],
        "figures": {**means, "seeds": len(report["seeds"]), "retained_gain": block["retained_gain"]},
    }


def _as_json(result: ExportResult, student: Student) -> dict[str, Any]:
    return {
        "run": student.about.get("run"),
        "student": student.about.get("student"),
        "seed": student.about.get("seed"),
        "files": [path.name for path in result.files],
        "test_rows": result.rows,
        "temperature": result.temperature,
        "runtime": result.runtime,
        "variants": [variant.plain() for variant in result.variants],
    }
