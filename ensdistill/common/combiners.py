"""The ways to combine the members of an ensemble into one distribution over classes."""

from __future__ import annotations

from typing import Literal, get_args

Combiner = Literal["prob", "logit", "log_prob"]
"""The mean is of probabilities, of logits, or of logarithms of probabilities (then normalised)."""
COMBINERS: tuple[Combiner, ...] = get_args(Combiner)
