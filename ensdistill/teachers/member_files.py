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
from ensdistill.teachers.members import (
    ArrayMember,
    BoostedMember,
    Member,
    OnnxMember,
    SklearnMember,
    TorchMember,
)
from ensdistill.teachers.members.boosted import library_of
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
    """

    name: str
    classes: tuple[str, ...]
    own: Sequence[str] | None
    output: Output
    trusted: tuple[str, ...]
    model: Callable[[], nn.Module] | None


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
    return OnnxMember(file, name=about.name, output=about.output, classes=about.own or about.classes)


def _skops(file: Path, about: About) -> Member:
    estimator = load_skops(file.read_bytes(), about.trusted, file)
    kind: Any = SklearnMember if library_of(estimator) is None else BoostedMember
    return kind(estimator, name=about.name, classes=about.classes, columns=about.own)


def _module(file: Path, about: About) -> Member:
    from safetensors.torch import load_file

    assert about.model is not None
    module = make_module(about.model)
    module.load_state_dict(load_file(file))
    classes = about.own or about.classes
    return TorchMember(
        module.eval(), name=about.name, classes=classes, factory=about.model, output=about.output
    )


def _xgboost(file: Path, about: About) -> Member:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(file)
    if (
        booster.attr("scikit_learn") is not None
    ):  # it was saved by XGBClassifier, which predicts up to the best iteration
        model: Any = xgboost.XGBClassifier()
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
    if labels is None or len(labels) == 0:  # its outputs are in the order of indices
        return BoostedMember(model, name=about.name, classes=about.own or about.classes)
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


def stored_predictions(
    file: Path, uids: Path | None, name: str, classes: Sequence[str], output: Output
) -> Member:
    """The member of stored predictions in a file; see
    :class:`ensdistill.teachers.existing.StoredPredictions`."""
    found = _array("uids", uids) if uids is not None else None
    if file.suffix == ".npy":
        values = _array("file", file)
        reading: Any = (reading_of(name, values) or "logits") if output == "auto" else output
    else:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(file.read_bytes())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"file: {file} cannot be read ({error})") from error
        kinds = sorted({"logits", "probabilities"} & set(arrays))
        if len(kinds) != 1 or output not in ("auto", kinds[0]):
            raise ValueError(
                f"file: {file}: expected logits or probabilities; got {', '.join(sorted(arrays))}"
            )
        if found is not None and "uids" in arrays:
            raise ValueError(f"uids: expected none, because {file} holds uids; got {uids}")
        values, reading, found = arrays[kinds[0]], kinds[0], arrays.get("uids", found)
    found = np.arange(len(values)) if found is None else found
    if reading == "probabilities":
        return ArrayMember(name=name, probabilities=values, uids=found, classes=classes)
    return ArrayMember(name=name, logits=as_logits(name, values, reading), uids=found, classes=classes)


def _array(argument: str, file: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{argument}: {file} cannot be read as a .npy file of numbers ({error})") from error
    return array
