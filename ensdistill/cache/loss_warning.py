"""The warning about a cache whose storing moved a row's distribution notably."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from ensdistill.cache.codecs import Codec
from ensdistill.cache.errors import CacheLossWarning
from ensdistill.cache.manifest import Manifest, kl_before

NOTABLE_KL = 0.01
"""Nats that storing may cost any row without a warning."""


def warn_of_loss(path: Path, manifest: Manifest, codec: Codec) -> None:
    """Warn where storing cost a row more than `NOTABLE_KL`, unless the codec needs no such warning."""
    worst = largest_kl(manifest)
    if worst <= NOTABLE_KL or codec.lossy_advice is None:
        return
    mean = manifest["statistics"]["kl"]["mean"]
    warnings.warn(
        f"{path}: storing with codec {codec.name!r} cost a row a KL of {worst:.2g} nats, which is more than "
        f"{NOTABLE_KL:g} (the mean row {mean:.1g}). {codec.lossy_advice}; max_kl= refuses such rows",
        CacheLossWarning,
        stacklevel=_caller(),
    )


def largest_kl(manifest: Manifest) -> float:
    """The largest cost of storing a row, in nats, with the cost of the caches that this one was made from."""
    spent = kl_before(manifest)
    spent["mixture"] = max(spent.values())
    return max(part["max"] + spent.get(name, 0.0) for name, part in manifest["statistics"]["members"].items())


def _caller() -> int:
    """The stack level, for `warnings.warn` in the caller, of the first frame outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ensdistill."):
        frame, level = frame.f_back, level + 1
    return level
