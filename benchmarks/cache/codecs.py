"""Bytes, error and speed of every codec, on what real networks say of images they have not seen: two digits side by side, 100 classes."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from benchmarks.cache.stores import remove
from ensdistill.cache import cache_targets
from ensdistill.data import Rows

CODECS: tuple[tuple[str, float | None], ...] = (
    ("fp32", None),
    ("fp16", None),
    ("bf16", None),
    ("uint8", None),
    ("uint8", 2.0),
    ("topk-8", 2.0),
    ("topk-32", 2.0),
    ("counts-50", 2.0),
)
MEMBERS, PAIRS = 4, 6000


def pairs(images: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two digits beside each other, float32 [count, 128], and which of the 100 pairs it is."""
    one, two = np.random.default_rng(seed).integers(0, len(images), (2, count))
    return np.concatenate([images[one], images[two]], 1), labels[one] * 10 + labels[two]


def teachers(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [members, pairs, 100] of networks on pairs that none was trained on, and the inputs."""
    data, labels = load_digits(return_X_y=True)
    images = (data / 16).astype(np.float32)
    inputs, _ = pairs(images[1000:], labels[1000:], PAIRS, seed=0)
    logits = []
    for member in range(MEMBERS):
        torch.manual_seed(member)
        model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 100))
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for step in range(steps):
            x, y = pairs(images[:1000], labels[:1000], 256, seed=1000 * member + step)
            optimizer.zero_grad()
            F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
            optimizer.step()
        with torch.no_grad():
            logits.append(model(torch.from_numpy(inputs)).numpy())
    return np.stack(logits), inputs


def measure(folder: Path, steps: int) -> list[dict[str, Any]]:
    """One row for each codec."""
    logits, inputs = teachers(steps)
    numbers = np.arange(len(inputs))
    ensemble = SimpleNamespace(
        names=tuple(f"network {k}" for k in range(MEMBERS)),
        classes=tuple(map(str, range(100))),
        weights=np.full(MEMBERS, 1 / MEMBERS),
        combiner="prob",
        predict_logits=lambda batch: logits[:, batch[:, 0].astype(int)],
        fingerprint=lambda: {},
    )
    rows = Rows(np.concatenate([numbers[:, None], inputs], 1).astype(np.float32), numbers, numbers)
    found = []
    for codec, mixture_at in CODECS:
        place = folder / f"codec-{codec}-{mixture_at}"
        begun = time.perf_counter()
        cache = cache_targets(ensemble, rows, place, codec=codec, mixture_at=mixture_at)
        seconds = time.perf_counter() - begun
        kl = cache.manifest["statistics"]["kl"]
        found.append(
            {
                "codec": codec,
                "mixture_at": mixture_at,
                "bytes_per_sample": cache.layout.bytes,
                "bytes_of_fp32_logits": 4 * MEMBERS * 100,
                "kl": {name: kl[name] for name in ("mean", "p99", "max")},
                "write_samples_per_s": len(rows) / seconds,
                "write_mb_of_logits_per_s": logits.nbytes / seconds / 1e6,
            }
        )
        remove(place)
    return found
