"""Readers of single files that hold a member: ONNX, skops, boosters' own formats, states of torch modules,
arrays of predictions."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ensdistill.common.describe import make_module
from ensdistill.common.skops_files import load_skops
from ensdistill.common.tasks import Task
from ensdistill.teachers.members import (
    ArrayMember,
    BoostedMember,
    Member,
    OnnxMember,
    SklearnMember,
    TorchMember,
    sigmoids,
)
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.members.moments import split_moments
from ensdistill.teachers.members.outputs import Output, as_logits, reading_of

PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".dill", ".npz")


@dataclass(frozen=True)
class About:
    """Settings by which a file is read.

    Parameters
    ----------
    name : str
    classes : tuple of str
        The data's, in order.
    own : list of str, optional
        The classes in the order of the model's outputs.
    output : str
    trusted : tuple of str
    model : callable, optional
        Makes the torch module.
    task : str
    """

    name: str
    classes: tuple[str, ...]
    own: Sequence[str] | None
    output: Output
    trusted: tuple[str, ...]
    model: Callable[[], nn.Module] | None
    task: Task = "classification"

    @property
    def columns(self) -> Sequence[str] | None:
        """Names of a classifier's ``classes_``; the outputs of other tasks have no names of their own."""
        return self.own if self.task == "classification" else None

    @property
    def names(self) -> Sequence[str]:
        """The names of outputs in the model's own order."""
        return self.own or self.classes


def check_kind(file: Path, model: Callable[[], nn.Module] | None) -> None:
    """Raise ValueError for a file whose ending names no format that is read, and for a ``model`` that it does
    not need."""
    if file.suffix in PICKLES:
        raise ValueError(
            f"file: {file.name}: reading {file.suffix} files can run code that is in them; save an "
            "estimator by skops.io.dump, "
            "a torch module's state_dict by safetensors.torch.save_file, a booster by its save_model"
        )
    if file.suffix not in READERS:
        raise ValueError(f"file: expected a file that ends in {', '.join(READERS)}; got {file.name}")
    if (model is None) == (file.suffix == ".safetensors"):
        expected = "the class of the torch module" if model is None else f"none for a {file.suffix} file"
        raise ValueError(f"model: {file.name}: expected {expected}; got {model}")


def load(file: Path, about: About) -> Member:
    """The member in a file.

    Raises
    ------
    ValueError
        There is no such file, its library cannot read it, or it needs a type that is not trusted.
    ImportError
        Its library is not installed.
    """
    if not file.is_file():
        raise ValueError(f"file: there is no file {file}")
    try:
        return READERS[file.suffix](file, about)
    except (ImportError, OSError):
        raise
    except Exception as error:  # of many kinds, by library; few of them name the file
        raise ValueError(f"file: {file}: {error}") from error


def external_files(file: Path) -> list[Path]:
    """Files beside an ONNX file that hold its weights."""
    if file.suffix != ".onnx" or not file.is_file():
        return []
    return [file.parent / name for name in sorted(OnnxMember(file).files)]


def _onnx(file: Path, about: About) -> Member:
    return OnnxMember(file, name=about.name, output=about.output, classes=about.names, task=about.task)


def _skops(file: Path, about: About) -> Member:
    estimator = load_skops(file.read_bytes(), about.trusted, file)
    kind: Any = SklearnMember if library_of(estimator) is None else BoostedMember
    classes = about.classes if about.task == "classification" else about.names
    return kind(estimator, name=about.name, classes=classes, columns=about.columns, task=about.task)


def _module(file: Path, about: About) -> Member:
    from safetensors.torch import load_file

    assert about.model is not None
    module = make_module(about.model)
    module.load_state_dict(load_file(file))
    options: dict[str, Any] = {"output": about.output, "task": about.task}
    return TorchMember(module.eval(), name=about.name, classes=about.names, factory=about.model, **options)


def _xgboost(file: Path, about: About) -> Member:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(file)
    if (
        booster.attr("scikit_learn") is not None
    ):  # it was saved by XGBClassifier, which predicts up to the best iteration
        regressor = about.task == "regression"
        model: Any = xgboost.XGBRegressor() if regressor else xgboost.XGBClassifier()
        model.load_model(file)
        return _boosted(model, about)
    return _boosted(booster, about)


def _lightgbm(file: Path, about: About) -> Member:
    lightgbm = importlib.import_module("lightgbm")
    return _boosted(lightgbm.Booster(model_file=str(file)), about)


def _catboost(file: Path, about: About) -> Member:
    catboost = importlib.import_module("catboost")
    return _boosted(catboost.CatBoost().load_model(str(file), format=file.suffix[1:]), about)


def _json(file: Path, about: About) -> Member:
    keys = json.loads(file.read_bytes()).keys()
    if "learner" in keys:
        return _xgboost(file, about)
    if "features_info" in keys:
        return _catboost(file, about)
    raise ValueError(f"expected a model of XGBoost or CatBoost; got JSON with the keys {sorted(keys)[:5]}")


def _boosted(model: Any, about: About) -> Member:
    labels = getattr(model, "classes_", None)
    if labels is None or len(labels) == 0 or about.task != "classification":  # in the order of indices
        return BoostedMember(model, name=about.name, classes=about.names, task=about.task)
    return BoostedMember(model, name=about.name, classes=about.classes, columns=about.own)


READERS: dict[str, Callable[[Path, About], Member]] = {
    ".onnx": _onnx,
    ".skops": _skops,
    ".safetensors": _module,
    ".ubj": _xgboost,
    ".json": _json,
    ".txt": _lightgbm,
    ".cbm": _catboost,
}


def stored_predictions(file: Path, uids: Path | None, about: About) -> Member:
    """The member of stored predictions in a file; see
    :class:`ensdistill.teachers.existing.StoredPredictions`."""
    name, output = about.name, about.output
    found = _array("uids", uids) if uids is not None else None
    if file.suffix == ".npy":
        values = _array("file", file)
        arrays = _read_as(name, values, about)
    else:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"file: {file} cannot be read ({error})") from error
        wanted = ("means",) if about.task == "regression" else ("logits", "probabilities")
        kinds = sorted({*wanted} & set(arrays))
        if len(kinds) != 1 or (output not in ("auto", kinds[0]) and about.task != "regression"):
            raise ValueError(f"file: {file}: expected {' or '.join(wanted)}; got {', '.join(sorted(arrays))}")
        if found is not None and "uids" in arrays:
            raise ValueError(f"uids: expected none, because {file} holds uids; got {uids}")
        values, found = arrays[kinds[0]], arrays.pop("uids", found)
        spread = {"variances": arrays["variances"]} if "variances" in arrays and wanted == ("means",) else {}
        arrays = {kinds[0]: values, **spread}
    found = np.arange(len(values)) if found is None else found
    return ArrayMember(name=name, uids=found, classes=about.names, task=about.task, **arrays)


def _read_as(name: str, values: np.ndarray, about: About) -> dict[str, Any]:
    """An array of predictions as arguments of ArrayMember, by the stated kind, or by the one that fits."""
    if about.task == "regression":
        mean, variance = split_moments(name, values, about.output)
        return {"means": mean, "variances": variance}
    known = sigmoids.reading_of if about.task == "multilabel" else reading_of
    reading = (known(name, values) or "logits") if about.output == "auto" else about.output
    if reading == "probabilities":
        return {"probabilities": values}
    return {"logits": values if about.task == "multilabel" else as_logits(name, values, reading)}


def _array(argument: str, file: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{argument}: {file} cannot be read as a .npy file of numbers ({error})") from error
    return array
