"""One-hot codes: columns of 0 and 1 of which a row sets one."""

from __future__ import annotations

import numpy as np

from ensdistill.data.transfer.arrays import ArrayTable
from ensdistill.data.transfer.tables import Table


def one_hot_codes(table: Table, binary: np.ndarray) -> list[np.ndarray]:
    """Runs of neighbouring 0/1 columns whose sum is 1 in every row; runs that overlap are one."""
    order = _in_frame_order(table)
    runs: list[list[int]] = []
    for start in range(len(order)):
        total, end = np.zeros(len(table), np.int16), start
        while end < len(order) and binary[order[end]] and total.max() <= 1:
            total += table.column(order[end]).astype(np.int16)
            end += 1
            if total.min() == 1 == total.max():
                if runs and start < runs[-1][1]:
                    runs[-1][1] = max(end, runs[-1][1])
                else:
                    runs.append([start, end])
                break
    return [np.sort(np.array(order[first:last])) for first, last in runs]


def _in_frame_order(table: Table) -> list[int]:
    """Places of the columns, in the order in which they stand in the frame or the array."""
    if isinstance(table, ArrayTable):
        return list(range(len(table.names)))
    place = {column: i for i, column in enumerate(table.names)}
    return [place[column] for column in table.frame.columns]


def check_group(name: str, table: Table, group: np.ndarray) -> None:
    """Raise ValueError where a row sets more than one of the columns, or one holds other values than 0 and
    1."""
    values = np.stack([table.column(place) for place in group], 1)
    bad = np.flatnonzero(~np.isin(values, (0, 1)).all(1) | (values.sum(1) > 1))
    if len(group) < 2 or len(bad):
        shown = [table.names[place] for place in group]
        got = f"row {bad[0]} has {values[bad[0]].tolist()}" if len(bad) else f"{len(group)} columns"
        raise ValueError(
            f"{name}: one_hot: expected at least two columns of 0 and 1, at most one of them 1 in a row; in "
            f"{shown} {got}"
        )
