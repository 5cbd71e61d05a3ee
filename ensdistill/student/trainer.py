"""The trainer of students: on the targets of a cache, or on hard labels, the baseline of every claim.

Both run the same loop (:mod:`ensdistill.student.training`): *direct* differs from the student in its loss
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.common.processes import processes
from ensdistill.common.progress import Progress
from ensdistill.common.tasks import Task, task_of
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.loss.regression import RegressionSettings
from ensdistill.loss.settings import Impl, LossKeywords, LossSettings
from ensdistill.student.as_you_go import CacheAsYouGo
from ensdistill.student.automatic import Automatic, with_numbers
from ensdistill.student.averaging import check_decay
from ensdistill.student.batches import Batch
from ensdistill.student.callbacks import Callback, check_callbacks
from ensdistill.student.checkpoint_files import checkpoint_files
from ensdistill.student.engine import device_type
from ensdistill.student.inputs import Inputs
from ensdistill.student.machines import divide, machines_of
from ensdistill.student.methods import (
    HardLabels,
    StudentLoss,
    check_takes_mixture,
    code_and_values,
    loss_by_task,
    method_or_loss,
    name_of,
)
from ensdistill.student.module_patterns import check_patterns
from ensdistill.student.preconditions import check_compiled, check_optimization, check_rows
from ensdistill.student.sharding import check_shard
from ensdistill.student.sources import TargetSource, check_in_cache, targets_for
from ensdistill.student.trackers import check_trackers
from ensdistill.student.training import Trained, Training, train
from ensdistill.student.units import Units, rows_of_task, task_and_count, units_of
from ensdistill.student.validation import Validation, hold_out, split_rows
from ensdistill.student.weights import Weights

Precision = Literal["no", "bf16", "fp16"]

__all__ = ["Precision", "StudentTrainer", "Trained"]


class StudentTrainer:
    """Trains students.

    Started by ``torchrun`` or ``accelerate launch``, each of P processes takes B / P rows of each batch of B,
    and all return the same student; see ``shard`` for large ones. It equals the student of one process up to
    rounding, except for dropout, whose masks differ by process, and for BatchNorm; see ``sync_batch_norm``.
    All processes have to call the same method with the same arguments.

    A subclass changes the step by overriding :meth:`training_step`.

    Parameters
    ----------
    optimization : Optimization or StudentOptimization
        The second also sets the optimiser's class, parameter groups, clipping and accumulation; see
        :class:`~ensdistill.common.optimizers.StudentOptimization`.
    loss, **keywords
        The loss of :meth:`distill`. A :class:`~ensdistill.loss.settings.LossSettings`, or its fields as
        keywords (``temperature=2.0, alpha=0.9``), for the distillation loss; or a callable (outputs, targets,
        labels, batch) that returns a scalar, see :class:`~ensdistill.student.methods.StudentLoss`. In the
        distillation loss the divergence is a mean over all rows of the batch, and the cross entropy a mean
        over the rows with a label. With alpha below 1, some row needs a label. A ``combiner`` of None is the
        cache's. The task is that of the cache: multi-label students have the sum of the labels' binary
        divergences. Regression students have the squared error of the ensemble's mean, or ``"huber"``, and
        with 2 D outputs, means and log variances, the divergence of Gaussians; see
        :class:`~ensdistill.loss.regression.RegressionSettings`.
    method : str or mapping, optional
        In place of ``loss``: the name of a method (``"dkd"``), or several with weights or settings
        (``{"kd": {"temperature": 4.0}, "dist": 0.5}``); see ``docs/methods.md``.
    mixed_precision : {"no", "bf16", "fp16"}
        The precision of the forward pass; the loss takes float32 outputs with each of them. fp16 needs a GPU.
    cpu : bool
        Stay on the CPU even where there is a GPU.
    impl : {"fused", "reference", "compile"}
        See :func:`ensdistill.loss.functional.distillation_loss`.
    sync_batch_norm : bool
        With several processes, whether BatchNorm takes mean and variance of the whole batch, as one process
        does, at the price of two exchanges per layer and step. Otherwise each process normalises its own
        share of the batch, with a warning. Either way all processes end with the same running statistics.
    ema : float, optional
        The decay, such as 0.999, of an exponential moving average of the student's weights; see
        :class:`~ensdistill.student.averaging.WeightAverage`. With validation the better of the two is
        returned; without it, the average.
    callbacks : sequence of Callback
        Called along the way; see :class:`ensdistill.student.callbacks.Callback`.
    trackers : sequence of str or GeneralTracker
        accelerate's trackers, "tensorboard", "wandb", "mlflow" or "trackio" among them, or instances of its
        ``GeneralTracker``. They receive the losses, the learning rate and the scores.
    compile : bool or str
        Whether :func:`torch.compile` compiles the student's forward and backward pass, or the name of the
        backend that does. The trained module is the plain one.
    recompute_modules : str or sequence of str
        Patterns of the names of modules (``blocks.*``) that keep only their inputs during the forward pass,
        and compute their activations again for the backward pass: more time, less memory, the same bits.
    shard : bool, str or sequence of str
        Whether parameters, gradients, optimiser state and averages are divided over the processes, by torch's
        :func:`~torch.distributed.fsdp.fully_shard` (FSDP2), instead of being in each of them. The modules
        whose names match a pattern (``blocks.*``) are gathered one at a time for the forward and the backward
        pass; with True all together. One process has nothing to divide with and trains as without it. The
        trained module is a plain, whole one, in all processes; its attributes that are no tensors are those
        of the start.
    divide_rows : bool
        With several machines, whether each trains on rows of its own: a stretch of the cache, in proportion
        to its processes, of whose shards alone it needs the records. It draws its share of each batch from
        them, so the batches are others than with False, where all machines draw from all rows. It has no part
        in :meth:`direct`.

    Raises
    ------
    ValueError
        A value outside the ranges above, or a loss with parameters of its own; ``compile`` together with
        ``recompute_modules`` or ``sync_batch_norm``.
    TypeError
        A loss that is no callable.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from ensdistill.models import MLP
    >>> rows = Rows(np.eye(4, dtype=np.float32), np.arange(4), np.array([0, 1, 0, 1]))
    >>> trainer = StudentTrainer(Optimization(steps=60, batch_size=4, learning_rate=0.05))
    >>> trained = trainer.direct(lambda: MLP(4, [8], 2), rows, classes=2, seed=0)
    >>> trained.module(torch.eye(4)).argmax(1).tolist()
    [0, 1, 0, 1]
    """

    def __init__(
        self,
        optimization: Optimization | None = None,
        loss: LossSettings | RegressionSettings | StudentLoss | Callable[..., Tensor] | str | None = None,
        *,
        method: str | Mapping[str, Any] | None = None,
        mixed_precision: Precision = "no",
        cpu: bool = True,
        impl: Impl = "fused",
        sync_batch_norm: bool = False,
        ema: float | None = None,
        callbacks: Sequence[Callback] = (),
        trackers: Sequence[Any] = (),
        compile: bool | str = False,
        recompute_modules: str | Sequence[str] = (),
        shard: bool | str | Sequence[str] = False,
        divide_rows: bool = False,
        **keywords: Unpack[LossKeywords],
    ) -> None:
        self.loss = method_or_loss(method, loss, dict(keywords))
        for name, value, allowed in (
            ("mixed_precision", mixed_precision, get_args(Precision)),
            ("impl", impl, get_args(Impl)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")
        if optimization is not None:
            check_optimization("optimization", optimization)
        self.optimization = optimization or StudentOptimization()
        self.mixed_precision, self.cpu, self.impl, self.sync_batch_norm = (
            mixed_precision,
            cpu,
            impl,
            sync_batch_norm,
        )
        self.ema = None if ema is None else check_decay("ema", ema)
        self.callbacks, self.trackers = check_callbacks(callbacks), check_trackers(trackers)
        self.compile = check_compiled(compile)
        self.recompute_modules = check_patterns("recompute_modules", recompute_modules)
        self.shard = check_shard(shard)
        if not isinstance(divide_rows, bool):
            raise TypeError(f"divide_rows: expected True or False; got {divide_rows!r}")
        self.divide_rows = divide_rows
        if self.compile and (self.recompute_modules or sync_batch_norm):
            other = "recompute_modules" if self.recompute_modules else "sync_batch_norm"
            reason = (
                "which chooses by itself what to compute again"
                if self.recompute_modules
                else "which is per process"
            )
            raise ValueError(f"{other}: not together with compile, {reason}; choose one of them")

    def distill(
        self,
        factory: Callable[[], nn.Module],
        rows: Rows,
        cache: TargetCache | TargetSource,
        *,
        seed: int = 0,
        member: str | None = None,
        augment: Augmentation | None = None,
        preprocess: Preprocess | None = None,
        workers: int | None = None,
        watch: Any = None,
        checkpoint: Path | str | None = None,
        checkpoint_every: int = 1024,
        progress: Progress | None = None,
        validation: Validation | Rows | float | None = None,
        folder: Path | str | None = None,
        keep_last: int = 1,
        weights: Weights | None = None,
    ) -> Trained:
        """Train a student from a cache, for which the teachers are not needed, or from another source of
        targets.

        Parameters
        ----------
        factory : callable
            Makes a module that maps [N, ...] to logits [N, C]; inputs in fields are its keyword arguments. Of
            a module with several outputs (a tuple, a dict, a dataclass, an object) the logits are what is
            called ``logits``, else the one tensor of two dimensions. Of a regression it maps to D means in
            standardised units, or to D means and D logarithms of variances; the trained module returns the
            data's units. torch's seed is set before the call.
        rows : Rows
            The transfer set of the cache: samples of any kind, lazy ones too. Every input is checked against
            the cache's record of it, lazy ones whenever they are read.
        cache : TargetCache or TargetSource
            See :mod:`ensdistill.student.sources`.
        seed : int
            Initialisation, order of the batches, dropout.
        member : str, optional
            Distil this one member instead of the mixture. Only for the distillation loss.
        augment : Augmentation, optional
            The augmentation of the cache, and only if it has one: in epoch e the student sees view e mod
            ``cache.views``, the same pixels as the teachers. One input of each batch is compared with the
            cache's record of it. Other sources have their augmentation themselves.
        preprocess : Preprocess, optional
            From raw samples to the student's own input; see :mod:`ensdistill.data.preprocess`. Without it
            the samples have to be numbers. It goes where the student goes: see
            :class:`ensdistill.teachers.members.Preprocessed`.
        workers : int, optional
            Processes that read, change and preprocess lazy samples ahead; see
            :func:`ensdistill.data.reading.default_workers`.
        watch : samples, optional
            Inputs whose predictions are recorded along the way. Nothing is chosen by them.
        checkpoint : path, optional
            A file for the state of the training, every ``checkpoint_every`` steps: the same call goes on from
            it, with the same bits by as many processes as before, with a warning by others.
        progress : callable (done, total), optional
            In steps.
        validation : Validation, Rows, or float, optional
            Rows that the student does not learn from, or the share of ``rows`` that is held out, by which the
            best weights are chosen: those are returned. A :class:`~ensdistill.student.validation.Validation`
            also sets the metric, how often, and when to stop early.
        folder : path, optional
            The training's folder, in place of ``checkpoint``: the newest ``keep_last`` checkpoints, from the
            last of which the same call goes on, ``log.jsonl``, and with validation ``best.safetensors``, the
            state dict of the best weights so far.
        keep_last : int
            Checkpoints that stay in the folder.
        weights : path or state dict, optional
            The student's first weights, from a ``.safetensors`` file or a ``state_dict()``: all of its
            tensors, and no others. Without it those that ``factory`` gives it.

        Raises
        ------
        CacheMismatch
            An input differs from the cache's record of it, or ``augment`` isn't that of the cache.
        ValueError
            A member that the cache does not have, a temperature at which it holds nothing, sequences,
            a module with another number of outputs, or ``alpha`` < 1 and no row with a label. Processes with
            different arguments. A module that can't be divided as ``shard`` says.
        CheckpointMismatch
            (a ValueError) The checkpoint is of other settings, data or code; names the fields that differ.
        TypeError
            ``factory`` is no factory; a module, for example. Or a loss that returns no scalar with a
            gradient.
        FloatingPointError
            A loss that is not finite; names the step, the likeliest cause and the last checkpoint.
        ProcessFailed
            (a RuntimeError) The arguments of another process were refused; has its error in words.
        """
        with processes(device_type(self.cpu, self.mixed_precision)) as group:
            machines = machines_of(group)
            with group.together():
                check_rows(rows)
                loss = loss_by_task(self.loss, cache, member, self.impl).for_source(cache)
                task = task_of(cache)
                check_in_cache(cache, rows)
                rows, judged = split_rows(validation, rows, cache, seed)
                division = divide(cache, rows, machines, group.rank) if self.divide_rows else None
                own = rows if division is None else division.own(rows)
                targets = targets_for(cache, own, augment)
                units, count = units_of(task, targets), targets.classes
                rows = rows_of_task(rows, task, count)
                loss.check(rows, count, cache)
                check_takes_mixture(loss, name_of(loss), cache)
                held = hold_out(judged, count, cache, augment, division, task=task, units=units)
                training = Training(
                    factory=loss.network(factory),
                    rows=rows,
                    classes=count,
                    members=len(cache.names),
                    task=task,
                    units=units,
                    loss=loss,
                    targets=targets,
                    augment=None,
                    preprocess=preprocess,
                    workers=workers,
                    seed=seed,
                    watch=watch,
                    checkpoint=checkpoint_files(checkpoint, folder, keep_last, checkpoint_every),
                    checkpoint_every=checkpoint_every,
                    progress=progress,
                    validation=held,
                    weights=weights,
                    division=division,
                )
            # A cache that is filled as the training goes has no place for these trainings' rows.
            source = cache.online() if isinstance(cache, CacheAsYouGo) else cache
            distill = partial(
                StudentTrainer.distill,
                factory=factory,
                cache=source,
                member=member,
                augment=augment,
                **self._same(training),
            )
            return self._run(training, distill)

    def direct(
        self,
        factory: Callable[[], nn.Module],
        rows: Rows,
        *,
        classes: int | None = None,
        task: Task | None = None,
        seed: int = 0,
        augment: Augmentation | None = None,
        preprocess: Preprocess | None = None,
        workers: int | None = None,
        watch: Any = None,
        checkpoint: Path | str | None = None,
        checkpoint_every: int = 1024,
        progress: Progress | None = None,
        validation: Validation | Rows | float | None = None,
        folder: Path | str | None = None,
        keep_last: int = 1,
        weights: Weights | None = None,
    ) -> Trained:
        """Train the same student on hard labels, by the same loop: by the cross entropy with
        ``optimization.label_smoothing``, for several labels by the binary one of those that are known, for
        numbers by the squared error or, with variances, by the Gaussian NLL.

        Parameters are those of :meth:`distill`; every row needs a label; ``augment`` changes the inputs at
        random. The trainer's ``loss`` has no part in it. The ``task`` is by default that of the labels' form;
        ``classes`` is their number of columns where they have columns, and has to be given for class indices.
        """
        with processes(device_type(self.cpu, self.mixed_precision)) as group:
            with group.together():
                check_rows(rows)
                task, count = task_and_count(rows, task, classes)
                loss = HardLabels(self.optimization.label_smoothing, task)
                loss.check(rows, count, None)
                rows, judged = split_rows(validation, rows, None, seed)
                units = Units.of_labels(rows.labels) if task == "regression" else None
                held = hold_out(judged, count, None, None, task=task, units=units)
                training = Training(
                    factory=factory,
                    rows=rows,
                    classes=count,
                    task=task,
                    units=units,
                    loss=loss,
                    targets=None,
                    augment=augment,
                    preprocess=preprocess,
                    workers=workers,
                    seed=seed,
                    watch=watch,
                    checkpoint=checkpoint_files(checkpoint, folder, keep_last, checkpoint_every),
                    checkpoint_every=checkpoint_every,
                    progress=progress,
                    validation=held,
                    weights=weights,
                )
            direct = partial(
                StudentTrainer.direct,
                factory=factory,
                classes=classes,
                task=task,
                augment=augment,
                **self._same(training),
            )
            return self._run(training, direct)

    def numbers(
        self, factory: Callable[[], nn.Module], rows: Rows, cache: Any = None, **options: Any
    ) -> Automatic | None:
        """The numbers that :meth:`distill` finds for settings that are ``auto``, or :meth:`direct` where
        there is no ``cache``; None where none is ``auto``.

        Parameters are those of the two methods.

        Examples
        --------
        >>> import numpy as np
        >>> from ensdistill.models import MLP
        >>> rows = Rows(np.eye(4, dtype=np.float32), np.arange(4), np.array([0, 1, 0, 1]))
        >>> found = StudentTrainer().numbers(lambda: MLP(4, [8], 2), rows, classes=2)
        >>> found.steps, found.batch_size
        (1024, 16)
        """
        own: Any = copy(self)
        own._run = lambda training, again: self._found(training, again)[1]
        found: Automatic | None
        if cache is None:
            found = own.direct(factory, rows, **options)
        else:
            found = own.distill(factory, rows, cache, **options)
        return found

    @staticmethod
    def _same(training: Training) -> dict[str, Any]:
        """The arguments of a training that those for its learning rate share."""
        names = ("seed", "preprocess", "workers", "weights")
        return {name: getattr(training, name) for name in names}

    def _run(self, training: Training, again: Callable[..., Trained]) -> Trained:
        trainer, automatic = self._found(training, again)
        return train(trainer, training, automatic)

    def _found(
        self, training: Training, again: Callable[..., Trained]
    ) -> tuple[StudentTrainer, Automatic | None]:
        """The trainer with numbers, and their record; ``again`` trains by another trainer on other rows."""

        def trial(own: StudentTrainer, rows: Rows, held: Validation, shown: Progress | None) -> Trained:
            return again(own, rows=rows, validation=held, progress=shown)

        return with_numbers(self, training, trial)

    def training_step(self, model: Callable[[Inputs], Tensor], batch: Batch, loss: StudentLoss) -> Tensor:
        """Return the loss [] of one batch; the trainer calls ``backward`` on it and steps the optimiser.

        Where ``optimization.accumulate`` divides batches into parts, it is called for each part.

        A subclass overrides this method to change the step: to mix inputs, to add a penalty, to call the
        model twice.

        Parameters
        ----------
        model : callable
            Maps inputs [B, ...] to the student's float32 outputs [B, C], in the training's precision.
        batch : Batch
            Inputs, targets and labels of this process's rows of the step.
        loss : StudentLoss
            That of :meth:`distill`, or :class:`~ensdistill.student.methods.HardLabels` in :meth:`direct`.

        Examples
        --------
        >>> class Smaller(StudentTrainer):
        ...     def training_step(self, model, batch, loss):
        ...         outputs = model(batch.inputs)
        ...         return loss(outputs, batch.targets, batch.labels, batch) + 1e-3 * outputs.square().mean()
        """
        return loss(model(batch.inputs), batch.targets, batch.labels, batch)

    def fingerprint(self) -> list[Any]:
        """Data for :func:`ensdistill.common.fingerprint.digest`: a checkpoint of a trainer with other data is
        not resumed.

        For a subclass, its code and the values of its attributes, which its step can read. The settings of
        every trainer are part of the checkpoint's fingerprint without this method.
        """
        if type(self) is StudentTrainer:
            return []
        alike = copy(self)
        alike.callbacks = alike.trackers = ()  # they change no bits of a training
        # Parts of a checkpoint of their own: the way that the student is divided, and the rows.
        del alike.shard, alike.divide_rows
        return [code_and_values(alike)]

    def plain_settings(self) -> dict[str, Any]:
        """The settings as plain values by dotted names, for a log."""
        found: dict[str, Any] = {
            f"optimization.{f.name}": getattr(self.optimization, f.name) for f in fields(self.optimization)
        }
        if isinstance(self.loss, LossSettings | RegressionSettings):
            found |= {f"loss.{f.name}": getattr(self.loss, f.name) for f in fields(self.loss)}
        found |= {"mixed_precision": self.mixed_precision, "ema": self.ema}
        return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in found.items()}
