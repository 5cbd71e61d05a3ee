"""Numbers for the settings of a student's optimisation that are ``auto``.

Steps and batch size follow from the rows and from the work of a step. The learning rate is found by short
trainings with the student's own schedule, which are judged on rows that they did not learn from. This is the
range test of Smith, 2017, "Cyclical Learning Rates for Training Neural Networks", with a training for each
rate: a single training with a growing rate is judged before it has converged.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from ensdistill.common.checkpoint import read_about
from ensdistill.common.optimization import AUTO, Optimization, trained_parameters
from ensdistill.common.optimizers import StudentOptimization, student_settings
from ensdistill.common.processes import Processes, processes
from ensdistill.common.random import derive_seed, random_generator
from ensdistill.data import Rows
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.student.comparisons import LARGER_IS_BETTER
from ensdistill.student.engine import device_type
from ensdistill.student.inputs import Preparation, call, takes_ids
from ensdistill.student.operations import OperationCounter
from ensdistill.student.preconditions import build_student
from ensdistill.student.validation import Validation, draw_share

if TYPE_CHECKING:
    from ensdistill.common.progress import Progress
    from ensdistill.student.trainer import StudentTrainer
    from ensdistill.student.training import Trained, Training

# The work of a step beyond its multiplications, in as many operations as take that long: the calls of its
# layers, and AdamW, which reads and writes each parameter several times.
PER_STEP, PER_PARAMETER = 1e7, 30
# The learning rate: trainings of a share of the steps, by factors of the square root of ten. Short ones need
# higher rates than long ones: on four tables two to four times that of trainings of 30 to 60 times the steps.
SHARE, SHORTEST, FROM = 0.015, 64, 1000
FACTOR, FIRST, TRIALS = math.sqrt(10), 10.0, 7
LONGER = {"targets": 0.4, "labels": 1.0}  # times the best rate of the short trainings
# A short training meets most n-grams once or never, so high rates are best there, by which a long one learns
# its rows by heart: docs/texts.md has the comparison.
RARE = 0.1
SMALL = 50_000  # parameters up to which a model is small
HELD_OUT, HELD_SHARE, FEWEST = 2000, 0.2, 50


@dataclass(frozen=True)
class Rule:
    """The number and the size of a training's steps.

    Parameters
    ----------
    batches : tuple of int
        Sizes of a batch, the smallest first.
    epochs : int
        Passes over the rows, within ``least`` and ``most`` steps.
    least, most : int
        Steps.
    operations : float
        Floating-point operations of the whole training, at most: 2e10 take a second of one core.
    few : int
        Epochs that large models make in any case.
    """

    batches: tuple[int, ...]
    epochs: int
    least: int
    most: int
    operations: float
    few: int

    def steps(self, rows: int, size: int, work: float) -> int:
        """In whole blocks of 32; ``work`` is the number of operations of a step."""
        wanted = min(max(self.epochs * rows / size, self.least), self.most)
        steps = min(wanted, max(self.operations / work, self.few * rows / size, 96))
        return 32 * math.ceil(steps / 32)

    def batch(self, rows: int, work: Callable[[int], float]) -> int:
        """The smallest size with which a training makes its epochs, or else the one that makes the most.

        Parameters
        ----------
        rows : int
        work : callable
            Returns the operations of a step with batches of a size.

        Examples
        --------
        >>> [LABELS.batch(rows, lambda size: 1e5 * size) for rows in (3000, 7000, 10**6)]
        [64, 128, 256]
        """

        def epochs(size: int) -> int:
            return min(self.epochs, round(self.steps(rows, size, work(size)) * size / rows))

        return max(self.batches, key=lambda size: (epochs(size), -size))


# Soft targets are hard to overfit, so a student makes many epochs. The steps on labels are the longest of
# those among which held-out rows choose. More rows have larger batches, with which they make enough epochs:
# docs/numbers.md has the comparison. Augmented rows differ in each epoch, so they make ten times as many.
TARGETS = Rule(batches=(256,), epochs=60, least=2000, most=25_000, operations=1e12, few=5)
DIRECT = StudentOptimization(weight_decay=0.05)  # where the settings name none; its folds try more and less
LABELS = Rule(batches=(64, 128, 256), epochs=100, least=1000, most=6000, operations=2e11, few=10)
AUGMENTED = replace(LABELS, batches=(64,), epochs=1000, operations=1e11)
Kind = TypeVar("Kind", bound=Optimization)
Trial = Callable[["StudentTrainer", Rows, Validation, "Progress | None"], "Trained"]


@dataclass(frozen=True)
class Automatic:
    """The numbers that were found for one training.

    Parameters
    ----------
    names : tuple of str
        The settings that were ``auto``.
    steps, batch_size : int
    learning_rate : float
    tried : tuple of (float, float)
        Learning rates, and the score of each on rows that it did not learn from, infinite where the training
        diverged; empty where none was tried.
    metric : str
        Of the scores.
    trial_steps : int
        Of each rate's training.
    """

    names: tuple[str, ...]
    steps: int
    batch_size: int
    learning_rate: float
    tried: tuple[tuple[float, float], ...] = ()
    metric: str = ""
    trial_steps: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """All three numbers, as they stand under ``optimization`` in YAML."""
        return {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }

    def __str__(self) -> str:
        numbers = ", ".join(f"{name}: {value}" for name, value in self.settings.items())
        if not self.tried:
            return numbers
        scores = ", ".join(
            f"{'diverged' if math.isinf(score) else f'{score:.4g}'} at {rate:.2g}"
            for rate, score in sorted(self.tried)
        )
        return f"{numbers} ({self.metric} of {self.trial_steps} steps: {scores})"

    def applied(self, optimization: Kind) -> Kind:
        """The settings with these numbers in place of those that are ``auto``."""
        return optimization.with_numbers(self.steps, self.batch_size, self.learning_rate)

    def record(self) -> dict[str, Any]:
        """As JSON, which has no infinite numbers, from which :func:`of_record` makes it again."""
        tried = [[rate, None if math.isinf(score) else score] for rate, score in self.tried]
        return {**vars(self), "names": list(self.names), "tried": tried}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Automatic:
        tried = tuple(
            (float(rate), math.inf if score is None else float(score)) for rate, score in record["tried"]
        )
        return cls(**{**record, "names": tuple(record["names"]), "tried": tried})


def with_numbers(
    trainer: StudentTrainer, training: Training, trial: Trial
) -> tuple[StudentTrainer, Automatic | None]:
    """The trainer with numbers in place of settings that are ``auto``, and a record of them; None where no
    setting is ``auto``.

    Processes of one training have the same numbers. A training that goes on from a checkpoint has those of
    the checkpoint.

    Parameters
    ----------
    trainer : StudentTrainer
    training : Training
    trial : callable
        Trains a student by another trainer on some of the rows.
    """
    asked = trainer.optimization
    if not asked.automatic:
        return trainer, None
    with processes(device_type(trainer.cpu, trainer.mixed_precision)) as group:
        found = _recorded(training, asked, group)
        if found is None:
            with group.together():
                found = by_rule(trainer, training, group.count)
            if "learning_rate" in asked.automatic and found.steps >= FROM:
                found = _tried(trainer, training, trial, found)
    return _applied(trainer, found), found


def by_rule(trainer: StudentTrainer, training: Training, count: int = 1) -> Automatic:
    """Steps and batch size by the rows and the model, and the learning rate that a search for it starts
    with."""
    asked, rule = trainer.optimization, TARGETS
    if training.targets is None:
        rule = LABELS if training.augment is None else AUGMENTED
    model = _built(training)
    size = asked.batch_size
    if size == AUTO:
        whole = count * student_settings(asked).accumulate  # each process divides its share into parts
        quarter = max(16, len(training.rows) // 32 * 8)  # of few rows, in whole vectors of eight
        wanted = rule.batches[0]
        if len(rule.batches) > 1:
            wanted = rule.batch(len(training.rows), work_of(model, training.rows, training.preprocess))
        size = whole * -(-min(wanted, quarter) // whole)
    steps = asked.steps
    if steps == AUTO:
        steps = usual_steps(model, training.rows, training.preprocess, size, rule)
    rate = asked.learning_rate
    if rate == AUTO:
        rate = _first_rate(asked, trained_parameters(model))
    return Automatic(asked.automatic, steps, size, rate)


def _built(training: Training) -> nn.Module:
    """The student before its training."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(derive_seed("student", training.seed))
        return build_student(
            training.factory,
            training.rows,
            training.classes,
            training.preprocess,
            training.weights,
            training.task,
        )


def usual_steps(
    model: nn.Module, rows: Rows, preprocess: Preprocess | None, size: int, rule: Rule | None = None
) -> int:
    """Steps of a training by a rule, by default that of trainings on targets, in batches of ``size``."""
    return (rule or TARGETS).steps(len(rows), size, work_of(model, rows, preprocess)(size))


def work_of(model: nn.Module, rows: Rows, preprocess: Preprocess | None) -> Callable[[int], float]:
    """The operations of a training step with batches of a size."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):  # dropout draws random numbers
        row = 3 * _operations(model, rows, preprocess)
    return lambda size: size * row + PER_PARAMETER * trained_parameters(model) + PER_STEP


def lengthened(optimization: Kind, steps: int) -> Kind:
    """The settings of a training on targets with more steps, and the lower rate that a longer one needs.

    Examples
    --------
    >>> lengthened(StudentOptimization(steps=100, batch_size=32, learning_rate=0.01), 6000).learning_rate
    0.0041
    """
    if steps <= optimization.steps:
        return optimization
    factor = (steps / optimization.steps) ** (math.log(LONGER["targets"]) / math.log(1 / SHARE))
    return replace(
        optimization, steps=steps, learning_rate=float(f"{factor * optimization.learning_rate:.2g}")
    )


def _operations(model: nn.Module, rows: Rows, preprocess: Preprocess | None) -> float:
    """Floating-point operations of the forward pass of one row."""
    inputs = Preparation(preprocess, takes_ids(model))(rows.inputs[:2])
    with torch.enable_grad(), OperationCounter() as counter:
        call(model, inputs)
    return counter.total / min(2, len(rows))


def _is_bag(model: nn.Module) -> bool:
    """Whether most of the parameters are embeddings of a bag of tokens or n-grams."""
    bags = [p for m in model.modules() if isinstance(m, nn.EmbeddingBag) for p in m.parameters(recurse=False)]
    return 2 * sum(p.numel() for p in bags) > sum(p.numel() for p in model.parameters())


def _first_rate(optimization: Optimization, parameters: int) -> float:
    """Ten times the optimiser's own default, because a schedule lowers it again; less for large models."""
    own = optimization.optimizer if isinstance(optimization, StudentOptimization) else None
    known = None if own is None else inspect.signature(own).parameters.get("lr")
    default = None if known is None else known.default  # a subclass may pass its arguments on by **keywords
    usual = float(default) if isinstance(default, int | float) else 1e-3
    return float(f"{FIRST * usual * min(1.0, math.sqrt(SMALL / parameters)):.2g}")


def _recorded(training: Training, asked: Optimization, group: Processes) -> Automatic | None:
    """The numbers in the checkpoint from which the training goes on."""
    newest = None if training.checkpoint is None or group.rank else training.checkpoint.newest()
    record = None if newest is None else read_about(newest).get("automatic")
    text = group.first(json.dumps(record).encode()) or b"null"
    found = None if (record := json.loads(text)) is None else Automatic.of_record(record)
    return found if found is not None and found.names == asked.automatic else None


def _tried(trainer: StudentTrainer, training: Training, trial: Trial, found: Automatic) -> Automatic:
    """The numbers with the best learning rate of some short trainings."""
    steps = max(SHORTEST, round(SHARE * found.steps))
    rows, held = _some_rows(training.rows, steps * found.batch_size, training.seed)
    if held is None:
        return found
    settings = replace(found, steps=steps)
    tried: dict[float, float] = {}
    metric = ""

    def score(rate: float) -> float:
        """Lower is better."""
        nonlocal metric
        if rate not in tried:
            own = _applied(trainer, replace(settings, learning_rate=rate), steps=steps)
            own.callbacks, own.trackers, own.compile, own.ema = (), (), False, None
            validation, shown = Validation(rows=held, every=steps), training.progress
            if shown is not None:
                shown = _within(shown, len(tried) * steps, found.steps + TRIALS * steps)
            try:
                choice = trial(own, rows, validation, shown).choice
            except FloatingPointError:
                tried[rate] = math.inf
            else:
                assert choice is not None
                assert choice.metric is not None
                assert choice.value is not None
                metric = choice.metric
                value = -choice.value if metric in LARGER_IS_BETTER else choice.value
                tried[rate] = value if math.isfinite(value) else math.inf
        return tried[rate]

    factor = LONGER["labels" if training.targets is None else "targets"]
    if _is_bag(_built(training)):
        factor *= RARE
    rate = float(f"{factor * _lowest(score, found.learning_rate, TRIALS):.2g}")
    return replace(found, learning_rate=rate, tried=tuple(tried.items()), metric=metric, trial_steps=steps)


def _lowest(score: Callable[[float], float], first: float, most: int) -> float:
    """Where a function of the logarithm is lowest: steps by a factor until both neighbours are higher, then
    the lowest point of the parabola through the three.

    Examples
    --------
    >>> round(_lowest(lambda rate: (math.log10(rate) + 1.6) ** 2, 0.1, 7), 4)
    0.0251
    """
    places = {k: score(first * FACTOR**k) for k in (0, 1, -1)}
    while (best := min(places, key=lambda k: places[k])) in (min(places), max(places)) or math.isinf(
        places[best]
    ):
        if len(places) >= most:
            break
        # Where all rates diverged, a lower one may not.
        down = best == min(places) or math.isinf(places[best])
        place = min(places) - 1 if down else max(places) + 1
        places[place] = score(first * FACTOR**place)
    below, here, above = (places.get(best + k, math.inf) for k in (-1, 0, 1))
    shift = 0.0
    if math.isfinite(below) and math.isfinite(above) and below + above > 2 * here:
        shift = (below - above) / (2 * (below + above - 2 * here))
    return first * FACTOR ** (best + shift)


def _some_rows(rows: Rows, wanted: int, seed: int) -> tuple[Rows, Rows | None]:
    """Rows to learn from, and others that judge; None where they are too few."""
    if len(rows) < FEWEST:
        return rows, None
    held = min(HELD_OUT, round(HELD_SHARE * len(rows)))
    if len(rows) > wanted + held:
        generator = random_generator("learning rate", seed)
        chosen = generator.choice(len(rows), wanted + held, replace=False)
        # A loss with labels needs some rows that have one, here and below.
        labelled = np.flatnonzero(rows.known)
        chosen = np.union1d(chosen, labelled[: 2 * FEWEST])
        rows = rows.take(chosen)
    try:
        drawn = draw_share(rows, held / len(rows), seed)
    except ValueError:  # groups of which none can be held out
        return rows, None
    known = rows.known
    if known.any() and not (known & ~drawn).any():
        drawn &= ~known
    return (rows.take(~drawn), rows.take(drawn)) if drawn.any() else (rows, None)


def _applied(trainer: StudentTrainer, found: Automatic, steps: int | None = None) -> StudentTrainer:
    """A copy of the trainer with these numbers; ``steps`` replaces its number of steps."""
    own = copy(trainer)
    own.optimization = found.applied(trainer.optimization)
    if steps is not None:
        own.optimization = replace(own.optimization, steps=steps)
    return own


def _within(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)
