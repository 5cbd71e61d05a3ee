"""The errors of a target cache. All are ``ValueError``; each class stands for one remedy."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 10


class CacheError(ValueError):
    """Base of a cache's errors."""


class CacheCorrupt(CacheError):
    """The bytes are not those that were written: a flipped bit, a cut file. Build the cache again."""


class CacheIncomplete(CacheError):
    """The manifest or a shard is not there: the writer has not finished, or the folder was copied half."""


class CacheLocked(CacheError):
    """Another process is writing this cache."""


class CacheLossWarning(UserWarning):
    """Storing moved some row's distribution by a KL of more than 0.01 nats. The message names the codec."""


class CacheUntrusted(CacheError):
    """The cache names a class outside the package as its codec. Pass ``trusted=`` if you trust that class."""


class CacheMismatch(CacheError):
    """A sound cache of something else: other teachers, data, order, codec or format version.

    Parameters
    ----------
    message : str
    differences : sequence of str
        One line for each field that differs; the first ten are part of the message.
    """

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        self.differences = tuple(differences)
        lines = list(self.differences[:_SHOWN])
        if len(self.differences) > _SHOWN:
            lines.append(f"... and {len(self.differences) - _SHOWN} more fields")
        super().__init__("\n  ".join([message, *lines]))
