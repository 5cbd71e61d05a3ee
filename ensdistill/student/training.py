"""The loop of a student's training, in as many processes as ``accelerate launch`` or ``torchrun`` started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.optimizers import build_optimizer, student_settings
from ensdistill.common.processes import processes
from ensdistill.common.progress import Progress
from ensdistill.common.random import derive_seed
from ensdistill.common.tasks import Task
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.data.samples import as_samples
from ensdistill.student.accumulation import add_gradients, check_divides, warn_of_parts
from ensdistill.student.averaging import WeightAverage
from ensdistill.student.batch_statistics import share_buffers, synchronised_norms
from ensdistill.student.batches import BLOCK, Batches
from ensdistill.student.callbacks import Hooks, TrainingState
from ensdistill.student.checkpoint_files import CheckpointFiles
from ensdistill.student.companion import WithCompanion, check_layers, features_of, notes_of, student_of
from ensdistill.student.cost import StepCost
from ensdistill.student.curve import Curve
from ensdistill.student.divergence import diverged
from ensdistill.student.engine import Engine, clip_norm_of, device_type, start_engine
from ensdistill.student.inputs import Inputs, Preparation, call, takes_ids
from ensdistill.student.machines import Division
from ensdistill.student.methods import Start, StudentLoss, changes_network
from ensdistill.student.preconditions import build_student, check_method
from ensdistill.student.recompute import recomputed
from ensdistill.student.resume import Checkpoint, describe_training, training_fingerprint
from ensdistill.student.selection import Choice, Evaluation, Selection
from ensdistill.student.sharding import Sharding, check_shardable
from ensdistill.student.shrink.compact import Compact
from ensdistill.student.shrink.machine import check_machine
from ensdistill.student.shrink.rounding import Rounding
from ensdistill.student.sources import RowTargets
from ensdistill.student.tracking import Record
from ensdistill.student.units import Units
from ensdistill.student.validation import Examination, HeldOut
from ensdistill.student.weights import Weights
from ensdistill.teachers.members import Member, Preprocessed, TorchMember
from ensdistill.teachers.members.outputs import Output

if TYPE_CHECKING:
    from ensdistill.student.automatic import Automatic
    from ensdistill.student.trainer import StudentTrainer


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Parameters
    ----------
    module : Module
        In eval mode, on the CPU. Of a regression a :class:`ensdistill.teachers.members.Standardised`, which
        returns means in the data's units, or means and variances; its ``model`` is the network.
    steps : ndarray [P], int64
        The steps at which the learning curve has points.
    losses : ndarray [P], float64
        The mean training loss (nats) since the point before, over all processes.
    watched : ndarray [P, M, C], float32
        The logits for the watched inputs at each point; M = 0 where none were watched. Of a regression the
        network's outputs, in standardised units.
    preprocess : Preprocess or None
        From raw samples to the module's input, where the training had one.
    cost : StepCost or None
        The time of a step, and of its targets: ``print(trained.cost)``.
    choice : Choice or None
        Which weights ``module`` has: after which step, the student's or their average, and why.
    evaluations : tuple of Evaluation
        All evaluations of a training with validation.
    average : Module or None
        The average of the student's weights at the end, of a training with ``ema``; in eval mode, on the CPU.
    automatic : Automatic or None
        The numbers that were found for settings that are ``auto``; None where none is.
    task : {"classification", "multilabel", "regression"}
    units : Units or None
        Of a regression.
    network : callable or None
        How the method changed the student's factory; None where it did not.
    notes : tuple of str
        What the method has to say of the training, as a collapse; for the report.
    """

    module: nn.Module
    steps: np.ndarray
    losses: np.ndarray
    watched: np.ndarray
    preprocess: Preprocess | None = None
    cost: StepCost | None = None
    choice: Choice | None = None
    evaluations: tuple[Evaluation, ...] = ()
    average: nn.Module | None = None
    automatic: Automatic | None = None
    task: Task = "classification"
    units: Units | None = None
    network: Callable[[Any], Any] | None = None
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The choice of weights and all evaluations, as plain data."""
        return {
            "choice": None if self.choice is None else asdict(self.choice),
            "evaluations": [asdict(one) for one in self.evaluations],
        }

    def member(
        self,
        name: str = "student",
        *,
        classes: Sequence[str] | None = None,
        factory: Callable[[], nn.Module] | None = None,
    ) -> Member:
        """The student with its preprocess, as a member: it predicts raw samples, and is saved by
        ``save(folder)``.

        Parameters
        ----------
        name : str
        classes : sequence of str, optional
        factory : callable, optional
            The module's class, or a ``functools.partial`` of it, by which loading builds it again; the one
            that ``distill`` was given.
        """
        output: Output = "logits"
        network = self.module if self.units is None else self.module.model
        if isinstance(network, Compact):  # which is served in another form than it was trained in
            factory = network.made_by(factory)
        if self.network is not None and factory is not None:
            factory = self.network(factory)
        if self.units is not None:
            outputs = self.watched.shape[2]
            output = "mean" if outputs == len(self.units.location) else "mean_and_variance"
            factory = None if factory is None else self.units.factory(factory)
        member = TorchMember(
            self.module, name=name, classes=classes, factory=factory, output=output, task=self.task
        )
        return member if self.preprocess is None else Preprocessed(member, self.preprocess)


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """The checked arguments of :meth:`StudentTrainer.distill` or :meth:`StudentTrainer.direct`.

    ``targets`` is None for a training on labels alone. ``augment`` changes inputs at random; the versions of
    ``targets`` are their own. ``classes`` is the number of classes, labels or numbers; the labels of ``rows``
    have the task's form. ``factory`` is the one that the method made of the caller's; ``members`` is the
    number of the targets' members.
    """

    factory: Callable[[], nn.Module]
    rows: Rows
    classes: int
    loss: StudentLoss
    targets: RowTargets | None
    augment: Augmentation | None
    preprocess: Preprocess | None
    workers: int | None
    seed: int
    watch: Any
    checkpoint: CheckpointFiles | None
    checkpoint_every: int
    progress: Progress | None
    validation: HeldOut | None = None
    weights: Weights | None = None
    division: Division | None = None
    task: Task = "classification"
    units: Units | None = None
    members: int = 1

    def build(self) -> tuple[nn.Module, int]:
        """A new student, and its number of outputs for each row."""
        model = build_student(self.factory, self.rows, self.classes, self.preprocess, self.weights, self.task)
        return model, self.classes if self.task != "regression" else self._outputs(model)

    def companion(self, model: nn.Module) -> nn.Module | None:
        """The method's own module beside a new student."""
        start = Start(model, self.factory, self._first(model), self.members, self.classes)
        return self.loss.companion(start)

    def _first(self, model: nn.Module) -> Inputs:
        return Preparation(self.preprocess, takes_ids(model))(self.rows.inputs[:2])

    def _outputs(self, model: nn.Module) -> int:
        with torch.no_grad():
            return int(call(model, self._first(model)).shape[1])

    def finished(self, network: nn.Module) -> nn.Module:
        """The trained network as the module that predicts: without a companion, as it is served, and of a
        regression in the data's units."""
        student = student_of(network)
        student = student.finished() if isinstance(student, Rounding) else student
        return student.eval() if self.units is None else self.units.restored(student)


def train(trainer: StudentTrainer, training: Training, automatic: Automatic | None = None) -> Trained:
    """Train one student; ``trainer.training_step`` computes the loss of each batch. ``automatic`` is the
    record of numbers that the trainer's settings left to be found."""
    kind = device_type(trainer.cpu, trainer.mixed_precision)
    steps, size, seed = trainer.optimization.steps, trainer.optimization.batch_size, training.seed
    devices = [torch.cuda.current_device()] if kind == "cuda" else []
    with processes(kind) as group, torch.random.fork_rng(devices):
        if size % group.count:
            raise ValueError(
                f"optimization.batch_size: expected a multiple of the {group.count} processes; got {size}"
            )

        # The student is initialised under the seed. Its optimiser and the engine then hold its parameters.
        set_seed(kind, "student", seed)
        with group.together():
            model, outputs = training.build()
            variances = outputs != training.classes
            companion, layers = training.companion(model), tuple(training.loss.layers)
            check_method(trainer, training.loss, companion)
            check_layers(model, layers)
            if trainer.shard is not None:
                check_shardable(model, trainer.shard)
            if companion is not None:
                model = WithCompanion(model, companion)
        fingerprint = training_fingerprint(trainer, training, model, group, automatic)
        about = {} if training.checkpoint is None else describe_training(trainer, training, model, automatic)
        settings = student_settings(trainer.optimization)
        check_divides(settings.accumulate, size, group.count)
        warn_of_parts(settings.accumulate, size, group, model)
        # One process has nothing to divide the student with.
        patterns = trainer.shard if group.count > 1 else None
        sharding = None if patterns is None else Sharding(model, patterns, group)
        optimizer, scheduler = build_optimizer(trainer.optimization, model)
        engine = start_engine(
            model,
            optimizer,
            trainer.mixed_precision,
            group,
            clip_norm=clip_norm_of(trainer.optimization, variances),
            compiled=trainer.compile,
            sharded=sharding is not None,
        )
        if isinstance(rounding := student_of(model), Rounding) and rounding.bits is not None:
            with group.together():
                check_machine(rounding.bits, rounding.aware, engine.device, trainer.mixed_precision)
        prepare = Preparation(training.preprocess, takes_ids(model))
        watch = None if training.watch is None else as_samples(training.watch, "watch")
        watched = None if watch is None else replace(prepare, argument="watch").batches(watch)
        curve = Curve(steps, 0 if watch is None else len(watch), watched, outputs)
        average, another = None, deepcopy if sharding is None else sharding.another
        if trainer.ema is not None:
            average = WeightAverage(model, trainer.ema, another)
        examination, held = None, training.validation
        if held is not None:
            examination = Examination(held, training.loss, prepare, group, sharding is not None, variances)
        selection = Selection(model, average, examination, steps)

        # A killed training goes on from its checkpoint.
        checkpoint = Checkpoint(
            training.checkpoint,
            training.checkpoint_every,
            fingerprint,
            about,
            engine,
            scheduler,
            curve,
            selection,
            patterns,
        )
        step = checkpoint.resume()
        model.train()
        batches = Batches(training, prepare, steps, size)
        norms = synchronised_norms(model, group, trainer.sync_batch_norm, size)
        hooks = start_hooks(trainer, training, engine, step, automatic)
        ended = bool(selection.exhausted)
        kept, read = recomputed(model, trainer.recompute_modules), features_of(student_of(model), layers)
        with batches, norms, kept, hooks, read as features:
            hooks.start()
            while step < steps and not ended:
                # A block of steps. Every process draws the same batches and takes its share of their rows;
                # dropout differs by process and block.
                set_seed(kind, "student dropout", seed, step // BLOCK, group.rank)
                losses: list[Tensor] = []
                for batch in batches.block(step, group, engine.device):
                    batch.features, batch.own = features, companion
                    loss = add_gradients(trainer, engine, batch, training.loss, settings.accumulate)
                    if engine.step():
                        scheduler.step()
                        if average is not None:
                            average.update(model)
                    losses.append(loss)
                    hooks.step(batch.step + 1, loss)
                    if curve.has(batch.step + 1):
                        share_buffers(model, group)
                        curve.predict(batch.step + 1, model)

                # Processes exchange losses once per block. A loss that is not finite in one process ends the
                # training of all, before a checkpoint holds its effects.
                own = torch.stack(losses)
                means = group.mean(own)
                if not means.isfinite().all():
                    raise diverged(trainer.optimization, batches, checkpoint, step, means, own)
                curve.add(step, means)
                share_buffers(model, group)
                if average is not None:
                    average.share(group)
                step += len(losses)
                hooks.block(step, means)

                # The best weights so far are kept. Exhausted patience, or a callback, ends a training early.
                if selection.due(step):
                    examine(step, selection, checkpoint, hooks)
                hooks.checkpoint(checkpoint.save(step, steps))
                ended = hooks.stopped() or bool(selection.exhausted)
                if training.progress is not None:
                    training.progress(step, step if ended else steps)
            if selection.due(step, last=True):
                examine(step, selection, checkpoint, hooks)
            choice = selection.finish(step)
            curve.end(step, model, again=choice != Choice(step, "student"))
            hooks.end(choice, selection.exhausted)
        plain = nn.Module.cpu if sharding is None else sharding.whole
        ending = None if average is None else training.finished(plain(average.module))
        model = training.finished(plain(model))
    return Trained(
        model,
        curve.steps,
        curve.losses.numpy(),
        curve.watched.numpy(),
        training.preprocess,
        batches.cost,
        choice,
        tuple(selection.evaluations),
        ending,
        automatic,
        training.task,
        training.units,
        training.loss.network if changes_network(training.loss) else None,
        notes_of(companion),
    )


def examine(step: int, selection: Selection, checkpoint: Checkpoint, hooks: Hooks) -> None:
    """Evaluate the student, and write the best weights; the student is in training mode afterwards."""
    evaluation = selection.evaluate(step)
    selection.model.train()
    if selection.improved:
        checkpoint.save_best()
    hooks.evaluation(evaluation, selection.choice)


def start_hooks(
    trainer: StudentTrainer, training: Training, engine: Engine, step: int, automatic: Automatic | None
) -> Hooks:
    """The callbacks and the record of a training that has done ``step`` steps; process 0 keeps the record."""
    group, steps = engine.group, trainer.optimization.steps
    state = TrainingState(student_of(engine.model), engine.optimizer, step, steps, group.rank)
    folder = None if training.checkpoint is None else training.checkpoint.folder
    mine = group.rank == 0
    settings = trainer.plain_settings() | ({} if automatic is None else {"automatic": str(automatic)})
    record = Record(folder if mine else None, trainer.trackers if mine else (), settings)
    return Hooks(trainer.callbacks, record, state, group)


def set_seed(device: str, *parts: Any) -> None:
    """Seed torch's generators of the CPU and of one device; ``torch.manual_seed`` would change those of all
    devices."""
    seed = derive_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if device != "cpu":
        torch.get_device_module(device).manual_seed(seed)
