"""Tables to numbers by a fitted scikit-learn transformer: one that the user has, or the default for a frame's
columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensdistill.common.fingerprint import digest
from ensdistill.common.skops_files import archive_digest, load_skops, untrusted_types
from ensdistill.data import batches as b
from ensdistill.data.preprocess.base import write_about

MISSING = "(missing)"


class Transformer:
    """A fitted scikit-learn transformer; returns float32 [N, F].

    Parameters
    ----------
    transformer : estimator with ``transform``
        A ``ColumnTransformer``, a ``Pipeline`` of transformers, a ``StandardScaler``, fitted.
    pandas : bool
        Whether frames of other libraries become pandas frames first. By default only those of pyarrow do,
        which scikit-learn does not read by name.
    types : dict of str to str, optional
        Types of a frame's columns, as :func:`ensdistill.data.batches.describe` names them. A column that has
        another type is refused.

    Raises
    ------
    TypeError
        It has no ``transform``.
    sklearn.exceptions.NotFittedError
        It is not fitted.

    Examples
    --------
    >>> from sklearn.preprocessing import StandardScaler
    >>> x = np.array([[1.0], [3.0]])
    >>> Transformer(StandardScaler().fit(x))(x).tolist()
    [[-1.0], [1.0]]
    """

    takes_trusted = True

    def __init__(
        self, transformer: Any, *, pandas: bool = False, types: Mapping[str, str] | None = None
    ) -> None:
        from sklearn.utils.validation import check_is_fitted

        if not hasattr(transformer, "transform"):
            raise TypeError(
                f"transformer: expected a fitted scikit-learn transformer; got {type(transformer).__name__} "
                "without transform"
            )
        check_is_fitted(transformer)
        self.transformer, self.pandas = transformer, pandas
        self.types = None if types is None else dict(types)
        self._content: str | None = None

    def __call__(self, batch: Any) -> np.ndarray:
        """float32 [N, F].

        Raises
        ------
        ValueError
            A column is missing or of another type, or a value is refused by the transformer (its own
            message), or a result is no finite float32.
        """
        names = getattr(self.transformer, "feature_names_in_", None)
        if names is not None and is_table(batch):
            batch = with_columns(batch, names, self.pandas)
            if self.types is not None:
                check_types(self.types, b.describe(batch)["columns"], batch)
                batch = _as_texts(_plain_booleans(_with_nan(batch, none=not self._knows_none)))
        result = self.transformer.transform(batch)
        result = np.asarray(result.todense() if hasattr(result, "todense") else result)
        with np.errstate(over="ignore"):
            numbers: np.ndarray = result.astype(np.float32)
        wrong = np.argwhere(~np.isfinite(numbers))
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ValueError(
                f"inputs: expected finite numbers from {type(self.transformer).__name__}; row {row} has "
                f"{result[row, column]} in column "
                f"{column} of the result ({len(np.unique(wrong[:, 0]))} such rows): impute missing values "
                "in the transformer"
            )
        return numbers

    @property
    def trusted(self) -> tuple[str, ...]:
        """Types that loading has to trust beyond scikit-learn's own."""
        return tuple(untrusted_types(self._blob()))

    @property
    def numeric(self) -> int:
        """Scaled numbers, the first columns of the result, of a :func:`default_transformer`; 0 of others."""
        parts = getattr(self.transformer, "transformers_", [])
        return sum(len(columns) for name, _, columns in parts if name in ("numbers", "gaps"))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Different codes of each column of codes, the last ones of the result, that of values never seen
        among them."""
        parts = getattr(self.transformer, "named_transformers_", {})
        if "codes" not in parts:
            return ()
        encoder = parts["codes"][-1]
        rare = getattr(encoder, "infrequent_categories_", [None] * len(encoder.categories_))
        return tuple(
            len(names) - (0 if few is None else len(few) - 1) + 1
            for names, few in zip(encoder.categories_, rare, strict=True)
        )

    @cached_property
    def _knows_none(self) -> bool:
        """Whether None is a category of its own: that of a fit to columns of objects."""
        parts = getattr(self.transformer, "named_transformers_", {})
        encoders = [parts[name][-1] for name in ("categories", "codes") if name in parts]
        return any(value is None for encoder in encoders for names in encoder.categories_ for value in names)

    def fingerprint(self) -> str:
        if self._content is None:
            self._content = archive_digest(self._blob())
        more = [] if self.types is None else [self.pandas, list(self.types.items())]
        return digest(["transformer", self._content, *more])

    def save(self, folder: Path | str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "transformer.skops").write_bytes(self._blob())
        types = {} if self.types is None else {"types": list(self.types.items())}
        write_about(folder, self, {"pandas": self.pandas, **types})

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Transformer:
        blob = (folder / "transformer.skops").read_bytes()
        types = None if "types" not in settings else dict(settings["types"])
        loaded = cls(load_skops(blob, settings["trusted"], folder), pandas=settings["pandas"], types=types)
        loaded._content = archive_digest(blob)  # another version of scikit-learn would write other bytes
        return loaded

    def _blob(self) -> bytes:
        import skops.io

        blob: bytes = skops.io.dumps(self.transformer)
        return blob


def with_columns(frame: Any, names: Sequence[str], pandas: bool = False) -> Any:
    """The columns by name and in this order, as a frame that scikit-learn reads by name: pandas or polars.

    Raises
    ------
    ValueError
        A column is missing; names all of them and the nearest that are there.
    """
    import difflib

    import narwhals.stable.v2 as nw

    table = nw.from_native(frame, eager_only=True)
    present = set(table.columns)
    missing = [name for name in names if name not in present]
    if missing:
        near = {name: difflib.get_close_matches(str(name), map(str, present), 1) for name in missing[:20]}
        hints = [f"{name!r}{f' (nearest: {n[0]!r})' if n else ''}" for name, n in near.items()]
        shown = f"{list(names)[:20]}{' ...' * (len(names) > 20)}"
        raise ValueError(f"inputs: expected the columns {shown}; missing: {', '.join(hints)}")
    chosen = table.select(list(names))
    return chosen.to_pandas() if pandas or chosen.implementation.is_pyarrow() else chosen.to_native()


def is_table(batch: Any) -> bool:
    """Whether a batch is a frame. Arrays of objects, which are no batch of samples, are none."""
    return not isinstance(batch, np.ndarray) and b.kind_of(batch).name == "table"


_ALIKE = (("integer", "float"), ("text", "category"))


def check_types(expected: Mapping[str, str], found: Mapping[str, str], frame: Any) -> dict[str, str]:
    """The types of a frame's columns; those that no model takes are refused, and those unlike ``expected``.

    Integers may stand for floats, texts for categories, and the reverse. A column of missing values alone
    fits every type, but not where nothing is expected of it: nothing can be fitted to it.

    Raises
    ------
    TypeError, ValueError
        Times, a column without any value, or another type than expected; names the column and the remedy.
    """
    import narwhals.stable.v2 as nw

    table = nw.from_native(frame, eager_only=True)
    for name, kind in found.items():
        if kind in ("time", "duration"):
            raise TypeError(
                f"column {name!r}: expected numbers or categories; got a {kind}: make numbers of it (days "
                "since a date, weekday)"
            )
        wanted = expected.get(name)
        unlike = wanted is not None and wanted != kind and not any({wanted, kind} <= {*a} for a in _ALIKE)
        if (unlike or wanted is None) and bool(table[name].is_null().all()):
            if wanted is None and len(table):
                raise ValueError(
                    f"column {name!r}: expected at least one value; all {len(table)} are missing: leave the "
                    "column out"
                )
        elif unlike:
            raise ValueError(
                f"column {name!r}: expected {wanted}, as at the fit; got {kind}: convert the column, or "
                "declare its type where the table is read"
            )
    return dict(found)


def _with_nan(frame: Any, none: bool = False) -> Any:
    """A pandas frame in whose columns a gap is NaN, which scikit-learn takes for missing, and not NA; and
    float32 in place of float16, in which no power can be fitted.

    ``none``: also instead of None in columns of objects.
    """
    import pandas as pd

    columns = {}
    for name in frame.columns:
        dtype = frame[name].dtype
        if dtype == np.float16:
            columns[name] = frame[name].astype(np.float32)
        nullable = not isinstance(dtype, np.dtype) and getattr(dtype, "na_value", None) is pd.NA
        objects = none and isinstance(dtype, np.dtype) and dtype.kind == "O"
        if not (nullable or objects) or not (gaps := frame[name].isna()).any():
            continue
        if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
            columns[name] = frame[name].astype(np.float64)
        else:
            columns[name] = frame[name].astype(object).mask(gaps, np.nan)
    return frame.assign(**columns) if columns else frame


def _plain_booleans(frame: Any) -> Any:
    """A pandas frame with plain booleans for nullable ones without a gap: scikit-learn makes floats of these,
    and compares these with no category of a fit to rows with gaps."""
    found = [name for name in frame.columns if str(frame[name].dtype) in ("boolean", "bool[pyarrow]")]
    whole = {name: frame[name].astype(bool) for name in found if not frame[name].isna().any()}
    return frame.assign(**whole) if whole else frame


def _as_texts(frame: Any) -> Any:
    """A pandas frame whose categories that are no texts (numbers, say) are texts; gaps stay."""
    columns = {}
    for name in frame.columns:
        names = getattr(frame[name].dtype, "categories", None)
        if names is not None and not all(isinstance(value, str) for value in names):
            columns[name] = frame[name].cat.rename_categories([str(value) for value in names])
    return frame.assign(**columns) if columns else frame


def power_scaler() -> Any:
    """A pipeline for numbers: Yeo and Johnson's power of each column, to mean 0 and variance 1. Values beyond
    those of the fit count as the nearest of these, because powers of a far larger value have no bounds.

    >>> x = np.arange(5.0)[:, None] ** 3
    >>> scaler = power_scaler().fit(x)
    >>> (scaler.transform([[64.0]]) == scaler.transform([[1e9]])).item()
    True
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, PowerTransformer, StandardScaler

    # Standardised first: of numbers with little variance around a large mean no power is near to normal.
    return make_pipeline(MinMaxScaler(clip=True), StandardScaler(), PowerTransformer())


def default_transformer(
    frame: Any,
    *,
    numbers: Literal["quantile", "power", "standard"] = "power",
    rare: int = 10,
    most: int = 50,
    codes: int | None = None,
    seed: int = 0,
) -> Transformer:
    """Fit the default preprocessing of a table for networks and linear models.

    Numbers: the median in place of missing values, a column that flags these (where ``frame`` has any), then
    scaling. Booleans are 0 and 1. Strings and categories: one column for each of the commonest values, one
    for all others (values that were never seen among them).

    Parameters
    ----------
    frame : DataFrame
        The rows to fit to, without the target.
    numbers : {"quantile", "power", "standard"}
        To a uniform distribution on 0..1, by Yeo and Johnson's power to a normal one, or to mean 0 and
        variance 1. Networks learned most tables better after powers: docs/numbers.md has the comparison.
    rare : int
        Values of a category that stand in fewer rows are "others".
    most : int
        The largest number of columns for one category, the others' among them.
    codes : int, optional
        Categories of more values become one column of codes, behind all others, for a model that has an
        embedding of each (:class:`ensdistill.models.TabularMLP`): 0 to C-2, and -1 for values that were never
        seen, with C of :attr:`Transformer.cardinalities`.
    seed : int
        Of the rows that quantiles are estimated from.

    Raises
    ------
    ValueError, TypeError
        Times, lists, or a column that holds no value at all; names the column and the remedy.
    """
    import narwhals.stable.v2 as nw
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import (
        OneHotEncoder,
        OrdinalEncoder,
        QuantileTransformer,
        StandardScaler,
    )

    table = nw.from_native(
        with_columns(frame, nw.from_native(frame, eager_only=True).columns, True), eager_only=True
    )
    types = check_types({}, b.describe(frame)["columns"], table)
    groups: dict[str, list[str]] = {"numbers": [], "gaps": [], "booleans": [], "categories": [], "codes": []}
    for name, kind in types.items():
        if kind in ("integer", "float"):
            groups[
                "gaps"
                if table[name].is_null().any() or (kind == "float" and table[name].is_nan().any())
                else "numbers"
            ].append(name)
        elif kind == "boolean":
            groups["booleans"].append(name)
        else:
            many = codes is not None and table[name].n_unique() > codes
            groups["codes" if many else "categories"].append(name)

    def scaler() -> Any:
        if numbers == "quantile":
            return QuantileTransformer(n_quantiles=min(1000, len(table)), random_state=seed % 2**32)
        return power_scaler() if numbers == "power" else StandardScaler()

    imputed = SimpleImputer(strategy="median", keep_empty_features=True)
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=rare, max_categories=most, sparse_output=False
    )
    text = SimpleImputer(strategy="constant", fill_value=MISSING)
    parts = [
        # Other rows may have gaps where those of the fit have none.
        ("numbers", make_pipeline(imputed, scaler()), groups["numbers"]),
        ("gaps", make_pipeline(imputed, scaler()), groups["gaps"]),
        ("missing", MissingIndicator(features="all"), groups["gaps"]),
        (
            "booleans",
            OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1),
            groups["booleans"],
        ),
        ("categories", make_pipeline(text, encoder), groups["categories"]),
        (
            "codes",
            make_pipeline(
                text,
                OrdinalEncoder(
                    handle_unknown="use_encoded_value", unknown_value=-1, min_frequency=rare, dtype=np.float64
                ),
            ),
            groups["codes"],
        ),
    ]
    columns = ColumnTransformer([part for part in parts if part[2]], verbose_feature_names_out=False)
    return Transformer(columns.fit(_as_texts(_with_nan(table.to_native()))), pandas=True, types=types)
