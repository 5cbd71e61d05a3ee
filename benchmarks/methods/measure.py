"""One student by one method, and its scores."""

from __future__ import annotations

import functools
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.methods.data import Drawn, Size
from ensdistill import StudentOptimization, StudentTrainer, TargetCache
from ensdistill.models import MLP
from ensdistill.report.metrics import nll_rows
from ensdistill.report.ranks import rank_correlation
from ensdistill.student import OnlineTeachers
from ensdistill.student.generations import born_again
from ensdistill.student.methods.dirichlet import uncertainties
from ensdistill.teachers.members.heads import MultiHead

# As the papers set them; a mix where a paper's loss leaves the scale of probabilities free.
METHODS: dict[str, Any] = {
    "kd": "kd",
    "kd, T=2": {"kd": {"temperature": 2.0}},
    "kd, T=4": {"kd": {"temperature": 4.0}},
    "kd, alpha=0.7": {"kd": {"alpha": 0.7}},
    "reverse_kl": "reverse_kl",
    "jsd": "jsd",
    "tvd": "tvd",
    "alpha_divergence": "alpha_divergence",
    "mse": "mse",
    "standardised + labels": {"standardised": 0.9, "labels": 0.1},
    "dkd + labels": {"dkd": 1, "labels": 1},
    "dist + labels": {"dist": 1, "labels": 1},
    "dist + kd": {"dist": 1, "kd": 1},
    "mlkd": "mlkd",
    "weighted: confidence": {"weighted": {"by": "confidence"}},
    "weighted: minimum_ce": {"weighted": {"by": "minimum_ce"}},
    "weighted: learned": {"weighted": {"by": "learned"}},
    "rkd + kd": {"rkd": 1, "kd": 1},
    "hints + kd": {"kd": 1, "hints": {"weight": 0.1, "student_layer": "2", "teacher_layer": "2"}},
    "mutual of kd": "mutual",
    "mutual of labels": {"mutual": {"of": "labels"}},
    "born again, 3": "kd",
    "proxy_dirichlet": "proxy_dirichlet",
    "endd": "endd",
    "hydra": "hydra",
    "labels": "labels",
}
SPREAD = ("proxy_dirichlet", "endd", "hydra")


@dataclass(frozen=True)
class Beliefs:
    """Logits, and total and knowledge uncertainty, of some rows."""

    logits: np.ndarray
    total: np.ndarray
    knowledge: np.ndarray | None


def entropy(p: np.ndarray) -> np.ndarray:
    found: np.ndarray = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
    return found


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    found: np.ndarray = e / e.sum(-1, keepdims=True)
    return found


def of_ensemble(ensemble: Any, x: np.ndarray) -> Beliefs:
    """The mixture of the members, and their disagreement."""
    p = softmax(np.asarray(ensemble.predict_logits(x), np.float64))
    mean = p.mean(0)
    return Beliefs(np.log(mean), entropy(mean), entropy(mean) - entropy(p).mean(0))


def of_student(module: nn.Module, method: str, x: np.ndarray) -> Beliefs:
    """A student's logits; its knowledge uncertainty where its method keeps one."""
    with torch.no_grad():
        z = module(torch.from_numpy(x)).double()
        heads = module.heads(torch.from_numpy(x)).double().numpy() if isinstance(module, MultiHead) else None
    total = entropy(softmax(z.numpy()))
    knowledge = None
    if heads is not None:
        knowledge = total - entropy(softmax(heads)).mean(0)
    elif method in SPREAD:
        knowledge = uncertainties(z.clamp(max=30).exp())[2].numpy()
    return Beliefs(z.numpy(), total, knowledge)


def train(method: str, drawn: Drawn, cache: TargetCache, size: Size, seed: int) -> tuple[nn.Module, str]:
    """The student, and a warning of its training (a collapse)."""
    factory = functools.partial(
        MLP, inputs=drawn.rows.inputs.shape[1], hidden=[size.student], outputs=drawn.classes
    )
    optimization = StudentOptimization(steps=size.steps, batch_size=128, learning_rate=0.02)
    trainer = StudentTrainer(optimization, method=METHODS[method])
    source = OnlineTeachers(drawn.ensemble) if method.startswith("hints") else cache
    # Labels alone have no use for rows without one.
    rows = drawn.labelled if method in ("labels", "mutual of labels") else drawn.rows
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if method.startswith("born again"):
            module = born_again(trainer, factory, rows, cache, generations=3, seed=seed)[-1].module
        else:
            module = trainer.distill(factory, rows, source, seed=seed).module
    told = [str(one.message) for one in caught if "collapsed" in str(one.message)]
    return module, told[0] if told else ""


def scores(own: Any, teacher: Any, drawn: Drawn) -> dict[str, float | None]:
    """Scores of test rows; ``own`` and ``teacher`` return the Beliefs of rows."""
    (x, y), strange = drawn.test, drawn.strange
    known, odd, ensemble = own(x), own(strange), teacher(x)
    p, q = softmax(ensemble.logits), softmax(known.logits)
    kinds = known.total if known.knowledge is None else known.knowledge
    odd_kinds = odd.total if odd.knowledge is None else odd.knowledge
    truth = np.r_[np.zeros(len(x)), np.ones(len(strange))]
    scale = temperature(own(drawn.validation[0]).logits, drawn.validation[1])
    return {
        "accuracy": float((q.argmax(1) == y).mean()),
        "nll": float(nll_rows(q, y).mean()),
        "scaled_nll": float(nll_rows(softmax(known.logits / scale), y).mean()),
        "temperature": scale,
        "kl": float((p * (np.log(p.clip(1e-300)) - np.log(q.clip(1e-300)))).sum(-1).mean()),
        "agreement": float((p.argmax(1) == q.argmax(1)).mean()),
        "ood_auroc_total": float(roc_auc_score(truth, np.r_[known.total, odd.total])),
        "ood_auroc": float(roc_auc_score(truth, np.r_[kinds, odd_kinds])),
        "disagreement_rank": rank_correlation(kinds, ensemble.knowledge),
    }


def temperature(z: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the least NLL on these rows, from 1/20 to 20."""
    found = minimize_scalar(
        lambda t: nll_rows(softmax(z / np.exp(t)), labels).mean(), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(found.x))


def row_of(name: str, seed: int, method: str, drawn: Drawn, cache: TargetCache, size: Size) -> dict[str, Any]:
    """One entry of the result."""
    start = time.perf_counter()
    module, told = train(method, drawn, cache, size, seed)
    seconds = time.perf_counter() - start
    teacher = functools.partial(of_ensemble, drawn.ensemble)
    found = scores(functools.partial(of_student, module, method), teacher, drawn)
    return {"set": name, "seed": seed, "method": method, **found, "collapse": told, "seconds": seconds}
