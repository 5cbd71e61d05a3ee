"""Batches: some samples in memory, in the container that the user has them in; one file for each kind of
container."""

from ensdistill.data.batches import arrays, fields, images, tables, texts
from ensdistill.data.batches.kind import (
    KINDS,
    Kind,
    count,
    describe,
    hashes,
    join,
    kind_of,
    register,
    take,
    unlike,
)

__all__ = [
    "KINDS",
    "Kind",
    "arrays",
    "count",
    "describe",
    "fields",
    "hashes",
    "images",
    "join",
    "kind_of",
    "register",
    "tables",
    "take",
    "texts",
    "unlike",
]
