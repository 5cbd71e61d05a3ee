"""Arguments of classes that a config leaves out, or can't write: numbers of inputs and outputs, the images'
shape, tuples."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

OF_PREPROCESS = ("buckets", "length", "numeric", "cardinalities")
PARAMETERS = ("inputs", "image", "outputs", *OF_PREPROCESS)


def completed(model: Callable[..., Any], example: Any, classes: int, preprocess: Any = None) -> Any:
    """A model class with the arguments that follow from the data, where they are not given.

    Parameters
    ----------
    model : callable
        A module class, or a ``functools.partial`` of one. Its ``__init__`` may have the parameters ``inputs``
        (numbers per sample), ``image`` (channels, height and width), ``outputs`` (classes), ``buckets``
        (the largest id of a token), ``length`` (ids of each text), ``numeric`` (scaled numbers) and
        ``cardinalities`` (codes of each category). Other callables are returned as they are. The arguments
        that a class names in ``completes`` are completed themselves.
    example : array or tensor [N, ...], or a mapping of these
        A batch of preprocessed inputs; one sample is enough.
    classes : int
    preprocess : optional
        That of the example; its attributes of those names are the values.

    Returns
    -------
    callable
        ``model`` itself, where there is nothing to add: arguments that equal their defaults are left out.

    Examples
    --------
    >>> import numpy as np
    >>> from ensdistill.models import MLP
    >>> completed(functools.partial(MLP, hidden=[8]), np.zeros((1, 5)), 3).keywords
    {'hidden': [8], 'inputs': 5, 'outputs': 3}
    """
    partial = model if isinstance(model, functools.partial) else None
    cls = model if partial is None else partial.func
    if not inspect.isclass(cls):
        return model
    try:
        signature = inspect.signature(cls)
        given = signature.bind_partial(*partial.args, **partial.keywords).arguments if partial else {}
    except (TypeError, ValueError):  # wrong arguments, which building the model reports
        return model
    nested = {
        name: completed(given[name], example, classes, preprocess)
        for name in getattr(cls, "completes", ())
        if name in given
    }
    if partial is not None and (changed := {n: v for n, v in nested.items() if v is not given[n]}):
        model = partial = functools.partial(partial, **changed)
    found = _from_data(example, classes, preprocess)
    missing = {
        name: value
        for name, value in found.items()
        if name in signature.parameters and name not in given and name not in given.get("kwargs", {})
    }
    added = {n: v for n, v in missing.items() if not _equal(signature.parameters[n].default, v)}
    return functools.partial(model, **added) if added else model


def with_tuples(cls: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a class, with tuples for lists where the default is one and there is no type hint.

    YAML has no tuples, but scikit-learn refuses ``TfidfVectorizer(ngram_range=[1, 2])``.

    Examples
    --------
    >>> from sklearn.preprocessing import RobustScaler
    >>> with_tuples(RobustScaler, {"quantile_range": [10.0, 90.0]})
    {'quantile_range': (10.0, 90.0)}
    """
    try:
        known = inspect.signature(cls).parameters
    except (TypeError, ValueError):  # a class without a signature
        return arguments
    tuples = {name for name, p in known.items() if isinstance(p.default, tuple) and p.annotation is p.empty}
    return {n: tuple(v) if n in tuples and isinstance(v, list) else v for n, v in arguments.items()}


def _from_data(example: Any, classes: int, preprocess: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    shape = tuple(getattr(example, "shape", ()))[1:]
    if shape:
        found["inputs"] = math.prod(shape)
    if len(shape) == 3:
        found["image"] = list(shape)
    found["outputs"] = classes
    for name in OF_PREPROCESS:
        if (value := getattr(preprocess, name, None)) not in (None, ()):
            found[name] = list(value) if isinstance(value, tuple) else int(value)
    return found


def _equal(default: Any, value: Any) -> bool:
    return default is not inspect.Parameter.empty and (
        list(default) == value if isinstance(default, (list, tuple)) else default == value
    )
