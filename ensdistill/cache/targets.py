"""The targets that records hold, as the loss of their task takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import Codec, Fields
from ensdistill.cache.standard import Standard

if TYPE_CHECKING:
    from ensdistill.loss.targets import Moments, Targets


def targets_from(plan: m.Manifest, codec: Codec, fields: Fields) -> Targets | Moments:
    """The targets in the fields of N records of a cache with this plan or manifest."""
    temperature = None if plan["temperature"] == "any" else float(plan["temperature"])
    weights = np.array(plan["weights"], np.float64)
    standard = Standard.of(plan)
    if standard is None:
        return codec.target(fields, m.width_of(plan), weights, plan["combiner"], temperature)
    import torch

    from ensdistill.loss.targets import Moments

    values = np.ascontiguousarray(codec.decode(fields, m.width_of(plan)), np.float32)
    mean, variance = standard.split(torch.from_numpy(values.swapaxes(0, 1)))
    return Moments(mean, variance, torch.from_numpy(weights) if temperature is None else None)
