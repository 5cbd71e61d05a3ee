"""Rows whose uids are any int64, and the settings of the caches that are made of them."""

import numpy as np
from cache_helpers import digits

from ensdistill.data import Rows

ROWS = 230
# Shuffled, with gaps, negative ones, and both ends of int64.
OWN = np.random.default_rng(7).permutation(np.arange(-100, 3 * ROWS - 100, 3))
OWN[[3, 77]] = np.iinfo(np.int64).min, np.iinfo(np.int64).max
EVERY = [
    ("uint8", None),
    ("fp16", None),
    ("bf16", None),
    ("fp32", None),
    ("uint8", 2.0),
    ("topk-9", 2.0),
    ("counts-200", 1.0),
]
SMALL = {"shard_rows": 64, "batch_size": 50}


def own_rows(uids=OWN):
    """Teachers that look a sample up by its place, and the samples with these uids."""
    teachers, rows = digits(ROWS)
    return teachers, Rows(rows.inputs, uids, rows.labels)
