"""Settings of networks that are found before an ensemble is trained, by trainings of one member that held-out
rows judge."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.common.fingerprint import digest
from ensdistill.common.optimization import trained_parameters
from ensdistill.common.random import derive_seed
from ensdistill.common.source import source_digest
from ensdistill.data.samples import subset
from ensdistill.teachers.choices import Choices
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members.moments import Moments
from ensdistill.teachers.predict import over_parts, predicted
from ensdistill.teachers.prepared import Prepared
from ensdistill.teachers.recipes import Recipe, TorchMembers

SMOOTHING = 0.1
HIGHER, LOWER = 2.0, 0.25  # times the learning rate; inputs that are not scaled need the lower one
SHORTER = (4, 16)  # the steps divided by so much
DECAYS = (10.0, 100.0)  # times the weight decay
# AdamW multiplies the parameters by 1 - learning rate · weight decay in every step; beyond this the decay
# outweighs any gradient.
LARGEST_DECAY = 0.1
DROPOUT = 0.5
MANY = 20_000  # rows from which networks of these sizes no longer overfit
FEW, PARTS = 500, 3  # with fewer rows so many folds judge, else one
MOST = 5 + len(SHORTER) + len(DECAYS)  # trainings: the first, smoothed labels, two rates, dropout, and those
Parts = Sequence[tuple[np.ndarray, np.ndarray]]  # of each fold the rows to learn from, and those held out


@dataclass(frozen=True)
class Choice:
    """Settings of one training.

    Parameters
    ----------
    steps : int
    learning_rate, weight_decay, label_smoothing : float
    dropout : float or None
        None: the model has no such argument.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    dropout: float | None

    def __str__(self) -> str:
        dropout = "" if self.dropout is None else f", dropout {self.dropout:g}"
        smoothing = f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        rates = f"learning rate {self.learning_rate:g}, weight decay {self.weight_decay:g}"
        return f"{self.steps} steps, {rates}{dropout}{smoothing}"


def tuned(
    recipe: Recipe,
    data: TrainingRows,
    parts: Parts,
    seed: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recipe:
    """The recipe with the settings that its ``tune`` asks for; any other recipe as it is, as with many rows.

    One choice after the other, by the loss on held-out rows after calibration: smoothed labels, learning
    rate, a shorter training, weight decay, dropout.

    Parameters
    ----------
    recipe : Recipe
        Prepared, where it has a preprocess.
    data : TrainingRows
        Raw, if the recipe is prepared.
    parts : sequence of (ndarray, ndarray)
        Folds of these rows.
    seed : int
        The ensemble's.
    folder : Path, optional
        Judgements are kept here: the same call after a kill goes on.
    progress : callable (done, total), optional
        In trainings; the total is the most that there can be.

    Raises
    ------
    FloatingPointError
        Every training diverged.
    """
    network = recipe.recipe if isinstance(recipe, Prepared) else recipe
    if not (isinstance(network, TorchMembers) and network.tune) or len(data.labels) > MANY:
        return recipe
    made = _Trials(recipe, network, data, parts[: 1 if len(data.labels) >= FEW else PARTS], seed)
    known = Choices(made.labels, folder, made.inputs())
    best = _climbed(made.first, data.task, partial(_judged, made, known, progress))
    if not math.isfinite(known.nll(str(best), made.nothing)):
        raise FloatingPointError(
            f"{network.name}: every training of the search for its settings diverged; a lower "
            "optimization.learning_rate may help"
        )
    return made.recipe_of(best)


def _climbed(first: Choice, task: str, loss: Callable[[Choice], float]) -> Choice:
    best = first

    def better(changed: Choice) -> bool:
        nonlocal best
        if loss(changed) < loss(best):
            best = changed
            return True
        return False

    if task != "regression":
        better(replace(best, label_smoothing=0.0 if best.label_smoothing else SMOOTHING))
    if not better(replace(best, learning_rate=HIGHER * first.learning_rate)):
        better(replace(best, learning_rate=LOWER * first.learning_rate))
    for shorter in SHORTER:
        if not better(replace(best, steps=max(1, first.steps // shorter))):
            break
    for factor in DECAYS:
        decay = factor * (first.weight_decay or 0.01)
        if best.learning_rate * decay > LARGEST_DECAY or not better(replace(best, weight_decay=decay)):
            break
    if first.dropout is not None and first.dropout < DROPOUT:
        better(replace(best, dropout=DROPOUT))
    return best


def _judged(
    made: _Trials, known: Choices, progress: Callable[[int, int], None] | None, choice: Choice
) -> float:
    loss = known.nll(str(choice), partial(made.held_out, choice))
    if progress is not None:
        progress(len(known), MOST)
    return loss


class _Trials:
    """Trainings of one member of a recipe on folds."""

    def __init__(
        self, recipe: Recipe, network: TorchMembers, data: TrainingRows, parts: Parts, seed: int
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            size = trained_parameters(network.model())
        numbers = network.optimization.for_member(len(data.labels), size)
        self.network = replace(network, optimization=numbers, tune=False)
        self.recipe, self.data, self.parts = recipe, data, parts
        self.seed = derive_seed("tuning", seed, network.name)
        self.labels = data.labels[np.concatenate([held for _, held in parts])]
        dropout = dropout_of(network.model)
        self.first = Choice(
            numbers.steps, numbers.learning_rate, numbers.weight_decay, numbers.label_smoothing, dropout
        )

    def inputs(self) -> str:
        """A digest of everything that the judgements depend on."""
        data = self.data
        rows = [data.inputs, data.labels, list(data.classes), data.weights, *map(list, self.parts)]
        return digest([self.recipe.fingerprint(), rows, self.seed, source_digest(tuned)])

    def recipe_of(self, choice: Choice) -> Recipe:
        optimization = replace(
            self.network.optimization,
            steps=choice.steps,
            learning_rate=choice.learning_rate,
            weight_decay=choice.weight_decay,
            label_smoothing=choice.label_smoothing,
        )
        model = self.network.model
        if choice.dropout is not None and choice.dropout != self.first.dropout:
            model = partial(model, **{"dropout": choice.dropout})
        made = replace(self.network, optimization=optimization, model=model)
        return replace(self.recipe, recipe=made) if isinstance(self.recipe, Prepared) else made

    def held_out(self, choice: Choice) -> Any:
        """The predictions of the rows held out, fold after fold: logits [M, C], or Moments [M, D]."""
        jobs = [
            Job(f"{self.network.name}, tuning {i + 1}", derive_seed("tuning", self.seed, i), rows, rows)
            for i, (rows, _) in enumerate(self.parts)
        ]
        found = np.concatenate([*self._predicted(self.recipe_of(choice), jobs)])
        if self.data.task != "regression":
            return found
        return Moments(found[:, 0], None if np.isnan(found[:, 1]).any() else found[:, 1])

    def _predicted(self, recipe: Recipe, jobs: list[Job]) -> Iterator[np.ndarray]:
        trained = {job.name: member for job, member in recipe.fit(self.data, jobs)}
        for job, (_, held) in zip(jobs, self.parts, strict=True):
            ask = partial(predicted, trained[job.name], names=self.data.classes)
            yield over_parts(subset(self.data.inputs, held), ask)

    def nothing(self) -> Any:
        raise FloatingPointError


def dropout_of(model: Callable[..., Any]) -> float | None:
    """The value of the model's argument ``dropout``; None where it has no such argument."""
    base = inspect.signature(model).parameters.get("dropout")  # its default is a functools.partial's value
    return float(base.default) if base is not None and isinstance(base.default, int | float) else None
