"""Samples from files: arrays and folders of images, opened by what they are."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.errors import WrongArgument
from ensdistill.common.scalars import plain

ARRAYS = (".npy", ".npz", ".safetensors")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_array(path: Path | str, name: str | None = None) -> np.ndarray:
    """An array in a file, mapped into memory and not read where the format allows it.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz`` or ``.safetensors``.
    name : str, optional
        Of the array in a file that holds several.

    Raises
    ------
    ValueError
        There is no such file or array, or it holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise WrongArgument(f"path: there is no file {str(path)!r}")
    if path.suffix not in ARRAYS:
        raise ValueError(f"path: expected an array, {', '.join(ARRAYS)}; got {path.name!r}")
    try:
        archive = _opened(path)
        if isinstance(archive, np.ndarray):
            return archive
        with archive:
            names = list(archive.keys())
            if (name is None and len(names) == 1) or name in names:
                chosen = names[0] if name is None else name
                found: np.ndarray = (
                    archive.get_tensor(chosen) if path.suffix == ".safetensors" else archive[chosen]
                )
                return found
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        # safetensors raises TypeError for dtypes that NumPy has not
        raise ValueError(f"path: {path} can't be read as an array of numbers ({error})") from error
    raise WrongArgument(f"name: expected one of the arrays of {path.name}, {', '.join(names)}; got {name!r}")


def _opened(path: Path) -> Any:
    """An array, or an open archive of several."""
    if path.suffix != ".safetensors":
        return np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:  # not an OSError
        raise ValueError(str(error)) from error


class ImageFiles:
    """A map-style data set of image files, decoded when they are asked for: items are (uint8 [H, W] or [H, W,
    3], label).

    Parameters
    ----------
    paths : sequence of path
    labels : sequence, optional
        One for each; None where a label is unknown.
    mode : {"RGB", "L"}
        Colours, or grey.

    Raises
    ------
    ValueError
        (by ``[i]``) The file can't be decoded, or holds pixels of more than 8 bits; names it.

    Notes
    -----
    The length of a batch is bounded by the caller; nothing of an image is kept. Needs Pillow.
    """

    def __init__(
        self, paths: Sequence[Path | str], labels: Sequence[Any] | None = None, mode: str = "RGB"
    ) -> None:
        if mode not in ("RGB", "L"):
            raise ValueError(f"mode: expected 'RGB' or 'L'; got {mode!r}")
        if labels is not None and len(labels) != len(paths):
            raise ValueError(f"labels: expected {len(paths)}, one for each path; got {len(labels)}")
        # One array rather than a million objects, which every worker process would copy.
        self._paths = np.array([os.fsencode(path) for path in paths], bytes)
        self.labels, self.mode = labels, mode

    @property
    def paths(self) -> list[Path]:
        """Of all images, in their order."""
        return [Path(os.fsdecode(path)) for path in self._paths.tolist()]

    @classmethod
    def from_folder(cls, folder: Path | str, mode: str = "RGB") -> ImageFiles:
        """All images below ``folder`` (``IMAGES``), in the order of their paths; where they lie in folders of
        their own, these name the classes.

        Raises
        ------
        ValueError
            There is no such folder, or no image in it, or images lie both in class folders and beside them.
        """
        paths, labels = in_class_folders(folder, IMAGES, "image")
        return cls(paths, labels, mode)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> tuple[np.ndarray, Any]:
        position = plain(position)
        return decoded(os.fsdecode(self._paths[position]), self.mode), (
            None if self.labels is None else self.labels[position]
        )


def in_class_folders(
    folder: Path | str, suffixes: Sequence[str], noun: str
) -> tuple[list[Path], list[str] | None]:
    """The files below ``folder`` with one of these suffixes, in the order of their paths, and the names of
    the folders that they lie in; no names where they lie in ``folder`` itself.

    Raises
    ------
    ValueError
        There is no such folder or file, or files lie both in class folders and beside them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WrongArgument(f"folder: there is no folder {str(folder)!r}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        raise ValueError(f"folder: {folder} holds no {noun} ({', '.join(suffixes)})")
    above = [path.relative_to(folder).parts[:-1] for path in paths]
    if not any(above):
        return paths, None
    if not all(above):
        loose = paths[above.index(())]
        raise ValueError(
            f"folder: expected every {noun} in the folder of its class; {loose.name} lies beside the folders "
            f"in {folder}"
        )
    return paths, [parts[0] for parts in above]


def decoded(path: str, mode: str, content: bytes | None = None) -> np.ndarray:
    """The pixels of an image file, uint8 [H, W] or [H, W, 3].

    Parameters
    ----------
    path : str
    mode : {"RGB", "L"}
    content : bytes, optional
        Of the file, where it has been read.

    Raises
    ------
    ValueError
        See :class:`ImageFiles`.
    """
    from PIL import Image

    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            check_depth(image, path)
            return np.asarray(image.convert(mode))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's PNG reader raises SyntaxError
        raise ValueError(f"{path}: not an image that can be read ({error})") from error


def check_depth(image: Any, path: str) -> None:
    """Raise ValueError where Pillow would cut pixels of more than 8 bits at 255."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{path}: expected pixels of 8 bits; got mode {image.mode!r}: scale them to 0..255 once, for "
            "example by numpy, and write the image anew"
        )
