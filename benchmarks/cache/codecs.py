"""Bytes, error and speed of every codec, on real networks' logits for unseen images: two digits side by side,
100 classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from benchmarks.cache.gather import WrongRecords
from benchmarks.cache.stores import remove
from ensdistill.cache import TargetCache, cache_targets
from ensdistill.data import Rows
from ensdistill.teachers.fitting.calibration import log_mixture

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


def check(cache: TargetCache, logits: np.ndarray) -> None:
    """Compare the KL that the manifest certifies with that of the values that a reader gets, in float64 and
    by other code.

    Raises
    ------
    WrongRecords
        They differ by more than a hundredth, or 1e-9 nats.
    """
    t, recorded = cache.temperature, cache.manifest["statistics"]["kl"]
    exact = (
        log_softmax(logits.astype(np.float64), -1)
        if t is None
        else log_mixture(logits, cache.weights, "prob", t)[None]
    )
    stored = log_softmax(cache.gather_logits(np.arange(len(cache))).astype(np.float64), -1)
    kl = (np.exp(exact) * (exact - stored)).sum(-1)
    for name, found in (("mean", kl.mean()), ("max", kl.max())):
        if not np.isclose(found, recorded[name], rtol=0.01, atol=1e-9):
            raise WrongRecords(
                f"codec {cache.manifest['codec']}: the manifest has a {name} KL of {recorded[name]:.4g}; "
                f"found {found:.4g}"
            )


def measure(folder: Path, steps: int, rounds: int, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each codec; written in rotation, the median of the rounds."""
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
    seconds: dict[tuple[str, float | None], list[float]] = {kind: [] for kind in CODECS}
    found = {}
    for round_ in range(rounds):
        for codec, mixture_at in CODECS:
            place = folder / f"codec-{codec}-{mixture_at}"
            begun = time.perf_counter()
            cache = cache_targets(ensemble, rows, place, codec=codec, mixture_at=mixture_at)
            seconds[codec, mixture_at].append(time.perf_counter() - begun)
            if round_ == 0 and not codec.startswith(
                "counts"
            ):  # of counts the mean over draws is exact, not a row
                check(cache, logits)
            found[codec, mixture_at] = {
                "codec": codec,
                "mixture_at": mixture_at,
                "bytes_per_sample": cache.layout.bytes,
                "bytes_of_fp32_logits": 4 * MEMBERS * 100,
                "kl": {name: cache.manifest["statistics"]["kl"][name] for name in ("mean", "p99", "max")},
            }
            remove(place)
        note(f"codecs: round {round_ + 1} of {rounds}")
    for kind, row in found.items():
        row["write_samples_per_s"] = len(rows) / median(seconds[kind])
        row["write_mb_of_logits_per_s"] = logits.nbytes / median(seconds[kind]) / 1e6
    return list(found.values())
