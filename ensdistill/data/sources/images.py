"""Images in files: in class folders, or listed by a table."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import xxhash

from ensdistill.common.tasks import Task
from ensdistill.data.files import IMAGES, ImageFiles, check_depth, decoded
from ensdistill.data.partition import Partition, Whole
from ensdistill.data.samples import Lazy, as_samples
from ensdistill.data.sources import base
from ensdistill.data.sources.folders import class_column, class_folders
from ensdistill.data.sources.roles import joined_frames, read_roles, roles_of, whole_of
from ensdistill.data.sources.target import Target
from ensdistill.data.table_files import TABLES, TableFile
from ensdistill.data.uids import content_uids

HELD_BYTES = 2**28  # of pixels, above which images are decoded when they are needed
THREADS = 8  # Pillow decodes without Python's lock
ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}  # of a whole file, within its last bytes
TAIL = 64

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageFolder(base.Divided):
    """Image files, as lists of uint8 arrays [H, W, 3] or [H, W] that may differ in size.

    Up to 256 MiB of pixels are decoded once and held in memory. Of more than that, files are decoded when
    they are needed; at first every file's head and end are looked at, so that one that isn't whole is found
    before any work.

    Parameters
    ----------
    path : path
        A folder with a folder of images for each class; or a table (``.csv``, ``.jsonl``, ...) with a column
        of paths, relative to the table's own folder, and a column of labels. An empty label is unknown, and
        its row goes to the pool.
    mode : {"RGB", "L"}
        Colours, or grey.
    on_error : {"raise", "skip"}
        Whether an unreadable image is an error that names the file, or is left out. To skip, all images are
        decoded once at the start, and a warning counts those that are left out.
    labels : list of str, optional
        The classes in the order of their indices; sorted by default.
    test_path, pool_path : path, optional
        Folders or tables of the test images, and of images without labels.
    file : str
        The column of paths in a table.
    target : str or list of str
        That of labels, or several.
    id, weight, unlabelled, task, separator
        See :class:`Table`; columns of a table, and words in the target's. Folders are of classes.
    lazy : bool, optional
        Whether images are decoded when they are needed; decided by their size by default.
    parts : Partition
        How the images of ``path`` are divided. Its columns are those of the table.

    Raises
    ------
    ValueError
        (by ``split``) An image, a path or a label is not as described; names it.

    Notes
    -----
    Images are equal, and stay together, if their pixels are (in memory) or their files (else). A uid is made
    of the file's content. Needs Pillow and pandas.
    """

    path: Path
    mode: Literal["RGB", "L"] = "RGB"
    on_error: Literal["raise", "skip"] = "raise"
    labels: list[str] | None = None
    test_path: Path | None = None
    pool_path: Path | None = None
    file: str = "path"
    target: str | list[str] = "label"
    id: str | None = None
    weight: str | None = None
    unlabelled: list[str] | None = None
    lazy: bool | None = None
    parts: Partition = field(default_factory=Partition)
    task: Task | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        self._target()
        for name, values in (("mode", ("RGB", "L")), ("on_error", ("raise", "skip"))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected {' or '.join(values)}; got {getattr(self, name)!r}")
        base.not_both_given(self.parts, self.test_path)

    def _target(self) -> Target:
        return Target(self.target, self.task, self.separator, self.labels)

    def _read(self) -> Whole:
        roles = roles_of(self.parts, target=self.target, id=self.id, weight=self.weight)
        sources = [(part, name, Path(path)) for name, part in base.FILES if (path := getattr(self, name))]
        frames = [self._listed(path, part, name, roles) for part, name, path in sources]
        frame = joined_frames(frames, [path.name for *_, path in sources])
        by_file = np.repeat(np.array([part for part, *_ in sources], np.int8), [len(one) for one in frames])
        paths: list[str] = frame[self.file].tolist()
        looked = list(_by_threads(_look, paths, "images looked at"))
        faults = [one.fault for one in looked]
        if self.on_error == "raise":
            _refuse(faults)
        size = sum(one.pixels for one in looked) * (3 if self.mode == "RGB" else 1)
        lazy = size > HELD_BYTES if self.lazy is None else self.lazy
        images: list[Any] = []
        if not lazy or self.on_error == "skip":
            for place, result in enumerate(_by_threads(self._decode, paths, "images decoded")):
                faults[place] = result if isinstance(result, ValueError) else None
                images.append(None if lazy else result)
            if self.on_error == "raise":
                _refuse(faults)
        good = [place for place, fault in enumerate(faults) if fault is None]
        if len(good) < len(paths):
            _skipped(faults)
        keys = np.array([looked[place].key for place in good], np.uint64)
        samples = (
            Lazy(ImageFiles([paths[place] for place in good], None, self.mode), content_keys=keys)
            if lazy
            else as_samples([images[place] for place in good])
        )
        frame, uids = frame.iloc[good].reset_index(drop=True), content_uids(keys)
        return whole_of(samples, frame, roles, by_file[good], target=self._target(), uids=uids)

    def _listed(self, path: Path, part: int, argument: str, roles: dict[str, str]) -> Any:
        """A frame of paths, labels and the columns that divide them."""
        import pandas as pd

        if path.suffix.lower() in TABLES:
            return self._by_table(TableFile(path), part, argument, roles)
        column = class_column(self._target())
        paths, names = class_folders(path, IMAGES, "image", argument, part, roles)
        return pd.DataFrame({self.file: [str(one) for one in paths], column: names})

    def _by_table(self, table: TableFile, part: int, argument: str, roles: dict[str, str]) -> Any:
        table.column(self.file, "file")
        frame = read_roles(
            table,
            [self.file],
            roles,
            part,
            unlabelled=self.unlabelled,
            text=[self.file],
            texts=self._target().texts,
        )
        paths = [None if isinstance(p, float) else table.path.parent / p for p in frame[self.file].tolist()]
        lost = next((row for row, path in enumerate(paths) if path is None or not path.is_file()), None)
        if lost is not None:
            raise ValueError(f"{argument}: row {lost} of {table.path} names {paths[lost]}, which is no file")
        return frame.assign(**{self.file: [str(path) for path in paths]})

    def _decode(self, path: str) -> np.ndarray | ValueError:
        try:
            return decoded(path, self.mode)
        except ValueError as error:
            return error


class _Looked(NamedTuple):
    """A file's hash, its number of pixels, and an error where it is no whole image."""

    key: int
    pixels: int
    fault: ValueError | None = None


def _look(path: str) -> _Looked:
    from PIL import Image

    try:
        content = Path(path).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            check_depth(image, path)
            pixels, end = image.width * image.height, ENDS.get(image.format or "")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return _Looked(0, 0, ValueError(f"{path}: not an image that can be read ({error})"))
    except ValueError as error:
        return _Looked(0, 0, error)
    if end is not None and end not in content[-TAIL:]:
        return _Looked(0, 0, ValueError(f"{path}: not an image that can be read (its end is missing)"))
    return _Looked(xxhash.xxh3_64_intdigest(content), pixels)


def _by_threads(function: Callable[[str], Result], paths: list[str], doing: str) -> Iterator[Result]:
    return base.watched(_in_pieces(function, paths), len(paths), doing)


def _in_pieces(function: Callable[[str], Result], paths: list[str]) -> Iterator[Result]:
    workers = min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, "ensdistill-images") as executor:
        # In pieces, so that no million results wait.
        for start in range(0, len(paths), 1024):
            yield from executor.map(function, paths[start : start + 1024])


def _refuse(faults: list[ValueError | None]) -> None:
    if found := [fault for fault in faults if fault is not None]:
        raise ValueError(
            f"{found[0]}; {len(found)} such files of {len(faults)}: mend them, or leave them out by "
            "on_error: skip"
        ) from found[0]


def _skipped(faults: list[ValueError | None]) -> None:
    found = [fault for fault in faults if fault is not None]
    if len(found) == len(faults):
        raise ValueError(f"path: none of {len(faults)} images can be read; the first: {found[0]}")
    warnings.warn(
        f"{len(found)} of {len(faults)} images are left out, because they can't be read; the first: "
        f"{found[0]}",
        stacklevel=4,
    )
