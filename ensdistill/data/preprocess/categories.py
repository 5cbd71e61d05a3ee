"""Tables for boosted trees: numbers as they are, texts as columns of categories that are fixed at the fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.fingerprint import digest
from ensdistill.data import batches as b
from ensdistill.data.preprocess.base import write_about
from ensdistill.data.preprocess.tables import check_types, with_columns

NUMBERS = ("integer", "float", "boolean")
WORDS = ("text", "category")


class Categorical:
    """A pandas frame whose texts are columns of categories; made by ``Categories().fit(frame)``.

    Takes a frame of any library and returns a pandas frame for XGBoost, LightGBM, CatBoost and
    scikit-learn's histogram gradient boosting. Columns are found by name and put in the order of the fit.

    Parameters
    ----------
    types : dict of str to str
        Names and types of the columns, in order: see :func:`ensdistill.data.batches.tables.column_type`.
    categories : dict of str to list
        For each column of texts or categories its values.
    missing : str, optional
        The category of missing and unseen values. They are missing (NaN) by default.
    """

    def __init__(
        self,
        types: Mapping[str, str],
        categories: Mapping[str, Sequence[Any]],
        missing: str | None = None,
    ) -> None:
        self.types, self.missing = dict(types), missing
        self.categories = {name: list(values) for name, values in categories.items()}

    def __call__(self, batch: Any) -> Any:
        """A pandas frame [N, columns].

        Raises
        ------
        ValueError
            A column is missing, or holds texts where it held numbers at the fit, or the reverse.
        """
        import pandas as pd

        frame = with_columns(batch, list(self.types), pandas=True)
        check_types(self.types, b.describe(frame)["columns"], frame)
        columns = {}
        for name, kind in self.types.items():
            column = frame[name]
            if name in self.categories:
                known = self.categories[name]
                # By name: numbers that are categories may arrive as texts. A value outside of the categories
                # has the code -1, which stands for a missing one.
                places, unique = pd.factorize(column.astype(object))
                by_name = pd.Index([str(value) for value in known], dtype=object)
                codes = np.append(by_name.get_indexer([str(value) for value in unique]), -1)[places]
                values = [*known, *([] if self.missing is None else [self.missing])]
                if self.missing is not None:
                    codes = np.where(codes < 0, len(known), codes)
                columns[name] = pd.Categorical.from_codes(codes, values)
            elif str(column.dtype) in _PLAIN:
                columns[name] = column.array
            else:  # objects and nullable types, which hold gaps beside integers or booleans
                filled = column.astype(object).where(column.notna(), np.nan)
                columns[name] = filled.astype(np.float64 if column.isna().any() else _DTYPES[kind]).array
        return pd.DataFrame(columns, index=frame.index)

    def fingerprint(self) -> str:
        return digest(["categorical", list(self.types.items()), self.categories, self.missing])

    def save(self, folder: Path | str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = {"types": list(self.types.items()), "categories": self.categories, "missing": self.missing}
        write_about(folder, self, settings)

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Categorical:
        return cls(dict(settings["types"]), settings["categories"], settings["missing"])


_DTYPES = {"integer": "int64", "float": "float64", "boolean": "bool"}
_PLAIN = frozenset(
    ["bool", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
)


@dataclass(frozen=True)
class Categories:
    """Setting for tables that boosted trees take: columns of texts become categories, seen at the fit.

    Numbers and booleans stay as they are, and so do their gaps. A value that was not seen is missing.

    Parameters
    ----------
    most : int
        Categories of one column at most, the commonest; the others are missing values. Histogram gradient
        boosting takes 255.
    missing : str, optional
        A category of its own for missing and unseen values, which CatBoost needs. They are NaN by default.

    Examples
    --------
    >>> import pandas as pd
    >>> fitted = Categories().fit(pd.DataFrame({"city": ["Rome", "Oslo", None], "age": [3, 4, 5]}))
    >>> fitted(pd.DataFrame({"age": [1], "city": ["Paris"]}))["city"].tolist()
    [nan]
    """

    most: int = 255
    missing: str | None = None

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most: expected at least 1; got {self.most}")

    def fit(self, samples: Any) -> Categorical:
        """The categories of a frame, or of samples that are one.

        Raises
        ------
        TypeError, ValueError
            No table; or a column of times, lists, or without any value (names the column and the remedy).
        """
        from ensdistill.data.preprocess.settings import table_of

        frame = table_of(samples)
        found = b.describe(frame)["columns"]
        pandas = with_columns(frame, list(found), pandas=True)
        types = check_types({}, found, pandas)
        categories = {}
        for name, kind in types.items():
            if kind in WORDS:
                counts = pandas[name].dropna().astype(object).value_counts()
                # By name among equals, so that the order of the rows does not count.
                common = sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))[: self.most]
                categories[name] = sorted((_plain(value) for value, _ in common), key=str)
                names = [str(value) for value in categories[name]]
                if twice := [one for one, more in pairwise(names) if one == more]:
                    raise ValueError(
                        f"column {name!r}: expected categories of different names; two are {twice[0]!r}, a "
                        "number and a text: make them alike, for example by astype(str)"
                    )
                if self.missing in names:
                    raise ValueError(
                        f"missing: expected a name that is no value of column {name!r}; got {self.missing!r}"
                    )
        return Categorical(types, categories, self.missing)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
