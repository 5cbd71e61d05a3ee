"""What can be wrong with a target cache. All are ``ValueError``; the kind says what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 10


class CacheError(ValueError):
    """Base of everything that a cache refuses."""


class CacheCorrupt(CacheError):
    """Bytes on disk are not what was written: a flipped bit, a cut file, a malformed manifest. Build the cache again."""


class CacheIncomplete(CacheError):
    """The manifest or a shard is not there: the writer has not finished, or the folder was copied half."""


class CacheLocked(CacheError):
    """Another process is writing this cache."""


class CacheLossWarning(UserWarning):
    """Storing moved some row's distribution notably: a KL of more than 0.01 nats. The message names the codec."""


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
