"""The plan of a cache: the fields of its manifest that are set before the members run."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.cache import manifest as m
from ensdistill.cache.codecs import Codec, codec_of
from ensdistill.cache.floors import TEMPERATURE, floor_of
from ensdistill.cache.standard import Standard
from ensdistill.cache.uids import entry_of
from ensdistill.common.combiners import COMBINERS
from ensdistill.common.scalars import check_temperature
from ensdistill.common.tasks import Task


def make_plan(
    *,
    members: list[str],
    weights: Any,
    combiner: str,
    classes: list[str],
    codec: str | Codec | None,
    mixture_at: float | None,
    rows: int,
    views: int,
    sequences: bool,
    shard_rows: int,
    seed: int,
    max_temperature: float = TEMPERATURE,
    uids: np.ndarray | None = None,
    task: Task = "classification",
    standard: Standard | None = None,
) -> m.Manifest:
    """The fields of the manifest that are set before the members run, without the fingerprint.

    A plan of regression without a ``standard`` lacks its fields and the record; `with_standard` adds them.
    """
    weights, codec = np.asarray(weights), codec_of(codec, task)
    for name, value in (("names", members), ("classes", classes)):
        if not value or not all(isinstance(one, str) for one in value):
            raise ValueError(f"ensemble.{name}: expected strings, at least one; got {value!r}")
    if len(set(members)) != len(members):
        raise ValueError(f"ensemble.names: expected different names; got {members!r}")
    if weights.dtype != np.float64 or weights.shape != (len(members),):
        raise ValueError(
            f"ensemble.weights: expected float64 [{len(members)}] (members); got {weights.dtype} "
            f"{list(weights.shape)}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise ValueError(
            f"ensemble.weights: expected finite, non-negative and with a positive sum; got {weights.tolist()}"
        )
    if combiner not in COMBINERS:
        raise ValueError(f"ensemble.combiner: expected one of {list(COMBINERS)}; got {combiner!r}")
    if codec.mixture_only and mixture_at is None:
        raise ValueError(
            f"mixture_at: expected a temperature, because {codec.name} holds the mixture at one only; got "
            "None"
        )
    if mixture_at is not None:
        check_mixture_at(mixture_at, task)
    if sequences and task == "regression":
        raise ValueError(
            "lengths: expected None, because predictions of regressors have no positions; got some"
        )
    check_temperature("max_temperature", max_temperature)
    plan = {
        "format": m.FORMAT,
        "format_version": 0,  # set below, for its place in the file
        **({} if task == "classification" else {"task": task}),
        "codec": codec.name,
        "seed": seed if codec.seeded else None,
        "rows": rows,
        **({} if uids is None else {"uids": entry_of(uids)}),
        "members": members,
        "weights": weights.tolist(),
        "combiner": combiner,
        "classes": classes,
        "temperature": "any" if mixture_at is None else float(mixture_at),
        "views": views,
        "sequences": sequences,
        "shard_rows": shard_rows,
        "block_bytes": m.BLOCK_BYTES,
    }
    plan["format_version"] = m.format_version_of(plan)
    plan |= {"floor": floor_of(codec, plan, max_temperature), "record": None}
    if task == "regression":
        return plan if standard is None else with_standard(plan, codec, standard)
    return {**plan, "record": m.record_for(codec, plan).describe()}


def with_standard(plan: m.Manifest, codec: Codec, standard: Standard) -> m.Manifest:
    """The plan of regression with the fields that follow from the members' predictions, after the classes."""
    whole: m.Manifest = {}
    for field, value in plan.items():
        whole |= {field: value} if field != "classes" else {field: value, **standard.fields()}
    return {**whole, "record": m.record_for(codec, whole).describe()}


def check_mixture_at(mixture_at: float, task: Task) -> None:
    """Raise where a mixture of this task cannot be formed at this temperature."""
    check_temperature("mixture_at", mixture_at)
    if task == "regression" and mixture_at != 1:
        raise ValueError(
            f"mixture_at: expected 1.0 or None, because moments of regressors have no temperature; got "
            f"{mixture_at:g}"
        )
