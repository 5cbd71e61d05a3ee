"""Versions of a sample that are the same for teacher and student, in any process and any order.

A version is drawn from a counter-based generator keyed by (seed, uid, view): earlier draws do not change it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.common.source import source_digest
from ensdistill.data.augmentation import Augmentation, Versioned, apply_to


def view_inputs(augment: Augmentation, inputs: Any, uids: np.ndarray, view: int, seed: int) -> Any:
    """The samples' version ``view``.

    Parameters
    ----------
    augment : Augmentation
    inputs : ndarray or Tensor [N, ...], or list of N images
        Of any dtype that the augmentation takes, uint8 among them. Images in a list may differ in size.
    uids : ndarray [N], int64
        Whose samples they are.
    view : int
        From 0 to the number of views - 1; in epoch e a student takes e mod views.
    seed : int
        From 0 to 2**63 - 1.

    Returns
    -------
    as ``inputs``

    Raises
    ------
    TypeError
        Samples of another kind.

    Examples
    --------
    >>> from ensdistill.data.augmentation import ShiftImages
    >>> images = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3)
    >>> both = view_inputs(ShiftImages(1), images, np.array([5, 9]), view=1, seed=0)
    >>> one = view_inputs(ShiftImages(1), images[1:], np.array([9]), view=1, seed=0)
    >>> np.array_equal(both[1:], one)
    True
    """
    if not len(uids):
        return inputs
    if isinstance(augment, Versioned):
        return augment.version(inputs, uids, view, seed)
    draws = np.concatenate([augment.draw(1, _generator(seed, int(uid), view)) for uid in uids])
    return apply_to(augment, inputs, draws)


def describe_views(augment: Augmentation, views: int, seed: int) -> dict[str, Any]:
    """The augmentation, its code's digest, the seed and the number of views, as JSON."""
    return {"augment": repr(augment), "code": source_digest(type(augment)), "seed": seed, "views": views}


def _generator(seed: int, uid: int, view: int) -> np.random.Generator:
    # Philox draws with the lowest word of its counter: another view never uses these numbers.
    return np.random.Generator(
        np.random.Philox(
            key=np.array([seed, uid % 2**64], np.uint64), counter=np.array([0, 0, 0, view], np.uint64)
        )
    )
