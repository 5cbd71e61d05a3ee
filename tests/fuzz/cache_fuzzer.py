"""Damages caches at random, in a process whose memory and time are limited. ``python cache_fuzzer.py JOB
ROUNDS SEED``

- ``damages``: bits flipped, bytes cut off or added, anywhere in any file. Every damage must be found before a
  value is handed out.
- ``manifests``: JSON changed, with a right checksum. Refused, or a cache with the same records.
- ``shards``: headers and offsets changed, with right checksums. Refused, or records of the right size.
"""

import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import xxhash

from ensdistill import _shards
from ensdistill.cache import CacheError, TargetCache, cache_targets, convert
from ensdistill.cache.files.checked import _checksum, _text
from ensdistill.data import Rows

N, CLASSES = 90, 7
SECONDS, BYTES = 5, 1 << 28  # a round takes milliseconds, and the caches are of a few kilobytes
NASTY: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        64,
        2**31,
        2**53,
        2**62,
        2**63,
        10**30,
        -(10**30),
        0.5,
        1e308,
        True,
        False,
        None,
        "",
        "..",
        "/etc/passwd",
        "any",
    ),
    *("os.path.join", "a.B(c=1)", "a.B(" * 100, "a.B(c=" + "[" * 400, 5),
    *(
        "uint8",
        "fp32",
        "topk-3",
        "topk-9999999",
        "counts-255",
        "../../x",
        "\x00",
        "é" * 1000,
        [],
        {},
        [[]],
        [0] * 1000,
        {"a": {}},
    ),
)


def make(folder: Path, sequences: bool, first: int = 0, task: str = "classification") -> None:
    """A cache whose uids begin at ``first``; it keeps them where that is not 0."""
    logits = (
        np.random.default_rng(0)
        .normal(0, 3, (2, N, 5, CLASSES) if sequences else (2, N, CLASSES))
        .astype(np.float32)
    )
    teachers = SimpleNamespace(
        names=("a", "b"),
        classes=tuple("0123456"),
        weights=np.array([0.5, 0.5]),
        combiner="prob",
        task=task,
        predict_logits=lambda inputs: logits[:, inputs[:, 0]],
        predict_moments=lambda inputs: (logits[:, inputs[:, 0]], logits[:, inputs[:, 0]] ** 2),
        fingerprint=lambda: {"members": ["a", "b"], "nested": {"x": [1, 2, {"y": None}]}},
    )
    numbers = np.arange(N)
    lengths = numbers % 5 + 1 if sequences else None
    cache_targets(
        teachers,
        Rows(numbers[:, None], numbers + first, np.full(N, -100)),
        folder,
        shard_rows=32,
        lengths=lengths,
    )


def read(folder: Path) -> np.ndarray:
    cache = TargetCache.open(folder)
    uids = cache.uids
    cache.lengths(uids)
    (cache.gather_moments if cache.task == "regression" else cache.gather_logits)(uids[:3])
    return cache.gather_records(uids)


def damages(folder: Path, generator: random.Random, rounds: int) -> dict[str, int]:
    caches = [folder / name for name in ("plain", "sequences", "topk", "uids")]
    for cache, sequences in zip(caches[:2], (False, True), strict=True):
        make(cache, sequences)
    make(caches[3], sequences=False, first=-7)
    convert(caches[0], caches[2], codec="topk-3", mixture_at=2.0)
    files = [file for cache in caches for file in sorted(cache.iterdir()) if not file.name.startswith(".")]
    counted = {
        "damaged": rounds,
        "found": 0,
        "flipped": 0,
        "cut": 0,
        "extended": 0,
        "caches": len(caches),
        "files": len(files),
    }
    for _ in range(rounds):
        file = generator.choice(files)
        sound = file.read_bytes()
        data, kind = bytearray(sound), generator.random()
        if kind < 0.8:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            counted["flipped"] += 1
        elif kind < 0.95:
            data = data[: generator.randrange(len(data))]
            counted["cut"] += 1
        else:
            data += generator.randbytes(generator.randint(1, 100))
            counted["extended"] += 1
        signal.alarm(SECONDS)
        file.write_bytes(data)
        try:
            read(file.parent)
        except CacheError:
            counted["found"] += 1
        file.write_bytes(sound)
    for cache in caches:
        read(cache)
    return counted


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


def mutate(body: Any, generator: random.Random) -> None:
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        container, key = generator.choice(places(body))
        other, other_key = generator.choice(places(body))
        kind = generator.randrange(5)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container[key], int) and not isinstance(container[key], bool):
            container[key] += generator.choice((-1, 1, 8, 2**32, -container[key] * 2))
        elif kind == 2:
            container[key] = copy.deepcopy(other[other_key])
        else:
            container[key] = copy.deepcopy(generator.choice(NASTY))


def write_manifest(folder: Path, body: dict[str, Any]) -> None:
    (folder / "manifest.json").write_bytes(_text({**body, "checksum": _checksum(body)}))


def manifests(folder: Path, generator: random.Random, rounds: int) -> dict[str, int]:
    caches = [folder / name for name in ("plain", "sequences", "uids", "labels", "moments")]
    for path, sequences, first in zip(caches[:3], (False, True, False), (0, 0, -7), strict=True):
        make(path, sequences, first)
    for path, task in zip(caches[3:], ("multilabel", "regression"), strict=True):
        make(path, sequences=False, task=task)
    originals = [json.loads((path / "manifest.json").read_text()) for path in caches]
    records, refused = [read(path) for path in caches], 0
    for _ in range(rounds):
        which = generator.randrange(len(caches))
        body = copy.deepcopy(originals[which])
        del body["checksum"]
        mutate(body, generator)
        signal.alarm(SECONDS)
        write_manifest(caches[which], body)
        try:
            found = read(caches[which])
        except CacheError:
            refused += 1
        else:
            assert np.array_equal(found, records[which]), body
    return {"fuzzed": rounds, "refused": refused}


def shards(folder: Path, generator: random.Random, rounds: int) -> dict[str, int]:
    make(folder, sequences=True)
    original = json.loads((folder / "manifest.json").read_text())
    del original["checksum"]
    file = folder / "shard-00001.safetensors"
    sound, refused = file.read_bytes(), 0
    begin = 8 + int.from_bytes(sound[:8], "little")
    entry = original["shards"][1]
    end = begin + entry["records"] * original["record"]["bytes"] + 8 * (entry["rows"] + 1)
    for _ in range(rounds):
        data = bytearray(sound)
        for _ in range(generator.choice((1, 1, 2, 8))):
            # Mostly among the numbers that are places of other bytes: in the header, and the offsets.
            at = generator.choice(
                (
                    generator.randrange(16),
                    generator.randrange(begin),
                    generator.randrange(end - 8 * (entry["rows"] + 1), end),
                )
            )
            data[at : at + 1] = generator.choice(
                (generator.randbytes(1), generator.randbytes(1), b"\xff", b"\x00")
            )
        table = _shards.checksums(bytes(data[begin:end]), original["block_bytes"]).astype("<u4").tobytes()
        data[end:] = table
        body = copy.deepcopy(original)
        body["shards"][1] |= {
            "hash": xxhash.xxh3_128_hexdigest(bytes(data)),
            "blocks": xxhash.xxh3_128_hexdigest(table),
        }
        signal.alarm(SECONDS)
        file.write_bytes(data)
        write_manifest(folder, body)
        try:
            found = read(folder)
        except CacheError:
            refused += 1
        else:
            assert len(found) == sum(shard["records"] for shard in original["shards"])
    return {"fuzzed": rounds, "refused": refused}


def main() -> None:
    job, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    folder = Path(tempfile.mkdtemp(prefix="cache-fuzzer-"))
    os.fsync = lambda descriptor: None  # nothing here outlives the process
    try:
        make(folder / "first", sequences=True)  # everything imported, before memory is limited
        read(folder / "first")
        now = (
            int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            if sys.platform == "linux"
            else 0
        )
        if now:
            resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, resource.RLIM_INFINITY))
        work = {"damages": damages, "manifests": manifests, "shards": shards}[job]
        print(json.dumps(work(folder / "fuzzed", random.Random(seed), rounds)))
    finally:
        signal.alarm(0)  # of the last round: on a busy machine the end of a process may take as long
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
