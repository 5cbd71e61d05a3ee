"""The data sets, in two regimes: few labels and a pool of unlabelled rows, or all rows labelled and no
pool."""

from __future__ import annotations

import functools
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.teachers.data import Missing, fashion_arrays, flights_frame, letter, r_frame
from ensdistill.common.tasks import Task
from ensdistill.data import Split
from ensdistill.data.splits import stratified_split

R = Path("/usr/lib/R/site-library")
REGIMES = ("pool", "all")  # and `quick`, a small one, to check that everything works
SIZES = ("member", "tenth")  # a student as large as a member of the ensemble, and a tenth of it
LATE = (0.5, 30.5)  # minutes: early, late, later

TAGS = 30  # the commonest of Debian's

Content = tuple[
    Any, np.ndarray, tuple[str, ...]
]  # samples, labels in their task's form, names of the outputs


@dataclass(frozen=True)
class Regime:
    """Rows of the parts of a split; ``test`` is all that are left where it is None."""

    labelled: int
    pool: int
    test: int | None = None


@dataclass(frozen=True)
class QualitySet:
    """A data set of the benchmark.

    Parameters
    ----------
    kind : {"table", "image", "text"}
        Which students and which other tools it has.
    read : callable
        Returns the samples, their labels in the task's form (:mod:`ensdistill.data.tasks`), and the names of
        the classes, labels or numbers.
    regimes : dict of str to Regime
        ``pool``, ``all``, and ``quick``, a small one, to check that everything works.
    sizes : tuple of str
        Of the students whose models are given.
    task : {"classification", "multilabel", "regression"}
    """

    kind: str
    read: Callable[[], Content]
    regimes: dict[str, Regime]
    sizes: tuple[str, ...]
    task: Task = "classification"


@dataclass(frozen=True)
class Drawn:
    """A data set for a job: the split of seed s is that of seed ``first_seed + s``.

    Parameters
    ----------
    name : str
        In `SETS`.
    labelled, pool : int
    test : int, optional
    first_seed : int
        Development and reported seeds differ by it.
    """

    name: str
    labelled: int
    pool: int
    test: int | None
    first_seed: int

    def split(self, seed: int) -> Split:
        samples, labels, classes = content(self.name)
        return stratified_split(
            samples,
            labels,
            classes,
            labelled=self.labelled,
            pool=self.pool,
            test=self.test,
            seed=self.first_seed + seed,
        )


@functools.lru_cache(maxsize=2)
def content(name: str) -> Content:
    """A data set's samples, read once per process."""
    return SETS[name].read()


def _coded(values: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    import pandas

    codes = values if hasattr(values, "cat") else pandas.Series(values).astype("category")
    codes = codes.cat.remove_unused_categories()
    return np.array(codes.cat.codes, np.int64), tuple(str(name) for name in codes.cat.categories)


def _digits() -> Content:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    return images, digits.target.astype(np.int64), tuple("0123456789")


def _letter() -> Content:
    x, y = letter(R / "mlbench/data/LetterRecognition.rda")
    return x, y, tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _income() -> Content:
    frame = r_frame(R / "kernlab/data/income.rda", "income", "apt-get install r-cran-kernlab")
    frame.columns = [name.lower().replace(".", "_") for name in frame.columns]
    labels, classes = _coded(frame["income"])
    return _plain_strings(frame.drop(columns="income")), labels, classes


def _spam() -> Content:
    frame = r_frame(R / "kernlab/data/spam.rda", "spam", "apt-get install r-cran-kernlab")
    labels, classes = _coded(frame["type"])
    return frame.drop(columns="type").to_numpy(np.float32), labels, classes


def _diamonds() -> Content:
    frame = diamonds()
    labels, classes = _coded(frame["cut"])
    return _plain_strings(frame.drop(columns="cut")), labels, classes


def diamonds(package: Path = R / "ggplot2") -> Any:
    """ggplot2's diamonds, as a pandas frame, from the package's lazily loaded data: an index, and a file of
    compressed objects, each behind its length in 4 bytes."""
    base = package / "data" / "Rdata"
    if not base.with_suffix(".rdx").is_file():
        raise Missing(f"{base}.rdx: apt-get install r-cran-ggplot2")
    try:
        import rdata
    except ImportError as error:
        raise Missing("pip install 'ensdistill[bench]' (rdata reads R's files)") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes of frames that are read as plain frames
        start, length = map(int, rdata.read_rds(base.with_suffix(".rdx"))["variables"]["diamonds"])
        packed = base.with_suffix(".rdb").read_bytes()[start : start + length]
        frame = rdata.conversion.convert(rdata.parser.parse_data(zlib.decompress(packed[4:])))
    return frame.reset_index(drop=True).astype({"price": "int64"})


def _plain_strings(frame: Any) -> Any:
    """Categories as strings, as a CSV file has them."""
    return frame.assign(**{c: frame[c].astype("string") for c in frame if frame[c].dtype == "category"})


def _flights() -> Content:
    """Raw facts of the day before the departure, and whether the flight was early, late or later."""
    frame, delays = _arrivals()
    return frame, np.digitize(delays, LATE).astype(np.int64), ("early", "late", "later")


def _delays() -> Content:
    """The same facts, and the minutes of the delay."""
    frame, delays = _arrivals()
    return frame, delays[:, None], ("arr_delay",)


def _arrivals() -> tuple[Any, np.ndarray]:
    """The flights that arrived, and their delays in minutes."""
    frame = flights_frame()
    frame = frame[frame["arr_delay"].notna()].reset_index(drop=True)
    inputs = ["month", "day", "sched_dep_time", "sched_arr_time", "distance", "carrier", "origin", "dest"]
    return frame[inputs], frame["arr_delay"].to_numpy(np.float64)


def _prices() -> Content:
    frame = diamonds()
    return _plain_strings(frame.drop(columns="price")), frame[["price"]].to_numpy(np.float64), ("price",)


def _diabetes() -> Content:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return x.astype(np.float32), y[:, None], ("progression",)


def _tags() -> Content:
    """Descriptions of Debian's packages, and which of the commonest tags they have."""
    from collections import Counter

    from examples.make_packages import tags_of

    own = [(text, set(tags_of(field))) for _, text, field in _listed(tagged=True)]
    counts = Counter(tag for _, tags in own for tag in tags)
    names = tuple(sorted(tag for tag, _ in counts.most_common(TAGS)))
    labels = np.array([[tag in tags for tag in names] for _, tags in own], np.int8)
    kept = np.flatnonzero(labels.any(1))
    order = np.random.default_rng(0).permutation(kept)[:24_000]
    return [own[i][0] for i in order], labels[order], names


def _fashion() -> Content:
    x, y, test_x, test_y = fashion_arrays()
    images = np.concatenate([x, test_x])[:, None].astype(np.float32) / 255
    return images, np.concatenate([y, test_y]).astype(np.int64), tuple(map(str, range(10)))


def _packages() -> Content:
    from collections import Counter

    found = _listed()
    kept = {name for name, _ in Counter(section for *_, section in found).most_common(12)}
    found = [package for package in found if package[2] in kept]
    order = np.random.default_rng(0).permutation(len(found))[:24_000]
    labels, classes = _coded([found[i][2] for i in order])
    return [found[i][1] for i in order], labels, classes


def _listed(tagged: bool = False) -> list[tuple[str, str, str]]:
    from examples.make_packages import packages

    try:
        return packages(tagged)
    except SystemExit as error:
        raise Missing(str(error)) from error


def _set(
    kind: str,
    read: Callable[[], Content],
    sizes: tuple[str, ...] = SIZES,
    task: Task = "classification",
    **regimes: tuple[int, ...],
) -> QualitySet:
    """Of regimes as tuples: labelled rows, rows of the pool, test rows."""
    return QualitySet(kind, read, {name: Regime(*rows) for name, rows in regimes.items()}, sizes, task)


# Rows of the sets that differ in their labels alone.
Rows = dict[str, tuple[int, ...]]
STONES: Rows = {"pool": (2000, 30_000, 12_000), "all": (20_000, 0, 12_000), "quick": (500, 500, 2000)}
FLIGHTS: Rows = {"pool": (5000, 60_000, 40_000), "all": (60_000, 0, 40_000), "quick": (500, 500, 2000)}
TEXTS: Rows = {"pool": (1500, 14_000, 6000), "all": (14_000, 0, 6000), "quick": (300, 900, 1000)}

SETS = {
    "digits": _set("image", _digits, pool=(200, 900), all=(1257, 0), quick=(150, 900)),
    "letter": _set(
        "table", _letter, pool=(2000, 12_000, 6000), all=(5000, 0, 10_000), quick=(600, 1200, 2000)
    ),
    "income": _set("table", _income, pool=(600, 5600, 2200), all=(6000, 0, 2200), quick=(400, 0, 800)),
    "spam": _set("table", _spam, pool=(300, 2800, 1200), all=(3200, 0, 1200), quick=(200, 400, 800)),
    "diamonds": _set("table", _diamonds, **STONES),
    "flights": _set("table", _flights, **FLIGHTS),
    "fashion": _set(
        "image",
        _fashion,
        ("member", "quarter"),
        pool=(1800, 58_200, 10_000),
        all=(60_000, 0, 10_000),
        quick=(200, 900, 1000),
    ),
    "packages": _set("text", _packages, **TEXTS),
    "tags": _set("text", _tags, task="multilabel", **TEXTS),
    "prices": _set("table", _prices, task="regression", **STONES),
    "delays": _set("table", _delays, task="regression", **FLIGHTS),
    "diabetes": _set("table", _diabetes, task="regression", pool=(100, 240), all=(340, 0), quick=(200, 100)),
}
