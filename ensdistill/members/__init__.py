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

from ensdistill.describe import class_path
from ensdistill.members.base import SMOOTHING, Member, hear, is_member, to_logits
from ensdistill.members.boosted import BoostedMember, library_of
from ensdistill.members.estimator import Output, SklearnMember
from ensdistill.members.files import load_member
from ensdistill.members.function import ArrayMember, CallableMember
from ensdistill.members.module import TorchMember
from ensdistill.members.onnx import OnnxMember

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


def as_member(value: Any, name: str | None = None) -> Member:
    """A member as it is; anything else in the adapter for its kind.

    Parameters
    ----------
    value : member, torch module, fitted scikit-learn, XGBoost, LightGBM or CatBoost model, path of an ONNX file, array [N, C], function
        Of an array and of a function's first answer, rows that are all distributions are probabilities, anything else is logits.
        An array's rows are known by their place alone.
    name : str, optional

    Raises
    ------
    TypeError
        Anything else.
    ValueError
        The adapter does not take it: it is not fitted, for example.
    """
    name = name or default_name(value)
    if is_member(value):
        known: Member = value
        return known
    if isinstance(value, nn.Module):
        return TorchMember(value, name=name)
    if library_of(value) is not None:
        return BoostedMember(value, name=name)
    if hasattr(value, "get_params") and hasattr(value, "fit"):
        return SklearnMember(value, name=name)
    if isinstance(value, (str, Path)):
        return OnnxMember(value, name=name)
    if isinstance(value, (np.ndarray, Tensor)):
        answers = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        if answers.ndim != 2 or answers.dtype.kind != "f":
            raise ValueError(f"members: {name}: expected logits or probabilities [N, C]; got {answers.dtype} {list(answers.shape)}")
        said = {hear(answers): answers}
        return ArrayMember(name=name, logits=said.get("logits"), probabilities=said.get("probabilities"))
    if callable(value) and not isinstance(value, type):
        return CallableMember(value, name=name)
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
