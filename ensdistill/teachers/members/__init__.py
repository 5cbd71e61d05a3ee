"""Members: one small interface over everything that can say how likely each class is.

====================  ==========================================================================
``TorchMember``       torch modules, Hugging Face's classification models among them
``SklearnMember``     scikit-learn classifiers, and regressors with one column for each class
``BoostedMember``     XGBoost, LightGBM, CatBoost
``OnnxMember``        ONNX files
``CallableMember``    functions
``ArrayMember``       answers that are known already
====================  ==========================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ensdistill.common.describe import class_path
from ensdistill.teachers.members import outputs
from ensdistill.teachers.members.base import SMOOTHING, Member, is_member, to_logits
from ensdistill.teachers.members.boosted import BoostedMember, library_of
from ensdistill.teachers.members.estimator import Output, SklearnMember
from ensdistill.teachers.members.files import load_member
from ensdistill.teachers.members.function import ArrayMember, CallableMember, as_array
from ensdistill.teachers.members.module import TorchMember
from ensdistill.teachers.members.onnx import OnnxMember

__all__ = [
    "SMOOTHING",
    "ArrayMember",
    "BoostedMember",
    "CallableMember",
    "Member",
    "OnnxMember",
    "Output",
    "SklearnMember",
    "TorchMember",
    "as_member",
    "default_name",
    "load_member",
    "to_logits",
]


def as_member(value: Any, name: str | None = None, output: outputs.Output = "auto") -> Member:
    """A member as it is; anything else in the adapter for its kind.

    Parameters
    ----------
    value : member, torch module, fitted scikit-learn, XGBoost, LightGBM or CatBoost model, path of an ONNX file, array [N, C], function
        An array, or a function's first answer, of rows that are all distributions holds probabilities. Values that could be logits or
        another kind of probabilities are refused unless ``output`` tells; others are logits.
        An array's rows are known by their place alone.
    name : str, optional
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        What an array, a function, a torch module or an ONNX file answers with; fitted models and members know it themselves.

    Raises
    ------
    TypeError
        Anything else.
    ValueError
        The adapter does not take it: it is not fitted, for example; or its outputs could be logits as well as probabilities.
    """
    name = name or default_name(value)
    outputs.check_output(name, output)
    if is_member(value):
        known: Member = value
        return known
    if isinstance(value, nn.Module):
        return TorchMember(value, name=name, output=output)
    if library_of(value) is not None:
        return BoostedMember(value, name=name)
    if hasattr(value, "get_params") and hasattr(value, "fit"):
        return SklearnMember(value, name=name)
    if isinstance(value, (str, Path)):
        return OnnxMember(value, name=name, output=output)
    if isinstance(value, (np.ndarray, Tensor)):
        answers = as_array(value)
        if answers.ndim not in (1, 2) or (answers.ndim == 1 and output not in ("margin", "probabilities")) or answers.dtype.kind != "f":
            raise ValueError(f"members: {name}: expected logits or probabilities [N, C]; got {answers.dtype} {list(answers.shape)}")
        reading = (outputs.reading_of(name, answers) or "logits") if output == "auto" else output
        if reading == "probabilities":
            return ArrayMember(name=name, probabilities=answers)
        return ArrayMember(name=name, logits=outputs.as_logits(name, answers, reading))
    if callable(value) and not isinstance(value, type):
        return CallableMember(value, name=name, output=output)
    raise TypeError(
        "members: expected a member, a torch module, a fitted model of scikit-learn, XGBoost, LightGBM or CatBoost, the path of an ONNX "
        f"file, an array of logits or probabilities, or a function; got {class_path(type(value))}"
    )


def default_name(value: Any) -> str:
    """What an unnamed member is called."""
    if isinstance(value, (str, Path)):
        return Path(value).stem
    named = getattr(value, "__name__", "") if callable(value) and not isinstance(value, nn.Module) else ""
    return named if named.isidentifier() else type(value).__name__.lower()
