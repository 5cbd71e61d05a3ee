"""Writes a small cache slowly enough to be killed on the way: ``python cache_writer.py FOLDER``. Needs NumPy only."""

import sys
import time
from types import SimpleNamespace

import numpy as np

from ensdistill.cache import cache_targets
from ensdistill.data import Rows

N = 300
LOGITS = np.random.default_rng(0).normal(0, 4, (2, N, 10)).astype(np.float32)


def write(folder: str, pause: float = 0.0, version: int = 1) -> None:
    def predict(inputs: np.ndarray) -> np.ndarray:
        time.sleep(pause)
        return np.float32(version) * LOGITS[:, inputs[:, 0]]

    ensemble = SimpleNamespace(
        names=("a", "b"),
        classes=tuple("0123456789"),
        weights=np.array([0.6, 0.4]),
        combiner="prob",
        predict_logits=predict,
        fingerprint=lambda: {"members": ["a", "b"], "version": version},
    )
    numbers = np.arange(N)
    cache_targets(ensemble, Rows(numbers[:, None], numbers, numbers % 10), folder, shard_rows=64, batch_size=32, overwrite=True)


if __name__ == "__main__":
    print("ready", flush=True)
    write(sys.argv[1], pause=0.003)
