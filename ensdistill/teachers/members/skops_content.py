"""The content of .skops archives, without memory addresses and counters, which differ between processes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensdistill.common.fingerprint import digest
from ensdistill.teachers.members.base import Blob
from ensdistill.teachers.members.boosted import LIBRARIES
from ensdistill.teachers.members.neutral import neutral

_TREES_OF_NEIGHBOURS = ("sklearn.neighbors._kd_tree", "sklearn.neighbors._ball_tree")
_PICKLED = {library.pickled: library for library in LIBRARIES.values()}


_SEEN: ContextVar[dict[int, tuple[Any, Archive]] | None] = ContextVar("seen", default=None)


@contextmanager
def unchanged(own: bool = True) -> Iterator[None]:
    """While files are written or read, estimators are not refitted: the digests of each are computed once.

    Not so in the code of other packages, which is not this package's ``own``.
    """
    if own and _SEEN.get() is not None:
        yield
        return
    token = _SEEN.set({} if own else None)
    try:
        yield
    finally:
        _SEEN.reset(token)


@dataclass(frozen=True)
class Archive:
    """A .skops archive and digests of its content.

    Parameters
    ----------
    blob : bytes
        The file.
    content : str
        Digest of everything it holds.
    parts : dict of str
        Digests of everything on which predictions depend, by name: for each step of a pipeline its settings
        and its fitted state, and the versions of scikit-learn.
    numbers, size : int
        Count of the numbers in its arrays, and their bytes.
    """

    blob: Blob
    content: str
    parts: dict[str, str]
    numbers: int
    size: int


def archive_of(estimator: Any) -> Archive:
    """The .skops archive of an estimator, written anew, because it may have been refitted."""
    import skops.io

    made = read_archive(skops.io.dumps(estimator))
    if (seen := _SEEN.get()) is not None:
        seen[id(estimator)] = estimator, replace(made, blob=b"")  # it lives as long as its number
    return made


def digests_of(estimator: Any) -> Archive:
    """:func:`archive_of` without the bytes, which may be gigabytes."""
    if (known := (_SEEN.get() or {}).get(id(estimator))) is not None:
        return known[1]
    return replace(archive_of(estimator), blob=b"")


def read_archive(blob: Blob) -> Archive:
    """An archive with its digests; nothing in it is built."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        schema = json.loads(archive.read("schema.json"))
        content = _Content(archive)
        whole = digest(content.of(schema))
        numbers, size = content.numbers, content.size
        return Archive(blob, whole, _Answering(archive, content.digests).parts(schema), numbers, size)


def earlier_contents(blob: Blob) -> list[str]:
    """The digests that earlier versions made of an archive: with counters of trees, or in one digest."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        schema = json.loads(archive.read("schema.json"))
        kinds = [_Earlier(archive, counters, whole) for counters in (True, False) for whole in (True, False)]
        return [digest(kind.of(schema)) for kind in kinds]


class _Content:
    """Reads an archive's files one after the other, because those of a forest take gigabytes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.numbers, self.size = archive, 0, 0
        self.digests: dict[str, str] = {}

    def of(self, node: Any) -> Any:
        """A node of the schema, with digests of its files' content in place of their names."""
        if isinstance(node, list):
            return [self.of(item) for item in node]
        if not isinstance(node, dict):
            return node
        if node.get("__module__") in _TREES_OF_NEIGHBOURS and isinstance(node.get("content"), dict):
            node = {
                **node,
                "content": {**node["content"], "content": self.tree(node["content"].get("content"))},
            }
        # The keys of a dictionary in the archive may be any words, "file" among them: their values are nodes.
        own = {key for key in ("__id__", "file") if key in node and not isinstance(node[key], dict)}
        plain = {key: self.of(value) for key, value in node.items() if key not in own}
        return plain | ({"file": self.file(node["file"])} if "file" in own else {})

    def tree(self, state: Any) -> Any:
        """A tree's state without its four counters, which every query increases."""
        return [*state[:7], *state[11:]] if isinstance(state, list) and len(state) == 13 else state

    def file(self, name: str) -> Any:
        """Digest of one of the archive's files."""
        if name not in self.digests:
            self.digests[name] = digest(self.values(name))
        return self.digests[name]

    def values(self, name: str) -> Any:
        """One of the archive's files: its arrays, or its bytes."""
        data = self.archive.read(name)
        if not name.endswith(".npy"):
            return data
        array = np.load(io.BytesIO(data), allow_pickle=False)
        # Padding bytes of a tree's nodes hold random memory, so the fields are read one by one.
        fields = [array[field] for field in array.dtype.names] if array.dtype.names else [array]
        self.numbers, self.size = self.numbers + sum(f.size for f in fields), self.size + array.nbytes
        return fields


class _Earlier(_Content):
    """The content as earlier versions read it."""

    def __init__(self, archive: zipfile.ZipFile, counters: bool, whole: bool) -> None:
        super().__init__(archive)
        self.counters, self.whole = counters, whole

    def tree(self, state: Any) -> Any:
        return state if self.counters else super().tree(state)

    def file(self, name: str) -> Any:
        return self.values(name) if self.whole else super().file(name)


class _Answering(_Content):
    """The content on which predictions depend: without thread counts, verbosity and the like."""

    def __init__(self, archive: zipfile.ZipFile, digests: dict[str, str]) -> None:
        super().__init__(archive)
        self.digests = digests  # a forest's files are not read twice
        self.versions: set[str] = set()

    def parts(self, schema: dict[str, Any]) -> dict[str, str]:
        """Digests by part; see :class:`Archive`."""
        parts = self._parts(schema, "")
        return parts | ({"version of sklearn": ", ".join(sorted(self.versions))} if self.versions else {})

    def _parts(self, node: dict[str, Any], place: str) -> dict[str, str]:
        kind, state = node.get("__class__", ""), _state(node)
        steps = state.get("steps", {}).get("content") if kind == "Pipeline" else None
        if not isinstance(steps, list):
            return self._settings_and_state(node, place)
        found: dict[str, str] = {}
        for step in steps:
            name, estimator = step["content"]
            found |= self._parts(estimator, f"{place}step {json.loads(name['content'])}: ")
        kept = {name: value for name, value in self._attributes(node).items() if name != "steps"}
        return {**found, f"{place}settings of {kind}": digest(kept)}

    def _settings_and_state(self, node: dict[str, Any], place: str) -> dict[str, str]:
        kind = node.get("__class__", "")
        if not _state(node):
            return {f"{place}content of {kind}": digest(self.of(node))}
        path, attributes = [node.get("__module__"), kind], self._attributes(node)
        fitted = {
            name: value for name, value in attributes.items() if name.startswith("_") or name.endswith("_")
        }
        settings = {name: value for name, value in attributes.items() if name not in fitted}
        return {
            f"{place}settings of {kind}": digest([path, settings]),
            f"{place}fitted state of {kind}": digest(fitted),
        }

    def of(self, node: Any) -> Any:
        if isinstance(node, dict) and _state(node):
            return [node.get("__module__"), node.get("__class__"), self._attributes(node)]
        return super().of(node)

    def _attributes(self, node: dict[str, Any]) -> dict[str, Any]:
        """An object's attributes without those that have no effect on answers."""
        state, module, path = (
            _state(node),
            str(node.get("__module__")),
            f"{node.get('__module__')}.{node.get('__class__')}",
        )
        if "_sklearn_version" in state:
            self.versions.add(json.loads(state["_sklearn_version"]["content"]))
        found = {}
        for name, value in state.items():
            if name in neutral(module) or name == "_sklearn_version":
                continue
            library = _PICKLED.get((path, name))
            found[name] = self.of(value) if library is None else digest(library.unpickled(self._bytes(value)))
        return found

    def _bytes(self, node: dict[str, Any]) -> Blob:
        return self.archive.read(node["file"]) if "file" in node else json.loads(node["content"]).encode()


def _state(node: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes of an object's attributes; empty for any other node."""
    content = node.get("content") if node.get("__loader__") == "ObjectNode" else None
    state = (
        content.get("content")
        if isinstance(content, dict) and content.get("__loader__") == "DictNode"
        else None
    )
    return state if isinstance(state, dict) else {}
