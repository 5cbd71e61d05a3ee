"""The warning about a cache whose storing moved a row's distribution notably."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from ensdistill.cache.codecs import Codec
from ensdistill.cache.errors import CacheLossWarning
from ensdistill.cache.manifest import Manifest, cost_before, measure_of

NOTABLE = 0.01
"""Nats that storing may cost any row without a warning, or of regression the error in units of the spread."""


def warn_of_loss(path: Path, manifest: Manifest, codec: Codec) -> None:
    """Warn where storing cost a row more than `NOTABLE`, unless the codec needs no such warning."""
    worst, measure = largest_cost(manifest), measure_of(manifest)
    if worst <= NOTABLE or codec.lossy_advice is None:
        return
    mean = manifest["statistics"][measure]["mean"]
    cost = f"a KL of {worst:.2g} nats" if measure == "kl" else f"an error of {worst:.2g} of the spread"
    warnings.warn(
        f"{path}: storing with codec {codec.name!r} cost a row {cost}, which is more than "
        f"{NOTABLE:g} (the mean row {mean:.1g}). {codec.lossy_advice}; max_{measure}= refuses such rows",
        CacheLossWarning,
        stacklevel=_caller(),
    )


def largest_cost(manifest: Manifest) -> float:
    """The largest cost of storing a row, with the cost of the caches that this one was made from."""
    spent = cost_before(manifest)
    spent["mixture"] = max(spent.values())
    return max(part["max"] + spent.get(name, 0.0) for name, part in manifest["statistics"]["members"].items())


def _caller() -> int:
    """The stack level, for `warnings.warn` in the caller, of the first frame outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ensdistill."):
        frame, level = frame.f_back, level + 1
    return level
