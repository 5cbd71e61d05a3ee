"""A student's step with targets gathered from the cache while the step before runs, against targets that lie
ready in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cache.gather import WrongRecords
from benchmarks.cache.stores import remove
from ensdistill.cache import cache_targets
from ensdistill.data import Rows
from ensdistill.functional import distillation_loss

ROWS, MEMBERS, CLASSES, BATCH, WIDTH = 20_000, 4, 250, 256, 512


def measure(folder: Path, rounds: int, steps: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds of a step each way, and their ratio: the median over rounds that alternate."""
    logits = np.random.default_rng(0).normal(0, 3, (MEMBERS, ROWS, CLASSES)).astype(np.float32)
    numbers = np.arange(ROWS)
    teachers = SimpleNamespace(
        names=tuple("abcd"),
        classes=tuple(map(str, range(CLASSES))),
        weights=np.full(MEMBERS, 0.25),
        combiner="prob",
        predict_logits=lambda inputs: logits[:, inputs[:, 0]],
        fingerprint=lambda: {},
    )
    cache = cache_targets(teachers, Rows(numbers[:, None], numbers, numbers), folder / "training")
    torch.manual_seed(0)
    inputs = torch.randn(ROWS, WIDTH)
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    generator = np.random.default_rng(1)
    batches = [generator.integers(0, ROWS, BATCH) for _ in range(steps)]
    ready = [cache.gather(batch) for batch in batches]
    for batch, target in zip(batches, ready, strict=True):
        # Half a step of a row's 255, and float32's rounding.
        expected = logits[:, batch]
        if (np.abs(target.to_logits().numpy() - expected).max(-1) > np.ptp(expected, -1) / 500).any():
            raise WrongRecords("training: the targets of a batch are not the teachers' logits")

    def run(targets: Iterable[Any]) -> float:
        begun = time.perf_counter()
        for batch, target in zip(batches, targets, strict=True):
            optimizer.zero_grad()
            distillation_loss(model(inputs[batch]), target, temperature=2.0).backward()
            optimizer.step()
        return 1000 * (time.perf_counter() - begun) / steps

    run(ready), run(cache.stream(batches))
    from_memory, from_cache = [], []
    for round_ in range(rounds):
        from_memory.append(run(ready))
        from_cache.append(run(cache.stream(batches)))
        note(f"a student's step: round {round_ + 1} of {rounds}")
    remove(folder / "training")
    return {
        "batch": BATCH,
        "bytes_per_sample": cache.layout.bytes,
        "ms_memory": median(from_memory),
        "ms_cache": median(from_cache),
        "slower": median(c / m for c, m in zip(from_cache, from_memory, strict=True)) - 1,
    }
