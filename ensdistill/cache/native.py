"""Loads the shard reader, which needs no torch. Without it the import fails and names the remedy."""

from __future__ import annotations

import importlib
from typing import Any

try:
    shards: Any = importlib.import_module("ensdistill._shards")
except ImportError as error:
    raise ImportError(
        f"ensdistill's shard reader is missing or doesn't load ({error}). Build it with a C++17 compiler: "
        "`make setup` in a checkout, or `pip install --no-build-isolation .` with torch already installed."
    ) from error
