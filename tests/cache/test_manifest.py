"""Changed manifests: refused with the field's name, or harmless."""

import json
import os
import shutil

import pytest
from cache_helpers import rewrite
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ensdistill.cache import (
    CacheCorrupt,
    CacheError,
    CacheMismatch,
    TargetCache,
)
from ensdistill.cache.manifest import shard_header

CONVERTED = {"from": "uint8", "kl": {"max": 0.0}}


def test_a_newer_format_is_refused_even_if_its_checksum_is_made_differently(copy):
    text = (copy / "manifest.json").read_text().replace('"format_version": 3', '"format_version": 7')
    (copy / "manifest.json").write_text(text)
    with pytest.raises(CacheMismatch, match="format_version 7, but this ensdistill reads up to 6; upgrade"):
        TargetCache.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["shards"][0].update(file="../shard-00000.safetensors"),
            r"shards\[0\]: expected .*got .*\.\./shard",
        ),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), r"shards\[0\]"),
        (lambda m: m["shards"][1].update(rows=10**15), r"shards\[1\]"),
        (lambda m: m["shards"].pop(), "shards: expected 4 shards"),
        (lambda m: m.update(rows=10**18), "shards: expected 15625000000000000 shards"),
        (lambda m: m.update(rows=-1), "rows: expected a positive integer; got -1"),
        (lambda m: m.update(shard_rows=10**18), "shards: expected 1 shards"),
        (lambda m: m.update(shard_rows=True), "shard_rows: expected a positive integer; got True"),
        (lambda m: m.update(codec="pickle"), "codec: expected one of"),
        (lambda m: m.update(codec=["uint8"]), "codec: expected one of"),
        (lambda m: m.update(codec="fp32"), "record: expected the layout of its codec"),
        (
            lambda m: m.update(codec="topk-3"),
            "temperature: expected a number, because topk-3 holds a mixture",
        ),
        (
            lambda m: m.update(codec="topk-30", temperature=1.0),
            "codec: topk-30 needs at least 30 classes; got 10",
        ),
        (lambda m: m.update(temperature=0), "temperature: expected 'any' or a number above 0; got 0"),
        (lambda m: m.update(views=2), "shards: expected 8 shards"),
        (lambda m: m.update(views=10**18), "shards: expected 4000000000000000000 shards"),
        (lambda m: m.update(sequences=True), r"shards\[0\]: expected .*'bytes'"),
        (lambda m: m.update(block_bytes=1), "block_bytes: expected 65536; got 1"),
        (lambda m: m["shards"][2].pop("blocks"), r"shards\[2\]: expected"),
        (lambda m: m.update(members=["a"] * 10**6), "weights: expected 1000000 numbers"),
        (
            lambda m: m.update(weights=[0, 0, 0]),
            "weights: expected a list of non-negative numbers with a positive sum",
        ),
        (lambda m: m["record"].update(bytes=10**18), r"shards\[0\]: expected"),
        (lambda m: m.update(combiner="vote"), "combiner: expected one of"),
        (lambda m: m.update(statistics={}), "statistics: expected"),
        (lambda m: m.update(floor=-1.0), "floor: expected null or a number above 0; got -1.0"),
        (lambda m: m.pop("floor"), "floor: expected null or a number above 0; the field is missing"),
        (
            lambda m: (m.update(floor=None), m["statistics"]["members"]["a"].update(floored=3)),
            "floor: expected a number, because",
        ),
        (lambda m: m["statistics"]["members"]["a"].update(floored=-3), "statistics: expected"),
        (lambda m: m["statistics"]["members"]["a"].update(floored="3"), "statistics: expected"),
        (lambda m: m["fingerprint"].update(derived=5), "fingerprint: expected an object, whose derived"),
        (lambda m: m["fingerprint"].update(derived=[5]), "fingerprint: expected an object, whose derived"),
        (
            lambda m: m["fingerprint"].update(derived=[{"add": 5}]),
            "fingerprint: expected an object, whose derived",
        ),
        (
            lambda m: m["fingerprint"].update(derived=[{"convert": {"from": "uint8"}}]),
            "fingerprint: expected an object, whose derived",
        ),
        (
            lambda m: m["fingerprint"].update(derived=[{"convert": CONVERTED | {"from": 5}}]),
            "fingerprint: expected an object, whose derived",
        ),
        (
            lambda m: m["fingerprint"].update(derived=[{"convert": CONVERTED | {"floor": "1"}}]),
            "fingerprint: expected an object, whose",
        ),
        (lambda m: m["statistics"]["members"]["a"].update(bins=[[0]]), "statistics: expected"),
        (lambda m: m.update(format="other"), "format: expected 'ensdistill-target-cache'; got 'other'"),
        (lambda m: m.update(colour="red"), r"unknown fields \['colour'\]"),
        (lambda m: m.pop("classes"), "classes: expected a list of names; the field is missing"),
    ],
)
def test_a_malformed_manifest_with_a_right_checksum(copy, change, message):
    rewrite(copy, change)
    with pytest.raises(CacheCorrupt, match=message):
        TargetCache.open(copy)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"rows": ' + b"9" * 10_000 + b"}",
        b'{"rows": NaN}',
    ],
)
def test_not_a_manifest_at_all(copy, text):
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(CacheCorrupt, match="manifest"):
        TargetCache.open(copy)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_json_in_any_field_is_refused_or_harmless(original, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzzed")
    for file in original.glob("shard-*"):
        os.link(file, folder / file.name)
    shutil.copy(original / "manifest.json", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    field = data.draw(st.sampled_from(sorted(manifest.keys() - {"checksum"})))
    value = data.draw(JSON)
    assume(json.dumps(value) != json.dumps(manifest[field]))
    rewrite(folder, lambda m: m.update({field: value}))
    try:
        TargetCache.open(folder, check="full")
    except CacheError:
        pass
    else:  # these fields are data about the targets, not their sizes or places
        assert field in (
            "fingerprint",
            "members",
            "classes",
            "weights",
            "combiner",
            "statistics",
            "seed",
            "floor",
        )


def test_a_header_that_lies_is_refused_even_with_a_right_hash(copy):
    import xxhash

    shard = copy / "shard-00000.safetensors"
    manifest = TargetCache.open(copy).manifest
    header = shard_header(manifest, 0, 64)
    lie = header.replace(b'"shape":[64', b'"shape":[63')
    data = shard.read_bytes().replace(header, lie)
    shard.write_bytes(data)
    rewrite(copy, lambda m: m["shards"][0].update(hash=xxhash.xxh3_128_hexdigest(data)))
    with pytest.raises(CacheCorrupt, match="the header does not describe the records"):
        TargetCache.open(copy).gather([0])


def test_the_fingerprint_must_be_that_of_the_records(copy):
    rewrite(copy, lambda m: m["fingerprint"]["inputs"].update(hash="0" * 32))
    TargetCache.open(copy).gather([0])
    with pytest.raises(CacheCorrupt, match=r"fingerprint\.inputs"):
        TargetCache.open(copy, check="full")
