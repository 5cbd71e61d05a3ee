"""Times of members' predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensdistill.teachers.members import Member
from ensdistill.teachers.members.inputs import count
from ensdistill.teachers.predict import named


def member_seconds(members: Sequence[Member], inputs: Any, repeats: int) -> np.ndarray:
    """Seconds of each member's prediction for ``inputs``: the median of ``repeats``, float64 [K]."""
    for member in members:  # first calls load code and fill caches
        _seconds(member, inputs)
    return np.median([[_seconds(member, inputs) for member in members] for _ in range(repeats)], axis=0)


def _seconds(member: Member, inputs: Any) -> float:
    start = time.perf_counter()
    with named(member.name, count(inputs)):
        member.predict_logits(inputs)
    return time.perf_counter() - start
