"""Models that others would make of the same split: boosted trees on the labels, a plain distillation loop, and
AutoGluon's ``distill``.

Each returns test probabilities. They are kept per seed, so that a killed run goes on.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.quality.jobs import Case, config
from benchmarks.quality.sets import SETS
from ensdistill.common.files import write_bytes
from ensdistill.data import Split
from ensdistill.data import batches as b
from ensdistill.data.samples import joined, whole
from ensdistill.job.prepared import prepare_student
from ensdistill.job.run_folder import RunFolder, Unit
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import Preprocessed, TorchMember

AUTOGLUON = Path(__file__).with_name("autogluon_script.py")
TEMPERATURE, ALPHA, RATE = 2.0, 0.9, 1e-3  # of the plain loop: usual choices


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Parameters
    ----------
    kinds : tuple of str
        The kinds of data sets that it takes.
    predict : callable
        (case, seed, split, ensemble's folder) -> probabilities [N, C] of the test rows.
    """

    kinds: tuple[str, ...]
    predict: Callable[[Case, int, Split, Path], np.ndarray]


def boosted(case: Case, seed: int, split: Split, ensemble: Path) -> np.ndarray:
    """LightGBM on the labels, as many rounds as a fifth of the rows choose; then fitted to all of them."""
    import lightgbm
    from sklearn.model_selection import train_test_split

    x, y = _frame(split.labelled.inputs), split.labelled.labels
    train, held = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=seed)
    settings = {"learning_rate": 0.05, "num_leaves": 31, "n_jobs": 1, "verbose": -1, "random_state": seed}
    first = lightgbm.LGBMClassifier(n_estimators=1000, **settings)
    stopping = lightgbm.early_stopping(50, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newest version has another name for eval_set
        first.fit(x.iloc[train], y[train], eval_set=[(x.iloc[held], y[held])], callbacks=[stopping])
    last = lightgbm.LGBMClassifier(n_estimators=max(1, int(first.best_iteration_ or 1)), **settings)
    found = last.fit(x, y).predict_proba(_frame(split.test.inputs, x))
    return np.asarray(found, np.float64)


def plain_loop(case: Case, seed: int, split: Split, ensemble: Path) -> np.ndarray:
    """The loop of most tutorials: members' logits averaged, T = 2, Adam with 1e-3, labelled rows and pool."""
    members = Ensemble.load(ensemble, trusted=["ensdistill", "benchmarks"])
    rows = [split.labelled, *([split.pool] if len(split.pool) else [])]
    samples = joined([part.inputs for part in rows])
    labels = torch.from_numpy(np.concatenate([part.labels for part in rows]))
    logits = members.predict_logits(whole(samples) if not isinstance(samples, np.ndarray) else samples)
    teacher = torch.from_numpy(np.asarray(logits, np.float32)).mean(0)

    settings = config(case).distill.students["member"]
    torch.manual_seed(seed)
    prepared = prepare_student(settings, split, seed)
    model = prepared.factory()
    inputs = prepared.preprocess(samples) if prepared.preprocess is not None else samples
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    size = settings.optimization.batch_size
    model.train()
    for _ in range(settings.optimization.steps):
        chosen = torch.randint(len(labels), (size,), generator=generator)
        outputs = model(_tensor(b.take(inputs, chosen.numpy())))
        soft = F.kl_div(
            F.log_softmax(outputs / TEMPERATURE, 1),
            F.softmax(teacher[chosen] / TEMPERATURE, 1),
            reduction="batchmean",
        )
        hard = F.cross_entropy(outputs, labels[chosen])
        hard = hard if hard.isfinite() else outputs.new_zeros(())  # a batch without a label
        loss = ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * hard
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    member = TorchMember(model.eval(), name="plain", output="logits")
    served = member if prepared.preprocess is None else Preprocessed(member, prepared.preprocess)
    found = served.predict_logits(whole(split.test.inputs))
    return np.asarray(F.softmax(torch.from_numpy(found).double(), 1))


def autogluon(python: str, seconds: int) -> Peer:
    """AutoGluon's ensemble and its ``distill``, by the Python of an environment that has it."""

    def predict(case: Case, seed: int, split: Split, ensemble: Path) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            train = _frame(split.labelled.inputs)
            train.assign(label_=split.labelled.labels).to_parquet(place / "train.parquet")
            _frame(split.test.inputs, train).to_parquet(place / "test.parquet")
            if len(split.pool):
                _frame(split.pool.inputs, train).to_parquet(place / "pool.parquet")
            (place / "settings.json").write_text(json.dumps({"seconds": seconds, "seed": seed}))
            run = subprocess.run([python, str(AUTOGLUON), folder], capture_output=True, text=True)
            if run.returncode:
                raise RuntimeError(f"AutoGluon failed on {case}, seed {seed}:\n{run.stderr[-2000:]}")
            return np.asarray(np.load(place / "probabilities.npy", allow_pickle=False), np.float64)

    return Peer(("table",), predict)


PEERS = {
    "LightGBM on labels": Peer(("table",), boosted),
    "plain KD loop": Peer(("table", "image", "text"), plain_loop),
}


def predictions(
    case: Case, peers: dict[str, Peer], note: Callable[[str], None]
) -> dict[str, list[np.ndarray]]:
    """The test probabilities of the peers that take this case's data: float64 [N, C] for each seed."""
    settings, found = config(case), dict[str, list[np.ndarray]]()
    folder = RunFolder(settings)
    for name, peer in peers.items():
        if SETS[case.name].kind not in peer.kinds:
            continue
        for seed in range(case.seeds):
            unit = Unit("teachers", seed)
            digest = folder.digest(unit)
            file = folder.path / "peers" / f"{name.replace(' ', '-')}-{seed}-{digest[:12]}.npy"
            if not file.is_file():
                start = time.perf_counter()
                made = peer.predict(case, seed, settings.split(seed), folder.of(unit) / "ensemble")
                _check(name, made, settings.split(seed))
                _keep(file, made)
                note(f"  {name}, seed {seed}: {time.perf_counter() - start:.0f} s")
            found.setdefault(name, []).append(np.load(file, allow_pickle=False))
    return found


def _check(name: str, probabilities: np.ndarray, split: Split) -> None:
    wanted = (len(split.test), len(split.classes))
    if probabilities.shape != wanted or not np.allclose(probabilities.sum(1), 1, atol=1e-4):
        raise RuntimeError(f"{name}: expected probabilities {list(wanted)}; got {list(probabilities.shape)}")


def _keep(file: Path, values: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, buffer.getvalue())


def _frame(samples: Any, like: Any = None) -> Any:
    """Samples as a pandas frame with categories for strings; those of ``like`` where it is given."""
    import pandas

    samples = whole(samples)
    if isinstance(samples, np.ndarray):
        flat = samples.reshape(len(samples), -1)
        return pandas.DataFrame(flat, columns=[f"x{i}" for i in range(flat.shape[1])])
    frame = pandas.DataFrame({name: samples[name].to_numpy() for name in samples.columns})
    for name in frame:
        if not pandas.api.types.is_numeric_dtype(frame[name]):
            known = None if like is None else like[name].cat.categories
            frame[name] = pandas.Categorical(frame[name], categories=known)
    return frame


def _tensor(batch: Any) -> Any:
    array = batch if isinstance(batch, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(batch))
    return array if not array.is_floating_point() else array.float()
