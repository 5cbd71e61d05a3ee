"""Models that others would make of the same split: boosted trees on the labels, a plain distillation loop,
torchdistill's, and AutoGluon's ``distill``.

Each returns test predictions. They are kept per seed, so that a killed run goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.quality.jobs import Case, config
from benchmarks.quality.sets import SETS
from ensdistill.common.describe import module_recipe
from ensdistill.common.files import write_bytes
from ensdistill.common.tasks import Task
from ensdistill.data import Split
from ensdistill.data import batches as b
from ensdistill.data.samples import joined, whole
from ensdistill.job.prepared import prepare_student
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.unit import Unit
from ensdistill.teachers import Ensemble

HERE = Path(__file__).parent
AUTOGLUON, TORCHDISTILL = HERE / "autogluon_script.py", HERE / "torchdistill_script.py"
TEMPERATURE, ALPHA, RATE = 2.0, 0.9, 1e-3  # of the plain loop: usual choices


@dataclass(frozen=True)
class Peer:
    """Another tool.

    Parameters
    ----------
    kinds : tuple of str
        The kinds of data sets that it takes.
    predict : callable
        (case, seed, split, ensemble's folder) -> probabilities [N, C] of the test rows, or means and then
        variances [N, 2 D].
    tasks : dict of str to tuple of str, optional
        Other tasks than classification that it takes, with the kinds of their data sets.
    """

    kinds: tuple[str, ...]
    predict: Callable[[Case, int, Split, Path], np.ndarray]
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def takes(self, name: str) -> bool:
        """Whether it takes a data set."""
        kinds = self.kinds if SETS[name].task == "classification" else self.tasks.get(SETS[name].task, ())
        return SETS[name].kind in kinds


def boosted(case: Case, seed: int, split: Split, ensemble: Path) -> np.ndarray:
    """LightGBM on the labels, as many rounds as a fifth of the rows choose; then fitted to all of them. Each of
    several labels has a model; numbers have the variance of the fifth's errors."""
    x, test = _features(split)
    if split.task == "classification":
        return _boosted(x, split.labelled.labels, test, seed)[0]
    columns = [_boosted(x, column, test, seed, split.task) for column in split.labelled.labels.T]
    found = np.stack([values for values, _ in columns], axis=1)
    if split.task == "multilabel":
        return found
    variances = np.array([[variance for _, variance in columns]])
    return np.concatenate([found, np.broadcast_to(variances, found.shape)], axis=1)


def _boosted(
    x: Any, y: np.ndarray, test: Any, seed: int, task: Task = "classification"
) -> tuple[np.ndarray, float]:
    """Test predictions, and of a regression the mean squared error on rows that the first fit left out."""
    import lightgbm
    from sklearn.model_selection import train_test_split

    kind = lightgbm.LGBMRegressor if task == "regression" else lightgbm.LGBMClassifier
    if task == "multilabel":
        known = np.flatnonzero(y >= 0)
        x, y = _rows(x, known), y[known].astype(np.int64)
        if np.bincount(y, minlength=2).min() < 2:  # too few to hold some out
            return np.full(test.shape[0], np.clip(y.mean(), 1e-3, 1 - 1e-3)), 0.0
    strata = None if task == "regression" else y
    train, held = train_test_split(np.arange(len(y)), test_size=0.2, stratify=strata, random_state=seed)
    settings = {"learning_rate": 0.05, "num_leaves": 31, "n_jobs": 1, "verbose": -1, "random_state": seed}
    first = kind(n_estimators=1000, **settings)
    stopping = lightgbm.early_stopping(50, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newest version has another name for eval_set
        first.fit(_rows(x, train), y[train], eval_set=[(_rows(x, held), y[held])], callbacks=[stopping])
    last = kind(n_estimators=max(1, int(first.best_iteration_ or 1)), **settings).fit(x, y)
    if task == "regression":
        return np.asarray(last.predict(test)), float(np.mean((first.predict(_rows(x, held)) - y[held]) ** 2))
    found = np.asarray(last.predict_proba(test), np.float64)
    return (found if task == "classification" else found[:, 1]), 0.0


def _features(split: Split) -> tuple[Any, Any]:
    """The labelled and the test rows: frames, or of texts the TF-IDF of the commonest words."""
    first = whole(split.labelled.inputs)
    if not isinstance(first, list):
        x = _frame(split.labelled.inputs)
        return x, _frame(split.test.inputs, x)
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(min_df=3, max_features=3000, dtype=np.float32)
    return words.fit_transform(first), words.transform(whole(split.test.inputs))


def _rows(x: Any, rows: np.ndarray) -> Any:
    return x.iloc[rows] if hasattr(x, "iloc") else x[rows]


@dataclass(frozen=True, eq=False)
class Lesson:
    """The rows of a usual distillation loop, for a student as large as a member.

    Parameters
    ----------
    model : callable
        Makes the student.
    inputs : array [N, ...]
        Labelled rows and pool, preprocessed as for our student.
    labels : ndarray
        In the task's form; unknown ones for rows of the pool.
    targets : ndarray [N, C], float32
        The mean of the members' logits; of several labels that of their probabilities, of numbers that of
        their means.
    test : array [M, ...]
    steps, batch_size : int
        Those of our student where they are given.
    """

    model: Callable[[], torch.nn.Module]
    inputs: Any
    labels: np.ndarray
    targets: np.ndarray
    test: Any
    steps: int
    batch_size: int


def lesson(case: Case, seed: int, split: Split, ensemble: Path) -> Lesson:
    """The rows and the student of a case's seed."""
    case_config = config(case)
    members = Ensemble.load(ensemble, trusted=RunFolder(case_config).trusted).weighted()
    rows = [split.labelled, *([split.pool] if len(split.pool) else [])]
    samples = whole(joined([part.inputs for part in rows]))
    if split.task == "classification":
        targets = np.asarray(members.predict_logits(samples), np.float32).mean(0)
    else:
        targets = (members.predict_proba if split.task == "multilabel" else members.predict)(samples)
    settings = replace(case_config.distill.students["member"], variance=False)  # the loop has means alone
    prepared = prepare_student(settings, split, seed)
    inputs, test = (
        part if prepared.preprocess is None else prepared.preprocess(part)
        for part in (samples, whole(split.test.inputs))
    )
    optimization, count = settings.optimization, sum(map(len, rows))
    batch_size = optimization.batch_size if isinstance(optimization.batch_size, int) else 256
    usual = min(max(40 * count // batch_size, 500), 6000)  # some forty epochs, where ours are automatic
    return Lesson(
        prepared.factory,
        inputs,
        np.concatenate([part.labels for part in rows]),
        np.asarray(targets, np.float32),
        test,
        optimization.steps if isinstance(optimization.steps, int) else usual,
        batch_size,
    )


def plain_loop(case: Case, seed: int, split: Split, ensemble: Path) -> np.ndarray:
    """The loop of most tutorials: members' logits averaged, T = 2, Adam with 1e-3, labelled rows and pool. Of
    several labels and of numbers it learns the members' mean probabilities, and the means on standardised
    numbers, whose variance is that of the errors of the labelled rows."""
    torch.manual_seed(seed)
    one = lesson(case, seed, split, ensemble)
    loss_of, read = LOOPS[split.task](one)
    model = one.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(one.steps):
        chosen = torch.randint(len(one.labels), (one.batch_size,), generator=generator)
        loss = loss_of(model(_tensor(b.take(one.inputs, chosen.numpy()))), chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    labelled = b.take(one.inputs, np.arange(len(split.labelled)))
    with torch.no_grad():
        found, own = (
            torch.cat([model(part) for part in _tensor(rows).split(1024)]).double()
            for rows in (one.test, labelled)
        )
    return np.asarray(read(found, own))


Loop = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
"""The loss of a batch from (outputs, positions), and predictions from outputs of (test, labelled) rows."""


def _class_loss(one: Lesson) -> Loop:
    teacher, labels = torch.from_numpy(one.targets), torch.from_numpy(one.labels)

    def loss(outputs: Any, chosen: Any) -> Any:
        soft = F.kl_div(
            F.log_softmax(outputs / TEMPERATURE, 1),
            F.softmax(teacher[chosen] / TEMPERATURE, 1),
            reduction="batchmean",
        )
        hard = F.cross_entropy(outputs, labels[chosen])
        hard = hard if hard.isfinite() else outputs.new_zeros(())  # a batch without a label
        return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * hard

    return loss, lambda found, own: F.softmax(found, 1)


def _label_loss(one: Lesson) -> Loop:
    teacher, labels = torch.from_numpy(one.targets), torch.from_numpy(one.labels)

    def loss(outputs: Any, chosen: Any) -> Any:
        soft = F.binary_cross_entropy_with_logits(outputs, teacher[chosen])
        known, truth = labels[chosen] >= 0, labels[chosen].clamp(min=0).float()
        each = F.binary_cross_entropy_with_logits(outputs, truth, reduction="none")
        return ALPHA * soft + (1 - ALPHA) * each.where(known, 0).sum() / known.sum().clamp(min=1)

    return loss, lambda found, own: found.sigmoid()


def _number_loss(one: Lesson) -> Loop:
    known = ~np.isnan(one.labels).any(1)
    location, scale = one.labels[known].mean(0), one.labels[known].std(0)
    teacher, labels = (
        torch.from_numpy(((values - location) / scale).astype(np.float32))
        for values in (one.targets, one.labels)
    )

    def loss(outputs: Any, chosen: Any) -> Any:
        soft, truth = F.mse_loss(outputs, teacher[chosen]), labels[chosen]
        there = ~truth.isnan()
        hard = (outputs - truth.nan_to_num()).square().where(there, 0).sum() / there.sum().clamp(min=1)
        return ALPHA * soft + (1 - ALPHA) * hard

    def read(found: Any, own: Any) -> Any:
        mean, fitted = (location + scale * part.numpy() for part in (found, own))
        variance = np.square(fitted - one.labels[known]).mean(0)
        return np.concatenate([mean, np.broadcast_to(variance, mean.shape)], axis=1)

    return loss, read


LOOPS: dict[Task, Callable[[Lesson], Loop]] = {
    "classification": _class_loss,
    "multilabel": _label_loss,
    "regression": _number_loss,
}


def torchdistill(python: str) -> Peer:
    """torchdistill's training box with its KD loss, by the Python of an environment that has it."""

    def predict(case: Case, seed: int, split: Split, ensemble: Path) -> np.ndarray:
        one = lesson(case, seed, split, ensemble)
        recipe = module_recipe(one.model)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            arrays = {name: _tensor(getattr(one, name)).numpy() for name in ("inputs", "test")}
            np.savez(place / "arrays.npz", labels=one.labels, logits=one.targets, **arrays)
            settings = {"seed": seed, "steps": one.steps, "batch_size": one.batch_size, "rate": RATE,
                        "temperature": TEMPERATURE, "label_weight": 1 - ALPHA, "model": recipe}  # fmt: skip
            (place / "settings.json").write_text(json.dumps(settings))
            _call(python, TORCHDISTILL, place, f"torchdistill on {case}, seed {seed}")
            return np.asarray(np.load(place / "probabilities.npy", allow_pickle=False), np.float64)

    return Peer(("table", "image", "text"), predict)


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
            _call(python, AUTOGLUON, place, f"AutoGluon on {case}, seed {seed}")
            return np.asarray(np.load(place / "probabilities.npy", allow_pickle=False), np.float64)

    return Peer(("table",), predict)


ALL = ("table", "image", "text")
PEERS = {
    "LightGBM on labels": Peer(
        ("table",), boosted, {"multilabel": ("table", "text"), "regression": ("table",)}
    ),
    "plain KD loop": Peer(ALL, plain_loop, {"multilabel": ALL, "regression": ALL}),
}


def predictions(
    case: Case, peers: dict[str, Peer], note: Callable[[str], None]
) -> dict[str, list[np.ndarray]]:
    """The test predictions of the peers that take this case's data, for each seed: float64 [N, C], or of a
    regression means and then variances [N, 2 D]."""
    settings, found = config(case), dict[str, list[np.ndarray]]()
    folder = RunFolder(settings)
    for name, peer in peers.items():
        if not peer.takes(case.name):
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


def available(python: str, package: str) -> str:
    """Why another environment's package can't be used; empty where it is there."""
    wanted = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    try:
        found = subprocess.run([python, "-c", wanted], capture_output=True, text=True).returncode == 0
    except OSError as error:
        return f"{python}: {error.strerror}"
    return "" if found else f"{python} has no {package}; pip install {package}"


def _call(python: str, script: Path, folder: Path, what: str) -> None:
    """Run another tool's script on a folder, in its own environment, with this repository on its path."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    run = subprocess.run([python, str(script), str(folder)], capture_output=True, text=True, env=environment)
    if run.returncode:
        raise RuntimeError(f"{what}: it failed:\n{run.stderr[-2000:]}")


def _check(name: str, values: np.ndarray, split: Split) -> None:
    wanted = (len(split.test), len(split.classes) * (1 + (split.task == "regression")))
    right = values.shape == wanted and bool(np.isfinite(values).all())
    if right and split.task == "classification":
        right = np.allclose(values.sum(1), 1, atol=1e-4)
    if not right:
        raise RuntimeError(f"{name}: expected predictions {list(wanted)}; got {list(values.shape)}")


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
            values = frame[name] if known is None else frame[name].where(frame[name].isin(known))
            frame[name] = pandas.Categorical(values, categories=known)
    return frame


def _tensor(batch: Any) -> Any:
    array = batch if isinstance(batch, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(batch))
    return array if not array.is_floating_point() else array.float()
