"""How far below its row's largest a logit still has a code, and up to which temperature no class is missed that has none.

A class that is masked by a large finite number (-1e4) would stretch the 255 steps of a uint8 row until they are wider than the
differences that matter. So ``uint8`` stores logits deeper than the manifest's ``floor`` as ``-inf``, and ``fp16``, which ends at -65504,
stores them as that. At a temperature T such a class has a share of at most exp(-floor / T); the floor is chosen for the largest T that
the cache is made for, and a higher T is refused, if any row needed it.

=====================  ====================================================================================================
codec                  floor
=====================  ====================================================================================================
uint8, of members      max(71, T (ln C + 16)): all classes below it have less than exp(-16) = 1e-7 of the mass at T
uint8, of a mixture    71, of its log-probabilities
fp16                   65504
bf16, fp32             none is needed
=====================  ====================================================================================================

Within 71 the error of ``uint8`` is a KL of at most 71^2 / 516128 = 0.01, so a row is never made shorter than that.

Where members' logits are averaged (the combiners ``logit`` and ``log_prob``) a class far below one member's likeliest may be the likeliest
of all, because another member is surer still. There ``uint8`` has no floor, and its KL tells what a wide row cost; ``fp16`` refuses rows
that are too wide for it.
"""

from __future__ import annotations

import math

from ensdistill.cache.manifest import Manifest, conversions

TEMPERATURE = 10.0
"""The largest temperature that a cache is made for by default."""
HALF = 65504.0
_LEAST, _UNSEEN = 71.0, 16.0


def floor_of(plan: Manifest, max_temperature: float) -> float | None:
    """The floor of a cache of this plan, for temperatures up to ``max_temperature``; None where it has none.

    Examples
    --------
    >>> plan = {"codec": "uint8", "temperature": "any", "classes": ["a", "b"], "combiner": "prob"}
    >>> round(floor_of(plan, 1.0)), round(floor_of(plan, 10.0))
    (71, 167)
    """
    if plan["codec"] == "fp16":
        return HALF
    if plan["codec"] != "uint8":
        return None
    if plan["temperature"] != "any":
        return _LEAST
    return max(_LEAST, float(max_temperature) * _distance(plan)) if plan["combiner"] == "prob" else None


def floor_in_use(manifest: Manifest) -> float | None:
    """The floor that bounds the temperature: the highest below which some row of a member had logits; None where there is no such row."""
    if manifest["temperature"] != "any":
        return None
    floors = [floor for name in manifest["members"] for step in conversions(manifest, name) if (floor := step.get("floor"))]
    if any(part.get("floored") for part in manifest["statistics"]["members"].values()):
        floors.append(manifest["floor"])
    return min(floors, default=None)


def largest_temperature(manifest: Manifest) -> float | None:
    """The largest temperature at which no class is missed that has a share; None where there is no such limit."""
    floor = floor_in_use(manifest)
    return None if floor is None else floor / _distance(manifest)


def _distance(plan: Manifest) -> float:
    """How far below the largest a class has to be at T = 1 to have no share."""
    return math.log(len(plan["classes"])) + _UNSEEN
