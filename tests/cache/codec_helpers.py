"""Logits through a codec without a cache."""

import numpy as np

from ensdistill.cache.codecs import codec_of, record_of
from ensdistill.cache.encoding import Encoder
from ensdistill.cache.plan import make_plan


def stored(codec, logits, **options):
    """Logits [N, K, C] as a reader gets them, through the bytes of a record and back; and the KL [N, K] that
    the writer measured."""
    n, k, c = logits.shape
    settings = {"mixture_at": None, "weights": np.full(k, 1 / k), "combiner": "prob", "seed": 0, **options}
    codec = codec_of(codec, settings.get("task", "classification"))
    names = names_of(k)
    classes = names_of(c if "standard" not in settings else len(settings["standard"].location))
    plan = make_plan(
        members=names,
        classes=classes,
        codec=codec,
        rows=n,
        views=1,
        sequences=False,
        shard_rows=n,
        **settings,
    )
    place = record_of(codec, k if settings["mixture_at"] is None else 1, c)
    records = np.zeros((n, place.bytes), np.uint8)
    views = place.views(records)
    fields, costs = Encoder(plan, codec)(np.ascontiguousarray(logits.swapaxes(0, 1)), 0, np.arange(n), None)
    for name, value in fields.items():
        views[name][:] = value
    return codec.decode(views, c), views, np.stack([cost.kl for cost in costs.values()], axis=1)


def names_of(count):
    return [str(i) for i in range(count)]
