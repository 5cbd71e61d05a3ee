"""One student for each kind of synthetic rows, judged on validation rows."""

from __future__ import annotations

import functools
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.transfer.sets import Development
from ensdistill import Ensemble, Optimization, Rows, StudentOptimization, StudentTrainer, cache_targets
from ensdistill.data import Split
from ensdistill.data import batches as b
from ensdistill.data.transfer import Exchange, Mixup, Munge, TransferSet
from ensdistill.models import MLP
from ensdistill.report.metrics import nll_rows


def kinds(rows: int, many: int) -> dict[str, list[Any]]:
    """The compared transfer sets: synthetic sources by name."""
    half = rows // 2

    def exchange(p: float, noise: float = 0.0, k: int = 10, count: int = rows, **more: Any) -> Exchange:
        return Exchange(count, neighbours=k, probability=p, noise=noise, **more)

    made: dict[str, list[Any]] = {
        "rows": [],
        "munge": [Munge(rows)],
        "munge+mixup": [Munge(half), Mixup(half)],
        "mixup": [Mixup(rows)],
    }
    made |= {f"k{k} p0.3": [exchange(0.3, k=k)] for k in (5, 10, 20)}
    made |= {f"k10 p{p}": [exchange(p)] for p in (0.15, 0.5)}
    made |= {f"noise{s}": [exchange(0.0, s, k=1, resample=s / 3)] for s in (0.2, 0.3, 0.5)}
    made |= {f"k10 p0.3 noise{s}": [exchange(0.3, s)] for s in (0.1, 0.2, 0.3)}
    made["k10 p0.3 noise0.2 unrounded"] = [exchange(0.3, 0.2, detect=False)]
    made |= {f"k10 p{p} + mixup": [exchange(p, count=half), Mixup(half)] for p in (0.3, 0.5)}
    made["k10 p0.3, many"] = [exchange(0.3, count=many)]
    made |= {f"k10 p0.3 noise{s}, many": [exchange(0.3, s, count=many)] for s in (0.1, 0.2)}
    made["k10 p0.3 + mixup, many"] = [exchange(0.3, count=many // 2), Mixup(many // 2)]
    return made


def ensemble_of(data: Development, seed: int) -> Ensemble:
    """Networks, and trees where the set has them."""
    prepared = np.asarray(data.preprocess(data.learned), np.float32)
    mlp = functools.partial(
        MLP, inputs=prepared.shape[1], hidden=[data.width] * 2, outputs=data.classes, dropout=0.2
    )
    budget = Optimization(steps=data.steps, batch_size=64, weight_decay=0.05, learning_rate=3e-3)
    nets = Ensemble.train(mlp, (prepared, data.labels), members=data.networks, seed=seed, optimization=budget)
    members: list[Any] = [(member, data.preprocess) for member in nets.members]
    for tree in data.trees:
        trained = Ensemble.train([tree], (prepared, data.labels), seed=seed)
        members += [(member, data.preprocess) for member in trained.members]
    return Ensemble.from_members(members)


def direct(data: Development, hidden: list[int], seed: int, quick: bool) -> np.ndarray:
    """Probabilities of the same network, trained on labels in six ways and scaled; the best on validation."""
    factory, best = _factory(data, hidden), (np.inf, np.zeros(0))
    rows = Rows(data.learned, np.arange(len(data.labels)), data.labels)
    for steps in (30,) if quick else (600, 2000, 8000):
        for dropout in (0.0, 0.2):
            optimization = StudentOptimization(steps, batch_size=64, learning_rate=5e-3, weight_decay=0.05)
            trained = StudentTrainer(optimization).direct(
                functools.partial(factory, dropout=dropout),
                rows,
                classes=data.classes,
                seed=seed,
                preprocess=data.preprocess,
            )
            z = torch.as_tensor(trained.member().predict_logits(data.validation)).double()
            for temperature in np.geomspace(0.7, 3, 15):
                p = torch.softmax(z / temperature, -1).numpy()
                loss = float(nll_rows(p, data.validation_labels).mean())
                best = min(best, (loss, p), key=lambda one: one[0])
    return best[1]


def _factory(data: Development, hidden: list[int]) -> Callable[..., Any]:
    inputs = np.asarray(data.preprocess(data.learned[:2])).shape[1]
    return functools.partial(MLP, inputs=inputs, hidden=hidden, outputs=data.classes, activation="silu")


def student(
    data: Development,
    ensemble: Ensemble,
    hidden: list[int],
    synthetic: list[Any],
    seed: int,
    budget: tuple[int, float],
) -> tuple[np.ndarray, dict[str, float]]:
    """Probabilities of a distilled student for the validation rows, and the seconds of its parts; ``budget`` holds
    its steps and its learning rate."""
    rows = Rows(data.learned, np.arange(len(data.labels)), data.labels)
    none, one = (np.arange(count) - 1 for count in (0, 1))  # a split needs test rows, which nothing here uses
    pool, test = (
        Rows(b.take(data.validation, uids + 1), uids, np.zeros(len(uids), np.int64)) for uids in (none, one)
    )
    split = Split(rows, pool, test, tuple(map(str, range(data.classes))))
    start = time.perf_counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        built = TransferSet(synthetic=synthetic).build(split, seed)
        made = time.perf_counter()
        cache = cache_targets(ensemble, built.rows, f"{folder}/targets")
        asked = time.perf_counter()
        steps, rate = budget
        optimization = StudentOptimization(steps, batch_size=256, learning_rate=rate, schedule="cosine")
        trained = StudentTrainer(optimization).distill(
            _factory(data, hidden), built.rows, cache, seed=seed, preprocess=data.preprocess
        )
    end = time.perf_counter()
    z = torch.as_tensor(trained.member().predict_logits(data.validation)).double()
    p = torch.softmax(z, -1).numpy()
    return p, {"make": made - start, "ask": asked - made, "train": end - asked}


def scores(p: np.ndarray, of_ensemble: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """NLL and accuracy on the labels, and agreement with the ensemble."""
    return {
        "nll": float(nll_rows(p, labels).mean()),
        "accuracy": float((p.argmax(1) == labels).mean()),
        "agreement": float((p.argmax(1) == of_ensemble.argmax(1)).mean()),
    }
