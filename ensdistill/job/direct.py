"""*Direct*: the student's architecture on hard labels, made as strong as the labelled rows allow, because
every claim is measured against it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.describe import describe
from ensdistill.common.files import read_json, write_json
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.common.progress import UnitProgress
from ensdistill.common.random import derive_seed
from ensdistill.common.source import source_digest
from ensdistill.data import Split
from ensdistill.data.copies import stratified_folds
from ensdistill.data.samples import subset
from ensdistill.job.config import DistillConfig
from ensdistill.job.prepared import PreparedStudent, prepare_student
from ensdistill.job.run_folder import keep, preprocess_setting, resumed_or_anew
from ensdistill.job.student_config import StudentConfig
from ensdistill.student.automatic import LABELS, Automatic, with_numbers
from ensdistill.student.inputs import Preparation, call
from ensdistill.student.live import Figures
from ensdistill.teachers.choices import Choices
from ensdistill.teachers.members.moments import split_moments
from ensdistill.teachers.stack import LabelLoss, train_stack
from ensdistill.teachers.stack.objectives import units_of
from ensdistill.teachers.stack.validation import as_float32
from ensdistill.teachers.tuning import LARGEST_DECAY, SHORTER, dropout_of

DROPOUTS = (0.2, 0.5)
AUTOMATIC = "automatic.json"


@dataclass(frozen=True)
class Grid:
    """The factors of settings that the folds try, in the order of growing distance from 1.

    Parameters
    ----------
    rates : tuple of float
        Of the learning rate, which is divided by them, too.
    lower : tuple of float
        By which the best rate of shorter trainings is divided at full length.
    longer : tuple of int
        Of the steps, up to `most`, where the full length is the best: a large model's is cut by its work.
    most : int
    decays, finer_decays : tuple of float
        Of the weight decay; a finer one is tried where it is next to the best of the others.
    """

    rates: tuple[float, ...] = ()
    lower: tuple[float, ...] = ()
    longer: tuple[int, ...] = ()
    most: int = LABELS.most
    decays: tuple[float, ...] = (10.0, 100.0)
    finer_decays: tuple[float, ...] = ()


GIVEN = Grid()
FOUND = Grid(rates=(3.0, 9.0), lower=(3.0,), longer=(2, 4))  # of a learning rate that short trainings found
FEW, OF_FEW = 1000, replace(FOUND, finer_decays=(3.0, 30.0))  # labelled rows


@dataclass(frozen=True)
class Recipe:
    """How a baseline is trained.

    Parameters
    ----------
    steps : int
    weight_decay, dropout : float
    augmented : bool
    label_smoothing : float
    learning_rate : float or None
        None: that of the settings.
    """

    steps: int
    weight_decay: float
    dropout: float
    augmented: bool
    label_smoothing: float = 0.0
    learning_rate: float | None = None

    def __str__(self) -> str:
        smoothing = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        kind = "augmented" if self.augmented else "plain"
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate:g}"
        return (
            f"{kind}, {self.steps} steps, weight decay {self.weight_decay:g}, dropout "
            f"{self.dropout:g}{rate}{smoothing}"
        )

    def optimization(self, base: StudentOptimization) -> StudentOptimization:
        rate = base.learning_rate if self.learning_rate is None else self.learning_rate
        return replace(
            base,
            steps=self.steps,
            learning_rate=rate,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
        )

    def factory(self, model: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        configured = dropout_of(model)
        made: Callable[[], nn.Module] = model
        if configured is not None and configured != self.dropout:
            made = partial(model, **{"dropout": self.dropout})
        return made


def train_baselines(
    student: StudentConfig,
    settings: DistillConfig,
    split: Split,
    seed: int,
    folder: Path,
    report: UnitProgress,
) -> dict[str, Any]:
    """Train *direct* and *direct with label smoothing*, and calibrate both; numbers are not smoothed.

    Augmentation, weight decay, dropout, number of steps, and a learning rate that is not set are those with
    the lowest NLL after temperature scaling on held-out folds of the labelled rows (see :func:`_search`). The
    temperatures are fitted to the same predictions. The test rows have no part in it.

    Returns
    -------
    dict
        ``recipe`` (str), ``temperature`` (or the calibration of a regression) and
        ``label_smoothing_temperature``, and ``held_out_nll`` of every recipe tried.
    """
    inputs = digest(
        [
            [describe(student.network), describe(student.baseline), describe(settings.augment)],
            [settings.folds, settings.label_smoothing, settings.mixed_precision],
            [describe([GIVEN, FOUND, OF_FEW]), DROPOUTS, SHORTER, LARGEST_DECAY],
            [split.labelled, split.test.inputs, seed, torch.__version__, torch.get_num_threads()],
            *preprocess_setting(student, split),
            *student.trained_by,
            *([source_digest(with_numbers)] if student.baseline.automatic else []),
        ]
    )
    prepared = prepare_student(student, split, seed)
    found = _numbers(student, settings, split, seed, prepared, folder / AUTOMATIC, inputs)
    if found is not None:
        numbers = found.applied(student.baseline)
        student = replace(student, optimization=numbers, direct=numbers)  # the first has no part in it
    student = replace(student, model=prepared.factory)
    search = _Search(student, settings, split, seed, prepared)
    folds = _Folds(search, folder, inputs, partial(report, "folds"))
    if split.task == "regression":  # numbers are not smoothed
        settings = replace(settings, label_smoothing=0.0)
    direct = _search(student, settings, folds, _grid(found, len(split.labelled)))
    kinds = {"direct": replace(direct, label_smoothing=0.0)}
    if split.task != "regression":
        kinds["direct_label_smoothing"] = replace(direct, label_smoothing=settings.label_smoothing)
    folds.nll(*kinds.values())
    shutil.rmtree(folder / "folds", ignore_errors=True)
    for kind, recipe in kinds.items():
        trainer = student.trainer(
            recipe.optimization(student.baseline),
            mixed_precision=settings.mixed_precision,
            **student.watched(figures := Figures(), baseline=True),
        )
        factory = recipe.factory(student.network)
        train = partial(
            trainer.direct,
            factory,
            split.labelled,
            classes=len(split.classes),
            seed=seed,
            augment=settings.augment if recipe.augmented else None,
            preprocess=prepared.preprocess,
            weights=student.weights,
            watch=split.test.inputs,
            progress=figures.beside(report, kind.replace("_", " ")),
        )
        keep(factory, folder / kind, split, student.kept(train), inputs)
    record = folds.choices.record(*map(str, kinds.values()))
    if found is None:
        return record
    return {**record, "recipe": f"{direct}; auto: {found}", "automatic": found.record()}


def _numbers(
    student: StudentConfig,
    settings: DistillConfig,
    split: Split,
    seed: int,
    prepared: PreparedStudent,
    file: Path,
    inputs: str,
) -> Automatic | None:
    """The baseline's numbers for settings that are ``auto``, which a stopped job finds in the file."""
    if not student.baseline.automatic:
        return None
    known = read_json(file)
    if isinstance(known, dict) and known.get("inputs") == inputs:
        return Automatic.of_record(known["found"])
    trainer = student.trainer(student.baseline, mixed_precision=settings.mixed_precision)
    found = trainer.numbers(
        prepared.factory,
        split.labelled,
        classes=len(split.classes),
        seed=seed,
        augment=settings.augment,
        preprocess=prepared.preprocess,
        weights=student.weights,
    )
    assert found is not None
    write_json(file, {"inputs": inputs, "found": found.record()})
    return found


def _grid(found: Automatic | None, labelled: int) -> Grid:
    """Where the learning rate is configured, it stays. Trainings on few rows are short, so more is tried."""
    if found is None or "learning_rate" not in found.names:
        return GIVEN
    return OF_FEW if labelled <= FEW else FOUND


def _search(student: StudentConfig, settings: DistillConfig, folds: _Folds, grid: Grid) -> Recipe:
    """The recipe with the lowest held-out NLL; of equals the one nearest to the configuration.

    One choice after the other, so that the whole costs about as much as two trainings of the folds at full
    length, or four where the learning rate is not configured: augmentation, label smoothing, dropout, weight
    decay and learning rate at a quarter of the steps, then the number of steps, and lower rates and more
    steps at full length. The first that regularise are
    those that change a model least where it needs no more. Fewer steps of a schedule of their own are this
    search's early stopping: a model that overfits is stopped before it does.
    """
    base, own = student.baseline, dropout_of(student.network)
    short = max(1, base.steps // SHORTER[0])
    best = Recipe(short, base.weight_decay, own or 0.0, augmented=False)
    if settings.augment is not None:
        best = folds.best(best, replace(best, augmented=True))
    if settings.label_smoothing:
        best = folds.best(best, replace(best, label_smoothing=settings.label_smoothing))

    def climb(start: Recipe, changed: Callable[[float], Recipe], values: list[float]) -> Recipe:
        for value in values:
            if folds.best(start, stronger := changed(value)) == start:
                break
            start = stronger
        return start

    def decays(factors: Sequence[float]) -> list[float]:
        found = [factor * (base.weight_decay or 0.01) for factor in factors]
        return [d for d in found if base.decays and d * base.learning_rate <= LARGEST_DECAY]

    # Another dropout may be another list of layers, which weights from a file would not fit.
    if own is not None and student.weights is None:
        dropouts = [dropout for dropout in DROPOUTS if dropout > own]
        best = climb(best, lambda v: replace(best, dropout=v), dropouts)
    best = climb(best, lambda v: replace(best, weight_decay=v), decays(grid.decays))
    for value in _beside(best.weight_decay, decays(grid.finer_decays)):
        best = folds.best(best, replace(best, weight_decay=value))
    # The rate was found by trainings that are shorter still. Short ones need higher rates, so at full length
    # the one that was found is a choice, too.
    found = best
    for factors in (grid.rates, [1 / factor for factor in grid.rates]):
        if best == found:
            values = [float(f"{factor * base.learning_rate:.2g}") for factor in factors]
            values = [v for v in values if not base.decays or v * best.weight_decay <= LARGEST_DECAY]
            best = climb(best, lambda v: replace(found, learning_rate=v), values)
    lengths = dict.fromkeys([base.steps, *(max(1, base.steps // factor) for factor in SHORTER)])
    # Longest first: of equals the configured number of steps is kept.
    recipes = [replace(found, steps=base.steps), *(replace(best, steps=steps) for steps in lengths)]
    rate = best.learning_rate or base.learning_rate
    recipes += [replace(recipes[1], learning_rate=float(f"{rate / factor:.2g}")) for factor in grid.lower]
    best = folds.best(*dict.fromkeys(recipes))
    if best.steps == base.steps:
        longer = [float(factor * base.steps) for factor in grid.longer if factor * base.steps <= grid.most]
        best = climb(best, lambda v: replace(best, steps=int(v)), longer)
    return best


def _beside(value: float, values: Sequence[float]) -> list[float]:
    """The nearest of the values below and above one.

    >>> _beside(0.2, [0.1, 0.35, 0.7])
    [0.1, 0.35]
    """
    below, above = [v for v in values if v < value], [v for v in values if v > value]
    return sorted(below)[-1:] + sorted(above)[:1]


class _Folds:
    """Recipes that are judged on held-out folds of the labelled rows."""

    def __init__(
        self, search: _Search, folder: Path, inputs: str, progress: Callable[[int, int], None]
    ) -> None:
        self.search, self.folder, self.progress = search, folder, progress
        rows, folds = search.split.labelled, search.settings.folds
        self.parts = stratified_folds(
            rows.inputs, rows.labels, folds, derive_seed("direct folds", search.seed), rows.groups
        )
        self.choices = Choices(rows.labels, folder, inputs)

    def best(self, *recipes: Recipe) -> Recipe:
        """The one of lowest NLL, the first of equals."""
        losses = self.nll(*recipes)
        return recipes[losses.index(min(losses))]

    def nll(self, *recipes: Recipe) -> list[float]:
        losses = []
        for recipe in recipes:
            new = str(recipe) not in self.choices
            held_out = partial(self._held_out, recipe)
            losses.append(self.choices.nll(str(recipe), held_out))
            if new:
                shutil.rmtree(self.folder / "folds", ignore_errors=True)
        return losses

    def _held_out(self, recipe: Recipe) -> Any:
        """Predictions of the labelled rows, by models that saw neither the row nor a copy of it: logits
        [N, C], or of a regression Moments [N, D]."""
        search, rows = self.search, self.search.split.labelled
        inputs = search.numbers(recipe)
        train = self._one_by_one if inputs is None else partial(self._together, inputs=inputs)
        found: np.ndarray | None = None
        for predicted, (_, held) in zip(train(recipe), self.parts, strict=True):
            if found is None:
                found = np.zeros((len(rows), predicted.shape[1]), predicted.dtype)
            found[held] = predicted
        assert found is not None
        if search.split.task != "regression":
            return found
        kind = "mean_and_variance" if search.student.variance else "mean"
        return split_moments("direct", found, kind)

    def _part(self, before: int, whole: int, done: int, total: int) -> None:
        self.progress(before + done, whole)

    def _together(self, recipe: Recipe, inputs: np.ndarray) -> Iterator[np.ndarray]:
        """Each fold's predictions, by models trained side by side on inputs that are numbers."""
        search, count = self.search, len(self.parts)
        models = train_stack(
            recipe.factory(search.student.network),
            inputs,
            search.split.labelled.labels,
            classes=len(search.split.classes),
            seeds=[derive_seed("direct fold", search.seed, i) for i in range(count)],
            rows=[train for train, _ in self.parts],
            names=[f"direct, {recipe}, fold {i + 1}" for i in range(count)],
            loss=LabelLoss(variance=search.student.variance),
            optimization=recipe.optimization(search.student.baseline).plain(),
            augment=search.settings.augment if recipe.augmented else None,
            checkpoint=self.folder / "folds",
            progress=self.progress,
        )
        for model, (train, held) in zip(models, self.parts, strict=True):
            with torch.no_grad():
                outputs = call(model, torch.from_numpy(inputs[held])).float().numpy()
            yield self._in_units(outputs, *self._units(train))

    def _one_by_one(self, recipe: Recipe) -> Iterator[np.ndarray]:
        """Each fold's predictions, by models trained one after the other on raw samples."""
        search, rows, prepared = self.search, self.search.split.labelled, self.search.prepared
        trainer = search.student.trainer(
            recipe.optimization(search.student.baseline), mixed_precision=search.settings.mixed_precision
        )
        factory, steps = recipe.factory(search.student.network), recipe.steps
        for i, (train, held) in enumerate(self.parts):
            one = partial(
                trainer.direct,
                factory,
                rows.take(train),
                classes=len(search.split.classes),
                seed=derive_seed("direct fold", search.seed, i),
                augment=search.settings.augment if recipe.augmented else None,
                preprocess=prepared.preprocess,
                weights=search.student.weights,
                watch=subset(rows.inputs, held),
                progress=partial(self._part, i * steps, len(self.parts) * steps),
            )
            trained = resumed_or_anew(one, self.folder / "folds" / f"{i}.safetensors")
            yield self._in_units(trained.watched[-1], *self._units(train))

    def _units(self, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Location and scale of the numbers of a fold's rows, in which its model was trained."""
        labels = self.search.split.labelled.labels
        return units_of(labels[train]) if labels.dtype == np.float64 else (np.zeros(1), np.ones(1))

    def _in_units(self, outputs: np.ndarray, location: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Logits as they are; a regression's outputs [M, W] as means, and variances, in the data's units."""
        if self.search.split.task != "regression":
            return outputs
        values = outputs.astype(np.float64)
        mean = location + scale * values[:, : len(scale)]
        if not self.search.student.variance:
            return mean
        return np.concatenate([mean, np.square(scale) * np.exp(values[:, len(scale) :])], axis=1)


@dataclass(frozen=True)
class _Search:
    """One student on the labelled rows of one split."""

    student: StudentConfig
    settings: DistillConfig
    split: Split
    seed: int
    prepared: PreparedStudent

    def numbers(self, recipe: Recipe) -> np.ndarray | None:
        """The labelled rows' inputs as one float32 array, on which models can be trained side by side; None
        where they are ids or fields, do not fit into memory, or are changed before they are prepared, and
        where only the student's own trainer has the settings."""
        rows, preprocess = self.split.labelled, self.prepared.preprocess
        if self.student.baseline.extras or self.student.trained_apart:
            return None  # side by side only AdamW is there, from new weights
        if isinstance(rows.inputs, np.ndarray) and preprocess is None:
            return as_float32("data", rows.inputs)
        if (recipe.augmented and self.settings.augment is not None) or rows.weights is not None:
            return None
        inputs = Preparation(preprocess, ids=True, argument="data").held(rows.inputs)
        numbers = isinstance(inputs, Tensor) and inputs.is_floating_point()
        return inputs.numpy() if numbers and isinstance(inputs, Tensor) else None
