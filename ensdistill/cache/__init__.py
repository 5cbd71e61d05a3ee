"""Targets on disk: run the teachers once, and train any number of students, in any order.

Importing this needs NumPy only; torch is loaded when a target is gathered as tensors, or written.
"""

from ensdistill.cache.codecs import Batch, Codec, Encoded
from ensdistill.cache.derive import add_member, convert, drop_member, reweight
from ensdistill.cache.errors import (
    CacheCorrupt,
    CacheError,
    CacheIncomplete,
    CacheLocked,
    CacheLossWarning,
    CacheMismatch,
    CacheUntrusted,
)
from ensdistill.cache.fingerprint import input_hashes
from ensdistill.cache.reader import TargetCache
from ensdistill.cache.writer import cache_targets

__all__ = [
    "Batch",
    "CacheCorrupt",
    "CacheError",
    "CacheIncomplete",
    "CacheLocked",
    "CacheLossWarning",
    "CacheMismatch",
    "CacheUntrusted",
    "Codec",
    "Encoded",
    "TargetCache",
    "add_member",
    "cache_targets",
    "convert",
    "drop_member",
    "input_hashes",
    "reweight",
]
