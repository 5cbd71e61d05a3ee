"""Members: one small interface over every kind of model that predicts classes, labels or numbers.

====================  ==========================================================================
``TorchMember``       torch modules, Hugging Face's classification models among them
``SklearnMember``     scikit-learn classifiers, and regressors with one column for each class
``BoostedMember``     XGBoost, LightGBM, CatBoost
``OnnxMember``        ONNX files
``CallableMember``    functions
``ArrayMember``       stored outputs
``ColumnsMember``     a member for each label or number, side by side
``Preprocessed``      any of these, with a preprocess of its own for raw samples
====================  ==========================================================================

A class of another package is a member if it has the attributes of :class:`Member`. It is saved with
:func:`write_description`, and loaded by :func:`load_member` if its import path is trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ensdistill.common.describe import class_path
from ensdistill.common.tasks import Task, check_task, task_of
from ensdistill.data.preprocess import as_preprocess
from ensdistill.teachers.members import outputs, pretrained, sigmoids
from ensdistill.teachers.members.base import SMOOTHING, Member, is_member, to_logits, write_description
from ensdistill.teachers.members.boosted import BoostedMember, library_of
from ensdistill.teachers.members.columns import ColumnsMember
from ensdistill.teachers.members.estimator import Output, SklearnMember
from ensdistill.teachers.members.estimator_outputs import of_several_labels, outputs_of, predicts_numbers
from ensdistill.teachers.members.files import load_member
from ensdistill.teachers.members.function import ArrayMember, CallableMember, as_array
from ensdistill.teachers.members.module import TorchMember
from ensdistill.teachers.members.moments import Moments, split_moments
from ensdistill.teachers.members.onnx import OnnxMember
from ensdistill.teachers.members.preprocessed import Preprocessed, inner
from ensdistill.teachers.members.wrappers import check_not_exported, unwrapped

__all__ = [
    "SMOOTHING",
    "ArrayMember",
    "BoostedMember",
    "CallableMember",
    "ColumnsMember",
    "Member",
    "Moments",
    "OnnxMember",
    "Output",
    "Preprocessed",
    "SklearnMember",
    "TorchMember",
    "as_member",
    "default_name",
    "inner",
    "load_member",
    "model_of",
    "to_logits",
    "write_description",
]


def as_member(
    value: Any, name: str | None = None, output: outputs.Output = "auto", task: Task | None = None
) -> Member:
    """A member as it is; anything else in the adapter for its kind.

    Parameters
    ----------
    value : object
        A member, torch module, fitted estimator or booster, path of an ONNX file, array [N, C] or function;
        or a tuple (one of these, preprocess). Estimators of scikit-learn and boosters of XGBoost, LightGBM
        and CatBoost. An array, or a function's first outputs, whose rows are all distributions holds
        probabilities. Values that could be logits or another kind of probabilities are refused unless
        ``output`` states it; others are logits. An array's rows are found by their place alone. The
        preprocess of a tuple turns raw samples into the model's input: a fitted transformer of scikit-learn,
        a torch module, a tokenizer, a function with an import path, or a
        :class:`ensdistill.data.preprocess.Preprocess`.
    name : str, optional
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        The kind of an array, or of the outputs of a function, a torch module or an ONNX file; other tasks
        have others, see :class:`TorchMember`. The outputs of fitted models and members need no statement.
    task : {"classification", "multilabel", "regression"}, optional
        By default the one that the model itself declares (``problem_type`` of Hugging Face's models, fitted
        multi-label classifiers, regressors of one number); classification where it declares none. A regressor
        of several numbers needs it.

    Raises
    ------
    TypeError
        Any other value.
    ValueError
        The adapter refuses the value: it is not fitted, for example, or a member of another task; or its
        outputs could be logits as well as probabilities, or numbers.
    """
    name = name or default_name(value)
    if isinstance(value, tuple) and len(value) == 2:
        return Preprocessed(as_member(value[0], name, output, task), as_preprocess(value[1], value[0]))
    if is_member(value):
        found: Member = value
        if task is not None and task_of(found) != task:
            raise ValueError(f"task: {found.name} is a member of the task {task_of(found)}; got {task}")
        return found
    task = check_task(declared_task(value, name) if task is None else task)
    outputs.check_output(name, output, task)
    check_not_exported(name, value)
    if isinstance(value, nn.Module):
        return TorchMember(value, name=name, output=output, task=task)
    if library_of(value) is not None:
        return BoostedMember(value, name=name, task=task)
    if hasattr(value, "get_params") and hasattr(value, "fit"):
        return SklearnMember(value, name=name, task=task)
    if isinstance(value, (str, Path)):
        return OnnxMember(value, name=name, output=output, task=task)
    if isinstance(value, (np.ndarray, Tensor)) and task == "regression":
        mean, variance = split_moments(name, as_array(value), output)
        return ArrayMember(name=name, means=mean, variances=variance)
    if isinstance(value, (np.ndarray, Tensor)) and task == "multilabel":
        array = as_array(value)
        if ((sigmoids.reading_of(name, array) or "logits") if output == "auto" else output) == "logits":
            return ArrayMember(name=name, logits=array, task=task)
        return ArrayMember(name=name, probabilities=array, task=task)
    if isinstance(value, (np.ndarray, Tensor)):
        array = as_array(value)
        shaped = array.ndim == 2 or (array.ndim == 1 and output in ("margin", "probabilities"))
        if not shaped or array.dtype.kind != "f":
            got = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"members: {name}: expected logits or probabilities [N, C]; got {got}")
        reading = (outputs.reading_of(name, array) or "logits") if output == "auto" else output
        if reading == "probabilities":
            return ArrayMember(name=name, probabilities=array)
        return ArrayMember(name=name, logits=outputs.as_logits(name, array, reading))
    if callable(value) and not isinstance(value, type):
        return CallableMember(value, name=name, output=output, task=task)
    raise TypeError(
        "members: expected a member, a torch module, a fitted model of scikit-learn, XGBoost, LightGBM or "
        "CatBoost, the path of an ONNX file, an array of logits or probabilities, or a function; or a tuple "
        "(model, preprocess); got "
        f"{class_path(type(value))}"
    )


def declared_task(value: Any, name: str) -> Task:
    """The task that a model declares; classification where it declares none.

    Raises
    ------
    ValueError
        A regressor of several numbers, which could be those of a regression or the logits of classes.
    """
    if isinstance(value, nn.Module):
        return pretrained.declared_task(unwrapped(value)) or "classification"
    if not hasattr(value, "get_params") or not hasattr(value, "fit"):
        return "classification"
    if of_several_labels(value):
        return "multilabel"
    if not predicts_numbers(value):
        return "classification"
    count = outputs_of(value)
    if count is None or count == 1:
        return "classification" if count is None else "regression"
    raise ValueError(
        f"task: {name} predicts {count} numbers a row, which could be those of a regression or the logits of "
        "classes: state task='regression' or task='classification'"
    )


def model_of(value: Any) -> Any:
    """The model of a tuple (model, preprocess); any other value as it is."""
    return value[0] if isinstance(value, tuple) and len(value) == 2 else value


def default_name(value: Any) -> str:
    """The name of an unnamed member."""
    value = model_of(value)
    if isinstance(value, (str, Path)):
        return Path(value).stem
    named = getattr(value, "__name__", "") if callable(value) and not isinstance(value, nn.Module) else ""
    return named if named.isidentifier() else type(value).__name__.lower()
