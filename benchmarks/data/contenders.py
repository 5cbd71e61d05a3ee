"""One pass of a teacher over the samples, and one training of a student: by ensdistill, and by a plain loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from benchmarks.data.sources import CLASSES, COLUMNS, GROUP, PIXELS, Plain, numbers, preprocess, samples
from ensdistill import Optimization, StudentTrainer
from ensdistill.cache import cache_targets
from ensdistill.common.random import GroupedOrder
from ensdistill.data import Rows
from ensdistill.data.samples import stream
from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import EnsembleLogits
from ensdistill.models import CNN, MLP

BATCH = 256


def network(kind: str) -> nn.Module:
    """The student, and with another seed a member of the ensemble."""
    return (
        CNN([16, 32], [3, PIXELS, PIXELS], outputs=CLASSES) if kind == "png" else MLP(COLUMNS, [256], CLASSES)
    )


def members(kind: str, forest: bool) -> Callable[[torch.Tensor], np.ndarray]:
    """From inputs to the members' logits, float32 [K, N, C]: a network alone, or with a forest of 100 trees."""
    torch.manual_seed(7)
    model = network(kind).eval()
    trees = _forest() if forest else None

    def predict(inputs: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            found = [model(inputs).numpy()]
        if trees is not None:
            found.append(np.log(np.maximum(trees.predict_proba(inputs.numpy()), 1e-6)).astype(np.float32))
        return np.stack(found)

    return predict


def _forest() -> Any:
    """A forest of 100 trees that was fitted to 4 000 rows of the table."""
    from sklearn.ensemble import RandomForestClassifier

    x = numbers(0, 4000)
    labels = x[:, :CLASSES].argmax(1)
    # Each class once more, so that the forest has a column for all of them.
    x, labels = np.concatenate([x, x[:CLASSES]]), np.concatenate([labels, np.arange(CLASSES)])
    return RandomForestClassifier(100, random_state=0).fit(x, labels)


def ours_cache(kind: str, folder: Path, rows: int, workers: int) -> tuple[float, np.ndarray]:
    """Samples a second of a network through ``cache_targets``, and the logits of some rows."""
    return _ours(kind, folder, rows, workers, "cache")


def plain_cache(kind: str, folder: Path, rows: int, workers: int) -> tuple[float, np.ndarray]:
    """The same by a loop over a loader, which writes logits into a mapped file."""
    return _plain(kind, folder, rows, workers, "cache")


def ours_forest(kind: str, folder: Path, rows: int, workers: int) -> tuple[float, np.ndarray]:
    """As ``ours_cache``, of a network and a forest."""
    return _ours(kind, folder, rows, workers, "forest")


def plain_forest(kind: str, folder: Path, rows: int, workers: int) -> tuple[float, np.ndarray]:
    """As ``plain_cache``, of a network and a forest."""
    return _plain(kind, folder, rows, workers, "forest")


def _ours(kind: str, folder: Path, rows: int, workers: int, part: str) -> tuple[float, np.ndarray]:
    predict, prepare = members(kind, part == "forest"), preprocess(kind)

    def prepared(batch: Any) -> np.ndarray:
        return predict(torch.from_numpy(np.ascontiguousarray(batch if prepare is None else prepare(batch))))

    names = ("network", "forest") if part == "forest" else ("network",)
    ensemble = SimpleNamespace(
        names=names,
        classes=tuple(map(str, range(CLASSES))),
        weights=np.full(len(names), 1 / len(names)),
        combiner="prob",
        predict_logits=prepared,
        fingerprint=lambda: {},
    )
    data, uids = samples(kind, folder), np.arange(rows)
    begun = time.perf_counter()
    cache = cache_targets(
        ensemble,
        Rows(data, uids, uids * 0 - 100),
        folder / f"{part}-{kind}",
        codec="fp32",
        batch_size=1024,
        workers=None if kind == "array" else workers,
    )
    seconds = time.perf_counter() - begun
    return rows / seconds, cache.gather_logits(_some(rows))


def _plain(kind: str, folder: Path, rows: int, workers: int, part: str) -> tuple[float, np.ndarray]:
    predict = members(kind, part == "forest")
    shape = (2 if part == "forest" else 1, rows, CLASSES)
    out = np.lib.format.open_memmap(folder / f"plain-{part}.npy", "w+", np.float32, shape)
    begun, start = time.perf_counter(), 0
    for inputs in loader(kind, folder, rows, workers, shuffled=False, batch=1024):
        out[:, start : start + len(inputs)] = predict(inputs)
        start += len(inputs)
    out.flush()
    return rows / (time.perf_counter() - begun), np.array(out[:, _some(rows)])


def ours_student(kind: str, folder: Path, rows: int, workers: int, steps: int) -> tuple[float, np.ndarray]:
    """Samples a second through the trainer, and its losses."""
    from ensdistill.cache import TargetCache

    cache, numbers = TargetCache.open(folder / f"cache-{kind}"), np.arange(rows)
    trainer = StudentTrainer(Optimization(steps=steps, batch_size=BATCH, learning_rate=1e-3))
    times: list[float] = []

    def progress(done: int, total: int) -> None:
        times.append(time.perf_counter())

    trained = trainer.distill(
        partial(network, kind),
        Rows(samples(kind, folder), numbers, numbers * 0 - 100),
        cache,
        preprocess=preprocess(kind),
        workers=None if kind == "array" else workers,
        progress=progress,
    )
    # From the end of the first block: readers start before it, in both contenders.
    return BATCH * 32 * (len(times) - 1) / (times[-1] - times[0]), trained.losses


def plain_student(kind: str, folder: Path, rows: int, workers: int, steps: int) -> tuple[float, np.ndarray]:
    """The same by a loop over a loader, with the targets in memory."""
    targets = torch.from_numpy(np.load(folder / "plain-cache.npy", mmap_mode="c"))
    torch.manual_seed(0)
    model = network(kind)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses, first, step = [], 0.0, 0
    for inputs in loader(kind, folder, rows, workers, shuffled=True, batch=BATCH, steps=steps):
        target = EnsembleLogits(targets[:, torch.randint(rows, (len(inputs),))])
        optimizer.zero_grad()
        loss = distillation_loss(model(inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        step += 1
        first = time.perf_counter() if step == 32 else first
    return BATCH * (step - 32) / (time.perf_counter() - first), np.array(losses)


def plain_decode(kind: str, folder: Path, rows: int, workers: int) -> tuple[float, np.ndarray]:
    """Rows a second of a Parquet file that is decoded from its start to its end, and the sum of a column."""
    import pyarrow.parquet as pq

    begun, total = time.perf_counter(), 0.0
    for part in pq.ParquetFile(folder / "rows.parquet").iter_batches(GROUP):
        total += float(part.to_pandas()["c00"].to_numpy().sum(dtype=np.float64))
    return rows / (time.perf_counter() - begun), np.array([total])


def ours_decode(kind: str, folder: Path, rows: int, workers: int) -> tuple[float, np.ndarray]:
    """The same of one epoch in the shuffled order in which a student reads."""
    data = samples(kind, folder)
    size = 32 * BATCH
    order = GroupedOrder(data.groups, size, 0, buffer=data.buffer)
    parts = (order(step)[: rows - step * size] for step in range(-(-rows // size)))
    begun, total = time.perf_counter(), 0.0
    for batch in stream(data, parts, workers=1):
        total += float(batch["c00"].to_numpy().sum(dtype=np.float64))
    return rows / (time.perf_counter() - begun), np.array([total])


def loader(
    kind: str, folder: Path, rows: int, workers: int, *, shuffled: bool, batch: int, steps: int | None = None
) -> Iterator[torch.Tensor]:
    """Batches of a plain loader; Parquet's in the same order of row groups as ensdistill's."""
    data = Plain(kind, folder)
    if kind == "png":
        order: Any = (
            RandomSampler(data, num_samples=None if steps is None else steps * batch) if shuffled else None
        )
        yield from DataLoader(data, batch, sampler=order, num_workers=workers)
        return
    if shuffled and kind == "parquet":
        groups = np.diff(np.r_[np.arange(0, rows, GROUP), rows])
        grouped = GroupedOrder(groups, batch, 0, buffer=data.samples.buffer)
        batches: Any = (grouped(step).tolist() for step in range(steps or 0))
    else:
        base = RandomSampler(data, num_samples=(steps or 0) * batch) if shuffled else SequentialSampler(data)
        batches = BatchSampler(base, batch, False)
    processes = 0 if kind in ("array", "parquet") else workers
    yield from DataLoader(data, batch_size=None, sampler=batches, num_workers=processes)


def _some(rows: int) -> np.ndarray:
    return np.unique(np.linspace(0, rows - 1, 500).astype(np.int64))
