"""The gain of choosing among unequal members: random forest, ExtraTrees, boosting and five MLPs, on
tables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier

from ensdistill import Ensemble, Optimization
from ensdistill.models import MLP
from ensdistill.report.bootstrap import interval, resampled_means
from ensdistill.report.metrics import correct_rows, nll_rows


def compare(
    name: str,
    x: np.ndarray,
    y: np.ndarray,
    *,
    seeds: int,
    rows: int | None,
    quick: bool,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Test accuracy and NLL of the uniform mixture, the best member, and the selected, weighed and calibrated
    mixtures, with the intervals of their differences from the uniform mixture: a paired bootstrap over seeds
    and test rows.

    Half of the rows train, a quarter decides, a quarter tests.
    """
    correct, losses, names = [], [], list[str]()
    for seed in range(seeds):
        found = _one(x, y, seed, rows, quick)
        names = list(found)
        labels = found.pop("labels")
        names.remove("labels")
        correct.append(np.stack([correct_rows(p, labels) for p in found.values()], axis=1))
        losses.append(np.stack([nll_rows(p, labels) for p in found.values()], axis=1))
        note(f"  {name}: seed {seed + 1} of {seeds}")
    result: dict[str, Any] = {
        "data": name,
        "rows": len(x) if rows is None else min(rows, len(x)),
        "seeds": seeds,
        "of": {},
    }
    for metric, values in (("accuracy", correct), ("nll", losses)):
        draws = resampled_means(values)
        means = np.mean([v.mean(0) for v in values], axis=0)
        for i, method in enumerate(names):
            entry = result["of"].setdefault(method, {})
            entry[metric] = float(means[i])
            entry[f"{metric}_minus_uniform"] = [
                float(means[i] - means[0]),
                *interval(draws[:, i] - draws[:, 0]),
            ]
    return result


def _one(x: np.ndarray, y: np.ndarray, seed: int, rows: int | None, quick: bool) -> dict[str, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(x))[:rows]
    train, decide, test = np.split(order, [len(order) // 2, 3 * len(order) // 4])
    center, spread = x[train].mean(0), x[train].std(0) + 1e-6
    z, classes = ((x - center) / spread).astype(np.float32), int(y.max()) + 1
    trees, steps = (20, 300) if quick else (200, 4000)
    forests = [
        RandomForestClassifier(trees),
        ExtraTreesClassifier(trees),
        HistGradientBoostingClassifier(max_iter=trees // 2),
    ]
    data = (z[train], y[train])
    trained = Ensemble.train(forests, data, seed=seed)
    mlp = functools.partial(MLP, inputs=x.shape[1], hidden=[64, 64], outputs=classes)
    budget = Optimization(steps=steps, batch_size=128, learning_rate=3e-3)
    nets = Ensemble.train(mlp, data, members=5, seed=seed, optimization=budget, way="auto")
    ensemble = Ensemble.from_members([*trained.members, *nets.members])
    held, asked = ensemble.raw_logits(z[decide]), ensemble.raw_logits(z[test])

    def answers(which: Ensemble) -> np.ndarray:
        places = [ensemble.names.index(name) for name in which.names]
        return which.combine(which.apply_temperatures(asked[places]))

    def fresh() -> Ensemble:
        return Ensemble.from_members(ensemble.members)

    own = [float(nll_rows(softmax(member), y[decide]).mean()) for member in held]
    best = Ensemble.from_members([ensemble.members[int(np.argmin(own))]])
    return {
        "uniform": answers(ensemble),
        "best member (held-out NLL)": answers(best),
        "selected by NLL": answers(fresh().select(held, y[decide])),
        "selected by accuracy": answers(fresh().select(held, y[decide], metric="accuracy")),
        "calibrated, uniform": answers(fresh().calibrate(held, y[decide])),
        "calibrated, selected by NLL": answers(fresh().calibrate(held, y[decide]).select(held, y[decide])),
        "calibrated, weighed": answers(fresh().calibrate(held, y[decide]).weigh(held, y[decide])),
        "labels": y[test],
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities [N, C]."""
    from ensdistill.teachers.fitting.calibration import probabilities

    return probabilities(logits)
