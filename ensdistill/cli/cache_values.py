"""Values of the words of ``ensdistill cache``, read from their text."""

from __future__ import annotations

import argparse


def share_of(text: str) -> float:
    """Return a share in (0, 1] of a number, or of a percentage."""
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a share of the samples such as 0.1% or 0.001; got {text!r}"
        )
    return found


def weight_of(text: str) -> tuple[str, float]:
    """Return the member and the number of MEMBER=WEIGHT."""
    name, _, number = text.rpartition("=")
    try:
        return (name, float(number)) if name else (_ for _ in ()).throw(ValueError)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected MEMBER=WEIGHT, such as forest=0.5; got {text!r}"
        ) from None
