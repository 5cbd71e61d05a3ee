"""Estimators of a config: objects of a ``class_path`` and ``init_args``."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from ensdistill.common.completion import with_tuples


def built(value: Any) -> Any:
    """The object of a config's ``class_path`` and ``init_args``, those within included; other values as they
    are."""
    if isinstance(value, list):
        return [built(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not isinstance(path := value.get("class_path"), str):
        return {key: built(item) for key, item in value.items()}
    arguments = {**(value.get("init_args") or {}), **(value.get("dict_kwargs") or {})}
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
        cls = getattr(found, name, None)
        if cls is None:
            near = difflib.get_close_matches(name, dir(found), 1)
            raise ValueError(
                f"module {module!r} has no attribute {name!r}.{f' Did you mean {near[0]!r}?' if near else ''}"
            )
        return cls(**with_tuples(cls, {key: built(item) for key, item in arguments.items()}))
    except Exception as error:  # of an import, or of a constructor
        raise ValueError(f"estimator: {path} can't be made: {type(error).__name__}: {error}") from error
