"""Up to which temperature a cache's members have all classes that matter.

A class that is masked by a large finite number (-1e4) would stretch the 255 steps of a ``uint8`` row until
they are wider than the differences that matter. So ``uint8`` stores logits deeper than the manifest's
``floor`` as ``-inf``, and ``fp16``, which ends at -65504, clamps them there; `Codec.floor` returns that
depth. At a temperature T such a class has a share of at most exp(-floor / T). The floor is chosen for the
largest T that the cache is made for. If any row had logits below it, a higher T is refused.

The log-odds of a label have two ends, so the floor of multi-label members is a distance from 0, and log-odds
beyond it are stored there. Regression has none.
"""

from __future__ import annotations

from ensdistill.cache.codecs import Codec, largest_share_distance
from ensdistill.cache.manifest import Manifest, conversions

TEMPERATURE = 10.0
"""The largest temperature that a cache is made for by default."""


def floor_of(codec: Codec, plan: Manifest, max_temperature: float) -> float | None:
    """The floor of a cache of this plan, for temperatures up to ``max_temperature``; None where it has none.

    Examples
    --------
    >>> from ensdistill.cache.codecs import codec_of
    >>> plan = {"temperature": "any", "classes": ["a", "b"], "combiner": "prob"}
    >>> round(floor_of(codec_of("uint8"), plan, 1.0)), round(floor_of(codec_of("uint8"), plan, 10.0))
    (71, 167)
    """
    return codec.floor(len(plan["classes"]), plan["combiner"], plan["temperature"] != "any", max_temperature)


def floor_in_use(manifest: Manifest) -> float | None:
    """The floor that bounds the temperature: the highest one below which a row of a member had logits.

    None where no row had any.
    """
    if manifest["temperature"] != "any":
        return None
    steps = [step for name in manifest["members"] for step in conversions(manifest, name)]
    floors = [floor for step in steps if (floor := step.get("floor"))]
    if any(part.get("floored") for part in manifest["statistics"]["members"].values()):
        floors.append(manifest["floor"])
    return min(floors, default=None)


def largest_temperature(manifest: Manifest) -> float | None:
    """The largest temperature at which every class with a share has a code; None where there is no limit."""
    floor = floor_in_use(manifest)
    return None if floor is None else floor / largest_share_distance(len(manifest["classes"]))
