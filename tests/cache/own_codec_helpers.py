"""Caches in codecs of a user's own: the documented one, and those of more_codecs.py."""

import re
from pathlib import Path

from cache_helpers import digits

from ensdistill.cache import (
    cache_targets,
)

EXTENDING = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## Add a codec\n(.*?)(?=^## |\Z)", EXTENDING, re.MULTILINE | re.DOTALL)[1]
NIBBLES, USE = re.findall(r"^```python\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
KINDS = [
    ("Nibbles", None),
    ("Nibbles(depth=6.5)", None),
    ("Nibbles", 2.0),
    ("HalfLogProbs", 2.0),
    ("OneDraw", 1.0),
]
SMALL = {"shard_rows": 64, "batch_size": 50}


def path_of(name):
    return f"own_codecs.{name.partition('(')[0]}"


def make(folder, name, mixture_at, **options):
    return cache_targets(
        *digits(), folder, codec=f"own_codecs.{name}", mixture_at=mixture_at, **{**SMALL, **options}
    )
