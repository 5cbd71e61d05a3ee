"""Functions, named by their import path, as preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensdistill.common.describe import import_function
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import source_digest
from ensdistill.data.preprocess.base import write_about


class Named:
    """A function from a batch of raw samples to a batch that a model takes.

    Parameters
    ----------
    function : callable or str
        Defined at the top of a module; or its import path, ``"package.module.function"``. Its code is part
        of the fingerprint.

    Raises
    ------
    ValueError
        It can't be imported again, because it is a lambda, or stands in a function or in ``__main__``.

    Examples
    --------
    >>> import numpy as np
    >>> Named("numpy.square")(np.array([1.0, 3.0])).tolist()
    [1.0, 9.0]
    """

    takes_trusted = True

    def __init__(self, function: Callable[[Any], Any] | str) -> None:
        self.function = import_function("preprocess", function) if isinstance(function, str) else function
        self.path = function if isinstance(function, str) else _path(function)

    def __call__(self, batch: Any) -> Any:
        return self.function(batch)

    @property
    def trusted(self) -> tuple[str, ...]:
        """Import paths that loading has to trust."""
        return (self.path,)

    def fingerprint(self) -> str:
        return digest(["named", self.path, source_digest(self.function)])

    def save(self, folder: Path | str) -> None:
        write_about(folder, self, {"function": self.path})

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Named:
        path = settings["function"]
        if path not in settings["trusted"]:
            raise ValueError(f"{folder}: {path} is not trusted. If you know it, pass trusted=[{path!r}]")
        return cls(path)


def _path(function: Any) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    path = f"{module}.{name}"
    try:
        found = None if module in (None, "__main__") else import_function("preprocess", path)
    except ValueError:
        found = None
    if found is not function:
        raise ValueError(
            f"preprocess: expected a function that can be imported by its path; got {name or function!r}: "
            "define it at the top of a module of its own"
        )
    return path
