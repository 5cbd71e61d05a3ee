"""A student's step from a cache, and with online teachers."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.tokens.caching import WrongTargets, written
from benchmarks.tokens.models import BATCH, student
from ensdistill.cache import TargetCache
from ensdistill.data.tokens import TokenSequences
from ensdistill.hf import CachedDistillation
from ensdistill.teachers.tokens import LanguageEnsemble

CACHED, ONLINE, TRL = "CachedDistillation", "online teachers", "online teachers, TRL's loss"
WARM = 3  # steps before the clock starts
CLOSE = 2e-3  # by which a loss of all classes in float16 may differ from that of the models, relatively


class Cached:
    """Steps from a cache."""

    def __init__(self, cache: TargetCache, sequences: TokenSequences) -> None:
        self.model, self.sequences = student().train(), sequences
        self.distil = CachedDistillation(self.model, cache)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)

    def loss(self, rows: np.ndarray) -> Tensor:
        batch = self.distil.collate([self.sequences[i] for i in rows.tolist()])
        labels = batch.pop("labels")
        return self.distil.loss(self.model(**batch), labels)

    def step(self, rows: np.ndarray) -> float:
        return _step(self, rows)


class Online:
    """Steps with teachers that predict for each batch: all logits, as a plain loop has them."""

    def __init__(self, teachers: list[Any], sequences: TokenSequences, divergence: Any = None) -> None:
        self.model, self.sequences, self.teachers = student().train(), sequences, teachers
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.divergence = divergence

    def loss(self, rows: np.ndarray) -> Tensor:
        ids = torch.from_numpy(self.sequences.ids[rows].astype(np.int64))
        counted = torch.from_numpy(self.sequences.counted[rows])
        with torch.no_grad():
            p = torch.stack([one(input_ids=ids).logits[counted].softmax(-1) for one in self.teachers]).mean(0)
        logits = self.model(input_ids=ids).logits[counted]
        if self.divergence is not None:
            return self.divergence(logits[None], p.log()[None])
        return F.kl_div(logits.log_softmax(-1), p, reduction="batchmean")

    def step(self, rows: np.ndarray) -> float:
        return _step(self, rows)


def trl_loss() -> Any:
    """TRL's generalised divergence of students' and teachers' logits as KL(teacher ‖ student).

    Raises
    ------
    ImportError
        TRL is missing, or has none.
    """
    for module in ("trl.experimental.gkd", "trl"):
        try:
            trainer = importlib.import_module(module).GKDTrainer
        except (ImportError, AttributeError):
            continue
        return lambda own, teachers: trainer.generalized_jsd_loss(own, teachers, beta=0.0) / own.shape[1]
    importlib.import_module("trl")
    raise ImportError("this version of trl has no GKDTrainer")


def _step(way: Cached | Online, rows: np.ndarray) -> float:
    loss = way.loss(rows)
    loss.backward()
    way.optimizer.step()
    way.optimizer.zero_grad()
    return loss.item()


def batches(sequences: TokenSequences, steps: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, len(sequences), BATCH) for _ in range(steps)]


def check(ensemble: LanguageEnsemble, sequences: TokenSequences, folder: Path) -> float:
    """How far a step's loss from a cache of all classes is from that of the online loop, relatively."""
    few = TokenSequences([{"input_ids": one} for one in sequences.ids[:BATCH]], sequences.vocabulary)
    cache, _ = written(ensemble, few, f"topk-{few.vocabulary}", folder / "all")
    rows = np.arange(len(few))
    found = Cached(cache, few).loss(rows).item()
    expected = Online(ensemble.models, few).loss(rows).item()
    return _compare(found, expected, "a step's loss from a cache of all classes")


def _compare(found: float, expected: float, name: str) -> float:
    if not abs(found / expected - 1) < CLOSE:
        raise WrongTargets(f"{name} is {found:.6g}; that of the online loop {expected:.6g}")
    return abs(found / expected - 1)


def measure(
    ensemble: LanguageEnsemble,
    cache: TargetCache,
    sequences: TokenSequences,
    steps: int,
    rounds: int,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row for each way: tokens a second, the ways taking turns; of the cache also the share of reading it."""
    ways: dict[str, Any] = {CACHED: Cached(cache, sequences), ONLINE: Online(ensemble.models, sequences)}
    missing = None
    try:
        ways[TRL] = Online(ensemble.models, sequences, trl_loss())
    except ImportError as error:
        missing = str(error)
    given = batches(sequences, WARM + steps)
    if missing is None:
        _compare(ways[TRL].loss(given[0]).item(), ways[ONLINE].loss(given[0]).item(), "TRL's loss of a step")
    spent: dict[str, list[float]] = {name: [] for name in ways}
    reading, losses = [], {}
    for round_ in range(rounds):
        for name, way in ways.items():
            for rows in given[:WARM]:
                way.step(rows)
            begin = time.perf_counter()
            for rows in given[WARM:]:
                losses[name] = way.step(rows)
            spent[name].append((time.perf_counter() - begin) / steps)
        begin = time.perf_counter()
        for rows in given[WARM:]:
            cache.gather(sequences.uids[rows])
        reading.append((time.perf_counter() - begin) / steps)
        note(f"  training: round {round_ + 1} of {rounds}")
    tokens = BATCH * float(sequences.lengths.mean())
    found = [
        {"way": name, "tokens_per_s": tokens / median(times), "ms_step": 1e3 * median(times)}
        | {"last_loss": losses[name]}
        for name, times in spent.items()
    ]
    found[0] |= {"codec": cache.manifest["codec"], "of_it_reading": median(reading) / median(spent[CACHED])}
    return found if missing is None else [*found, {"way": TRL, "missing": missing}]
