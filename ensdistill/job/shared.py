"""One student for several jobs: a trunk with a head for the data set of each, from that job's own cache."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import ensdistill
from ensdistill.cache import TargetCache
from ensdistill.common.completion import completed
from ensdistill.common.describe import describe, make_module, module_recipe
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimizers import StudentOptimization, as_student
from ensdistill.common.progress import Progress
from ensdistill.common.random import derive_seed
from ensdistill.common.scalars import plain_fields
from ensdistill.data.preprocess import fitted
from ensdistill.data.samples import form, joined
from ensdistill.job.config import Config
from ensdistill.job.evaluate import evaluate, student_models
from ensdistill.job.run_folder import TRAINING, RunFolder, finish, is_done, resumed_or_anew
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.unit import Unit
from ensdistill.report.results import RunResults, StudentResults
from ensdistill.student.inputs import Preparation, call, takes_ids
from ensdistill.student.shared import Headed, HeadSet, distill_sets

ALONE, SHARED = "alone", "shared"
EVERY = 1024  # steps between two checkpoints


@dataclass(frozen=True)
class SharedSet:
    """One data set of a shared student.

    Parameters
    ----------
    config : path
        The settings of an ordinary job: its data, teachers, cache and loss. Its students are not trained.
    weight : float
        The share of the steps, in proportion to the weights of all sets.
    """

    config: Path
    weight: float = 1.0


@dataclass(frozen=True)
class SharedConfig:
    """Several jobs whose ensembles are distilled into one trunk with a head for each.

    Parameters
    ----------
    sets : dict of str to SharedSet
    trunk : class_path with init_args
        A module from the samples to features [N, F]; ``outputs`` is F, and has to be given. Of its arguments
        ``inputs`` and the like, those that are not given are taken from the data.
    features : int
        F.
    optimization : StudentOptimization
        ``steps`` are those of each set: the shared training has as many for all of them together. Numbers
        have to be given.
    name, folder, seeds
        As those of a job; the jobs' own are not used.
    """

    sets: dict[str, SharedSet]
    trunk: Callable[[], nn.Module]
    features: int
    optimization: StudentOptimization = field(default_factory=StudentOptimization)
    name: str = "shared"
    folder: Path = Path("runs")
    seeds: int = 3

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "optimization", as_student(self.optimization))
        if len(self.sets) < 2:
            raise ValueError(f"sets: expected at least two; got {', '.join(self.sets) or 'none'}")
        if self.optimization.automatic:
            raise ValueError(
                "optimization: expected numbers for steps, batch_size and learning_rate, which are not found "
                f"for several sets; got auto for {', '.join(self.optimization.automatic)}"
            )
        if self.features < 1 or self.seeds < 1:
            raise ValueError(
                f"features, seeds: expected at least 1 each; got {self.features} and {self.seeds}"
            )
        recipe = module_recipe(self.trunk)
        if recipe is None:
            raise ValueError(f"trunk: expected a module class with plain arguments; got {self.trunk!r}")
        # Without them the network alone would get the set's classes as the trunk's outputs.
        takes = inspect.signature(self.trunk).parameters
        if "outputs" in takes and recipe["init_args"].get("outputs") is None:
            raise ValueError(f"trunk.outputs: expected {self.features}, the features; got none")
        for name, own in self.sets.items():
            if not own.weight > 0:
                raise ValueError(f"sets.{name}.weight: expected a number above 0; got {own.weight}")

    @property
    def run_folder(self) -> Path:
        return self.folder / self.name

    def head(self, classes: int) -> partial[nn.Linear]:
        return partial(nn.Linear, in_features=self.features, out_features=classes)

    def job(self, name: str, config: Config) -> Config:
        """Return the job of one set, whose student is the same network alone. The shared student is compared
        with it."""
        classes = len(config.split(0).classes)
        network = partial(Headed, trunk=self.trunk, head=self.head(classes))
        alone = StudentConfig(network, self.optimization, description="the same network, of this set alone")
        students = replace(config.distill, students={ALONE: alone})
        return replace(config, distill=students, folder=self.run_folder, name=name, seeds=self.seeds)


def check_sets(shared: SharedConfig, jobs: Mapping[str, Config]) -> None:
    """Refuse, before hours of work, sets of another task, of unlike samples, or with caches of several
    versions, and a trunk that does not fit.

    Raises
    ------
    ValueError
        Names the set.
    """
    first, forms = next(iter(jobs)), {}
    for name, config in jobs.items():
        split = config.split(0)
        if split.task == "regression":
            raise ValueError(f"sets.{name}: expected classification or multilabel; got regression")
        if config.cache.views > 1 or config.cache.augment is not None:
            raise ValueError(f"sets.{name}.cache: expected one version of each row; got views or augment")
        if config.distill.method is not None:
            raise ValueError(f"sets.{name}.distill.method: expected none, but loss; got one")
        forms[name] = form(split.labelled.inputs)
        if forms[name] != forms[first]:
            raise ValueError(
                f"sets.{name}: expected samples like those of {first}, which the trunk takes, "
                f"{forms[first]}; got {forms[name]}"
            )
    trunk, preprocess, example = _trunk(shared, jobs, 0)
    module = make_module(trunk).eval()
    found = call(module, Preparation(preprocess, takes_ids(module))(example))
    if found.ndim != 2 or found.shape[1] != shared.features:
        raise ValueError(
            f"trunk: expected features [N, {shared.features}] (features); got {list(found.shape)}: give the "
            "trunk's outputs the same number"
        )


def _trunk(shared: SharedConfig, jobs: Mapping[str, Config], seed: int) -> tuple[Any, Any, Any]:
    """The trunk with the sizes of the data, the preprocess that is fitted to the labelled rows and pools of
    all sets, and two samples."""
    splits = [config.split(seed) for config in jobs.values()]
    parts = [part.inputs for split in splits for part in (split.labelled, split.pool) if len(part)]
    samples = joined(parts)
    preprocess = fitted("auto", samples, seed=derive_seed("preprocess", seed))
    example = samples[:2] if preprocess is None else preprocess(samples[:2])
    return completed(shared.trunk, example, shared.features, preprocess), preprocess, samples[:2]


def train_shared(
    shared: SharedConfig, jobs: Mapping[str, Config], seed: int, progress: Progress | None = None
) -> dict[str, Path]:
    """Train one seed's shared student from the finished caches of the jobs, unless it is there already. One
    that was killed goes on from its last checkpoint.

    Returns
    -------
    dict of str to Path
        The folder of the student of each set, a member with the same trunk.
    """
    runs = {name: RunFolder(config) for name, config in jobs.items()}
    folder = shared.run_folder / SHARED / f"seed-{seed}"
    places = {name: folder / name for name in jobs}
    caches = [[name, own.digest(Unit("cache", seed))] for name, own in runs.items()]
    weights = {name: own.weight for name, own in shared.sets.items()}
    losses = [describe(config.distill.loss) for config in jobs.values()]
    settings = [describe(shared.trunk), shared.features, describe(shared.optimization), weights, losses]
    inputs = digest([ensdistill.__version__, SHARED, seed, caches, settings])
    if is_done(folder, inputs):
        return places
    start, sets = time.perf_counter(), {}
    trunk, preprocess, _ = _trunk(shared, jobs, seed)
    for name, run in runs.items():
        cache = TargetCache.open(run.of(Unit("cache", seed)) / "targets", trusted=run.trusted)
        config = jobs[name]
        head = shared.head(len(config.split(seed).classes))
        loss = config.distill.loss
        sets[name] = HeadSet(run.transfer(seed), cache, head, weights[name], loss=loss, held_out=0.0)
    steps = shared.optimization.steps
    assert isinstance(steps, int)
    together = replace(shared.optimization, steps=steps * len(sets))
    train = partial(
        distill_sets,
        trunk,
        sets,
        together,
        seed=derive_seed(SHARED, seed),
        preprocess=preprocess,
        progress=progress,
        checkpoint_every=EVERY,
    )
    checkpoint = folder / TRAINING / "checkpoint.safetensors"
    trained = resumed_or_anew(train, checkpoint)
    for name, place in places.items():
        trained.member(name, jobs[name].split(seed).classes).save(place)
    checkpoint.unlink(missing_ok=True)
    finish(folder, inputs, time.perf_counter() - start)
    return places


def results_of(shared: SharedConfig, name: str, config: Config, *, timed: bool = True) -> RunResults:
    """The results of one set's job with two students: the shared one, for the headline, and the same network
    of this set alone, whose baselines both have."""
    run = RunFolder(config)
    results = evaluate(run, timed=timed)
    (alone,) = results.students
    places = [shared.run_folder / SHARED / f"seed-{seed}" / name for seed in range(config.seeds)]
    models = student_models(run, ALONE, places, timed=timed)
    others = ", ".join(other for other in shared.sets if other != name)
    about = f"the head of {name} on a trunk that it shares with {others}"
    student = StudentResults(SHARED, about, {**alone.models, **models}, {})
    return replace(results, students=[student, alone])
