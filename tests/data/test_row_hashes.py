"""The compiled hash of rows against the package xxhash, and hashes of tables against their definition."""

import numpy as np
import pandas as pd
import pytest
import xxhash

from ensdistill.data.batches import hashes
from ensdistill.data.batches import row_hashes as module
from ensdistill.data.batches.row_hashes import one_by_one, row_hashes

# Every branch of XXH3: up to 16, 128 and 240 bytes, and blocks of 1024 with a remainder.
WIDTHS = [*range(0, 330), 511, 512, 513, 1023, 1024, 1025, 1087, 1088, 1089, 2048, 2049, 3001]
SEEDS = [0, 1, 0x9E3779B185EBCA87, 2**64 - 1]


def test_the_compiled_hash_equals_the_package_xxhash():
    assert module._native is not None
    generator = np.random.default_rng(0)
    for width in WIDTHS:
        rows = generator.integers(0, 256, (3, width), np.uint8)
        for seed in SEEDS:
            found = row_hashes(rows, seed)
            assert found.dtype == np.dtype("<u8")
            assert found.tolist() == [xxhash.xxh3_64_intdigest(row.tobytes(), seed) for row in rows], width


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.complex128, "U3", "M8[ns]", ">f8"])
def test_rows_of_any_dtype_and_order_are_hashed_by_their_bytes(dtype):
    rows = np.arange(60).reshape(5, 3, 4).astype(dtype)
    expected = [xxhash.xxh3_64_intdigest(row.tobytes(), 3) for row in rows]
    for same in (rows, np.asfortranarray(rows), np.repeat(rows, 2, 0)[::2]):
        assert row_hashes(same, 3).tolist() == expected
    flat = np.ascontiguousarray(rows[:, 0, 0])
    assert row_hashes(flat, 3).tolist() == row_hashes(flat[:, None], 3).tolist()
    assert row_hashes(rows[:0], 3).shape == (0,)
    assert len(set(row_hashes(rows[:, :0], 3).tolist())) == 1


def test_without_the_extension_the_hashes_are_the_same(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((4, 9))
    expected = row_hashes(rows, 11)
    monkeypatch.setattr(module, "_native", None)
    np.testing.assert_array_equal(row_hashes(rows, 11), expected)
    np.testing.assert_array_equal(one_by_one(rows.view(np.uint8), 11), expected)


def by_definition(frame: pd.DataFrame, types: dict[str, str]) -> list[int]:
    """Each value as the bits of a float64 or int64, in the order of the names; one number for a gap."""
    names = sorted(types)
    seed = xxhash.xxh3_64_intdigest("\0".join(f"{name}\1{types[name]}" for name in names).encode())
    gap = np.uint64(xxhash.xxh3_64_intdigest(b"missing")).tobytes()
    found = []
    for _, row in frame.iterrows():
        parts = []
        for name in names:
            value = row[name]
            if types[name] == "float":
                parts.append(gap if value != value else np.float64(value).tobytes())
            elif types[name] == "text":
                parts.append(np.uint64(xxhash.xxh3_64_intdigest(value.encode())).tobytes())
            else:
                parts.append(np.array(int(value) & (2**64 - 1), np.uint64).tobytes())
        found.append(xxhash.xxh3_64_intdigest(b"".join(parts), seed))
    return found


@pytest.mark.parametrize("kind", ["alike", "alike, other order", "unlike", "with text"])
def test_a_tables_hashes_are_those_of_their_definition(kind):
    floats = pd.DataFrame(
        {name: np.array([0.5, np.nan, -0.0], np.float32) * i for i, name in enumerate("abcd", 1)}
    )
    types = dict.fromkeys("abcd", "float")
    frame = floats if kind == "alike" else floats[list("dbca")]
    if kind in ("unlike", "with text"):
        frame = frame.assign(
            B=np.array([1, -1, 2**40]),
            C=np.array([True, False, True]),
            u=np.array([2**64 - 1, 0, 7], np.uint64),
        )
        types |= {"B": "integer", "C": "boolean", "u": "integer"}
    if kind == "with text":
        frame, types = frame.assign(t=["x", "é", ""]).astype({"a": np.float64}), types | {"t": "text"}
    objects = frame.astype(object)  # so that a row keeps each column's own type
    assert hashes(frame).tolist() == by_definition(objects, types)
