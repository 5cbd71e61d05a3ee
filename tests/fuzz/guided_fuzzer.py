"""Malformed manifests, made by a fuzzer (atheris, which is libFuzzer) that looks for ways through the reader
not yet taken.

``python guided_fuzzer.py ROUNDS SEED``: as `cache_fuzzer.manifests`, of which it has the changes; its bytes
are their choices.
"""

import copy
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["ensdistill.cache"]):
    from cache_fuzzer import make, mutate, read, write_manifest

    from ensdistill.cache import CacheError


class Choices:
    """The methods of a random generator that `mutate` calls, on the fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = atheris.FuzzedDataProvider(data)

    def randrange(self, stop: int) -> int:
        return self.data.ConsumeIntInRange(0, stop - 1)

    def choice(self, items: Sequence[Any]) -> Any:
        return items[self.randrange(len(items))]


def main() -> None:
    rounds, seed = int(sys.argv[1]), int(sys.argv[2])
    os.fsync = lambda descriptor: None
    with tempfile.TemporaryDirectory(prefix="cache-fuzzer-") as place:
        caches = [Path(place) / "plain", Path(place) / "sequences"]
        for path, sequences in zip(caches, (False, True), strict=True):
            make(path, sequences)
        originals = [json.loads((path / "manifest.json").read_text()) for path in caches]
        records = [read(path) for path in caches]
        counted = {"fuzzed": 0, "refused": 0}

        def once(data: bytes) -> None:
            choices = Choices(data)
            which = choices.randrange(2)
            body = copy.deepcopy(originals[which])
            del body["checksum"]
            mutate(body, choices)
            write_manifest(caches[which], body)
            counted["fuzzed"] += 1
            try:
                found = read(caches[which])
            except CacheError:
                counted["refused"] += 1
            else:
                assert np.array_equal(found, records[which]), body
            if counted["fuzzed"] == rounds:
                print(json.dumps(counted), flush=True)  # the fuzzer ends the process, and nothing else is run

        # A round of five seconds is an error, and so is a process of 700 megabytes, which begins with some
        # 250.
        atheris.Setup(
            [
                sys.argv[0],
                f"-runs={rounds}",
                f"-seed={seed}",
                "-timeout=5",
                "-rss_limit_mb=700",
                "-max_len=200",
            ],
            once,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
