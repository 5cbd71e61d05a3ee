"""Rows out of distribution, made from a table's own rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensdistill.common.random import random_generator
from ensdistill.data import batches as b
from ensdistill.data.samples import as_samples, whole


def shuffled_columns(samples: Any, seed: int) -> Any:
    """The same rows with each column's values exchanged among the rows, independently of the other columns.

    Each value is one that the column has, but no row has values that belong together. A pixel is a column of
    an array of images, and a text or a picture a column of a mapping.

    Parameters
    ----------
    samples : samples
        See :mod:`ensdistill.data.samples`; lazy ones are read.
    seed : int

    Returns
    -------
    samples, or None where they have no columns, as texts

    Examples
    --------
    >>> x = np.arange(12).reshape(4, 3)
    >>> made = shuffled_columns(x, 0)
    >>> (np.sort(made, 0) == x).all(), (made == x).all()
    (np.True_, np.False_)
    """
    made = _shuffled(whole(samples), random_generator("strange", seed))
    return None if made is None else as_samples(made)


def _shuffled(batch: Any, generator: np.random.Generator) -> Any:
    kind, rows = b.kind_of(batch).name, b.count(batch)
    if kind == "table":
        return _frame(batch, generator)
    if isinstance(batch, Mapping):
        # A field without columns is a column of the mapping.
        fields = {name: _shuffled(part, generator) for name, part in batch.items()}
        orders = {name: generator.permutation(rows) for name in batch}
        return {
            name: b.take(batch[name], orders[name]) if field is None else field
            for name, field in fields.items()
        }
    if kind in ("array", "tensor"):
        values = np.asarray(batch)
        if values.ndim > 1:
            return generator.permuted(values.reshape(rows, -1), axis=0).reshape(values.shape)
    return None


def _frame(batch: Any, generator: np.random.Generator) -> Any:
    import narwhals.stable.v2 as nw

    frame = nw.maybe_reset_index(nw.from_native(batch, eager_only=True))
    columns = [frame[name][generator.permutation(len(frame))] for name in frame.columns]
    return frame.with_columns(*(nw.maybe_reset_index(column) for column in columns)).to_native()
