"""A preprocess turns raw samples into the input of one member, or of the student. It is saved with it and is
part of its fingerprint."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ensdistill.common.files import read_json, write_json
from ensdistill.common.fingerprint import digest

FORMAT = 1
BUILT_IN = "ensdistill.data.preprocess."


@runtime_checkable
class Preprocess(Protocol):
    """From a batch of raw samples to a batch that a model takes; the same for a sample whatever stands beside
    it."""

    def __call__(self, batch: Any) -> Any: ...

    def fingerprint(self) -> str:
        """Digest of everything that decides the result."""
        ...

    def save(self, folder: Path | str) -> None:
        """Write ``preprocess.json`` (see :func:`write_about`) and whatever ``load(folder, settings)`` of the
        class needs."""
        ...


class Settings:
    """Base of a preprocess that is a frozen dataclass and has no state but its fields."""

    def fingerprint(self) -> str:
        from ensdistill.common.describe import describe  # it loads torch, which texts do not need

        return digest(describe(self))

    def save(self, folder: Path | str) -> None:
        write_about(folder, self, {f.name: getattr(self, f.name) for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Any:
        return cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        )


def write_about(folder: Path | str, preprocess: Any, settings: dict[str, Any]) -> None:
    """Write ``preprocess.json``: the class, its settings and the fingerprint of what is saved."""
    cls = type(preprocess)
    about = {"format": FORMAT, "class_path": f"{cls.__module__}.{cls.__qualname__}", "settings": settings}
    write_json(Path(folder) / "preprocess.json", about)


def load_preprocess(folder: Path | str, trusted: Sequence[str] = ()) -> Preprocess:
    """The preprocess that a folder holds.

    Parameters
    ----------
    folder : path
    trusted : sequence of str
        Class paths outside this package that may be imported, and types that a scikit-learn transformer may
        hold.

    Raises
    ------
    ValueError
        There is none, it was written by a newer version, or its class is not trusted.
    """
    folder = Path(folder)
    about = read_json(folder / "preprocess.json")
    if not isinstance(about, dict) or not {"format", "class_path", "settings"} <= set(about):
        raise ValueError(
            f"{folder}: expected a saved preprocess; there is no preprocess.json that can be read"
        )
    if about["format"] > FORMAT:
        raise ValueError(
            f"{folder}: preprocess.json has format {about['format']}, but this ensdistill reads {FORMAT}; "
            "upgrade it"
        )
    path = about["class_path"]
    if not path.startswith(BUILT_IN) and path not in trusted:
        raise ValueError(f"{folder}: {path} is not trusted. If you know it, pass trusted=[{path!r}]")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder}: {path} can't be imported ({error})") from error
    # What a module has imported is not its own: torch.load, say, would unpickle.
    if not isinstance(cls, type) or cls.__module__ != module or not callable(getattr(cls, "load", None)):
        raise ValueError(
            f"{folder}: expected the class of a preprocess, with load, in {module}; got {name!r}"
        )
    own: Any = cls
    loaded: Preprocess = own.load(
        folder,
        {**about["settings"], **({"trusted": tuple(trusted)} if hasattr(cls, "takes_trusted") else {})},
    )
    return loaded
