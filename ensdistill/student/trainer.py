"""The training of a student: on the targets of a cache, or on hard labels, the baseline of every claim.

One loop serves both: *direct* differs from the student in its loss alone. It runs on accelerate
(:mod:`ensdistill.student.engine`), in as many processes as ``accelerate launch`` or ``torchrun`` started.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.cache import TargetCache
from ensdistill.common.optimization import Optimization
from ensdistill.common.processes import Processes, processes
from ensdistill.common.random import derive_seed
from ensdistill.common.source import source_digest
from ensdistill.data import Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.loss.settings import Impl, LossKeywords, LossSettings, check_trained, settings_of
from ensdistill.student.batch_statistics import share_buffers, split_norms, whole_batch_norms
from ensdistill.student.batches import BLOCK, Batch, Batches
from ensdistill.student.blocks import Versions, versions_of
from ensdistill.student.curve import Curve
from ensdistill.student.engine import device_type, start_engine
from ensdistill.student.losses import HardLabels, SoftTargets, StudentLoss, as_student_loss, code_and_values, name_of
from ensdistill.student.preconditions import build_student, check_first_loss, check_rows_only
from ensdistill.student.resume import Checkpoint, check_resumable, common_fingerprint
from ensdistill.teachers.stack.validation import as_float32

Precision = Literal["no", "bf16", "fp16"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Parameters
    ----------
    module : Module
        In eval mode, on the CPU.
    steps : ndarray [P], int64
        The steps at which the learning curve has points.
    losses : ndarray [P], float64
        The mean training loss (nats) since the point before, over all processes.
    watched : ndarray [P, M, C], float32
        The logits for the watched inputs at each point; M = 0 where none were watched.
    """

    module: nn.Module
    steps: np.ndarray
    losses: np.ndarray
    watched: np.ndarray


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of :meth:`StudentTrainer.distill` or :meth:`StudentTrainer.direct`, checked, as the loop takes them.

    ``augment`` is an augmentation at random, or the versions of a cache; ``held`` names the content of the cache for a fingerprint.
    """

    factory: Callable[[], nn.Module]
    rows: Rows
    classes: int
    loss: StudentLoss
    cache: TargetCache | None
    augment: Augmentation | Versions | None
    held: tuple[list[Any], list[Any]]
    seed: int
    watch: np.ndarray | None
    checkpoint: Path | str | None
    checkpoint_every: int
    progress: Progress | None


class StudentTrainer:
    """Trains students.

    Started by ``torchrun`` or ``accelerate launch``, each of P processes takes B / P rows of each batch of B, and all return the
    same student. It equals the student of one process up to rounding, except for dropout, whose masks differ by process, and for
    BatchNorm; see ``sync_batch_norm``. All processes have to call the same method with the same arguments.

    A subclass changes the step by overriding :meth:`training_step`.

    Parameters
    ----------
    optimization : Optimization
    loss, **keywords
        The loss of :meth:`distill`. A :class:`~ensdistill.loss.settings.LossSettings`, or its fields as keywords
        (``temperature=2.0, alpha=0.9``), for the distillation loss; or a callable (outputs, targets, labels, batch) that returns a
        scalar, see :class:`~ensdistill.student.losses.StudentLoss`. In the distillation loss the divergence is a mean over all rows
        of the batch, and the cross entropy a mean over the rows with a label. With alpha below 1, some row needs a label. A
        ``combiner`` of None is the cache's.
    mixed_precision : {"no", "bf16", "fp16"}
        The precision of the forward pass; the loss takes float32 outputs with each of them. fp16 needs a GPU.
    cpu : bool
        Stay on the CPU even where there is a GPU.
    impl : {"fused", "reference", "compile"}
        See :func:`ensdistill.loss.functional.distillation_loss`.
    sync_batch_norm : bool
        With several processes, whether BatchNorm takes mean and variance of the whole batch, as one process does, at the price of
        two exchanges per layer and step. Otherwise each process normalises its own share of the batch, with a warning. Either way
        all processes end with the same running statistics.

    Raises
    ------
    ValueError
        A value outside the ranges above, or a loss with parameters of its own.
    TypeError
        A loss that is no callable.

    Examples
    --------
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
        loss: LossSettings | StudentLoss | Callable[..., Tensor] | None = None,
        *,
        mixed_precision: Precision = "no",
        cpu: bool = True,
        impl: Impl = "fused",
        sync_batch_norm: bool = False,
        **keywords: Unpack[LossKeywords],
    ) -> None:
        self.loss: LossSettings | StudentLoss
        if loss is None or isinstance(loss, LossSettings):
            self.loss = settings_of(loss, dict(keywords), "loss")
            check_trained("loss", self.loss)
        else:
            self.loss = as_student_loss(loss)
            if keywords:
                raise TypeError(
                    f"loss: expected either a loss or keywords of LossSettings; got {name_of(self.loss)} and {', '.join(keywords)}"
                )
        for name, value, allowed in (
            ("mixed_precision", mixed_precision, get_args(Precision)),
            ("impl", impl, get_args(Impl)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")
        self.optimization = optimization or Optimization()
        self.mixed_precision, self.cpu, self.impl, self.sync_batch_norm = mixed_precision, cpu, impl, sync_batch_norm

    def distill(
        self,
        factory: Callable[[], nn.Module],
        rows: Rows,
        cache: TargetCache,
        *,
        seed: int = 0,
        member: str | None = None,
        augment: Augmentation | None = None,
        watch: np.ndarray | None = None,
        checkpoint: Path | str | None = None,
        checkpoint_every: int = 1024,
        progress: Progress | None = None,
    ) -> Trained:
        """Train a student from a cache; the teachers are not needed.

        Parameters
        ----------
        factory : callable
            Makes a module that maps [N, ...] to logits [N, C]; torch's seed is set before the call.
        rows : Rows
            The transfer set of the cache. Every input is checked against the cache's record of it.
        cache : TargetCache
        seed : int
            Initialisation, order of the batches, dropout.
        member : str, optional
            Distil this one member instead of the mixture. Only for the distillation loss.
        augment : Augmentation, optional
            The augmentation of the cache, and only if it has one: in epoch e the student sees view e mod ``cache.views``, the same
            pixels as the teachers. One input of each batch is compared with the cache's record of it.
        watch : ndarray [M, ...], optional
            Inputs whose predictions are recorded along the way. Nothing is chosen by them.
        checkpoint : path, optional
            A file for the state of the training, every ``checkpoint_every`` steps: the same call goes on from it, with the same
            bits, by as many processes as before. Process 0 writes and reads it.
        progress : callable (done, total), optional
            In steps.

        Raises
        ------
        CacheMismatch
            An input differs from the cache's record of it, or ``augment`` isn't that of the cache.
        ValueError
            A member that the cache does not have, a temperature at which it holds nothing, sequences,
            a module with another number of outputs, or ``alpha`` < 1 and no row with a label. Processes with different arguments,
            or a checkpoint of another number of processes.
        TypeError
            ``factory`` is no factory; a module, for example. Or a loss that returns no scalar with a gradient.
        FloatingPointError
            A loss that is not finite; names the step.
        """
        classes = len(cache.classes)
        if isinstance(self.loss, LossSettings):
            loss: StudentLoss = SoftTargets.of_member(self.loss, cache, member, self.impl)
        elif member is None:
            loss = self.loss
        else:
            raise ValueError(
                f"member: {member!r}, but {name_of(self.loss)} receives the targets of all members; select the member in the loss, or "
                "pass LossSettings"
            )
        loss.check(rows, classes, cache)
        check_rows_only(cache)
        versions = versions_of(cache, rows, augment)
        made = [cache.manifest[field] for field in ("fingerprint", "codec", "seed", "temperature", "views", "weights")]
        held: tuple[list[Any], list[Any]] = [made], [cache.combiner, repr(augment)]
        return self._train(
            Request(factory, rows, classes, loss, cache, versions, held, seed, watch, checkpoint, checkpoint_every, progress)
        )

    def direct(
        self,
        factory: Callable[[], nn.Module],
        rows: Rows,
        *,
        classes: int,
        seed: int = 0,
        augment: Augmentation | None = None,
        watch: np.ndarray | None = None,
        checkpoint: Path | str | None = None,
        checkpoint_every: int = 1024,
        progress: Progress | None = None,
    ) -> Trained:
        """Train the same student on hard labels (cross entropy with ``optimization.label_smoothing``), by the same loop.

        Parameters are those of :meth:`distill`; every row needs a label in 0..classes-1; ``augment`` changes the inputs at random.
        The trainer's ``loss`` has no part in it.
        """
        loss = HardLabels(self.optimization.label_smoothing)
        loss.check(rows, classes, None)
        return self._train(
            Request(factory, rows, classes, loss, None, augment, ([], []), seed, watch, checkpoint, checkpoint_every, progress)
        )

    def training_step(self, model: Callable[[Tensor], Tensor], batch: Batch, loss: StudentLoss) -> Tensor:
        """Return the loss [] of one batch; the trainer calls ``backward`` on it and steps the optimiser.

        A subclass overrides this method to change the step: to mix inputs, to add a penalty, to call the model twice.

        Parameters
        ----------
        model : callable
            Maps inputs [B, ...] to the student's float32 outputs [B, C], in the training's precision.
        batch : Batch
            Inputs, targets and labels of this process's rows of the step.
        loss : StudentLoss
            That of :meth:`distill`, or :class:`~ensdistill.student.losses.HardLabels` in :meth:`direct`.

        Examples
        --------
        >>> class Smaller(StudentTrainer):
        ...     def training_step(self, model, batch, loss):
        ...         outputs = model(batch.inputs)
        ...         return loss(outputs, batch.targets, batch.labels, batch) + 1e-3 * outputs.square().mean()
        """
        return loss(model(batch.inputs), batch.targets, batch.labels, batch)

    def _train(self, request: Request) -> Trained:
        kind, seed, steps = device_type(self.cpu, self.mixed_precision), request.seed, self.optimization.steps
        with (
            processes(kind) as group,
            torch.random.fork_rng([torch.cuda.current_device()] if kind == "cuda" else []),
        ):
            if (size := self.optimization.batch_size) % group.count:
                raise ValueError(f"optimization.batch_size: expected a multiple of the {group.count} processes; got {size}")

            # The student is built under the seed, and its optimiser, engine and learning curve around it.
            _set_seed(kind, "student", seed)
            model = build_student(request.factory, request.rows, request.classes)
            fingerprint = self._fingerprint(model, request, group)
            optimizer, scheduler = self.optimization.build(model.parameters())
            engine = start_engine(model, optimizer, self.mixed_precision, group)
            watch = None if request.watch is None else torch.from_numpy(np.ascontiguousarray(as_float32("watch", request.watch)))
            curve = Curve(steps, watch, request.classes)

            # A killed training goes on from its checkpoint.
            checkpoint = Checkpoint(request.checkpoint, request.checkpoint_every, fingerprint, engine, scheduler, curve)
            step = checkpoint.resume()
            model.train()
            batches = Batches(request.rows, request.cache, request.augment, seed, steps, size)
            with batches, self._norms(model, group):
                while step < steps:
                    # Every process draws the same batches and takes its share; dropout differs by process and block.
                    _set_seed(kind, "student dropout", seed, step // BLOCK, group.rank)
                    losses: list[Tensor] = []
                    for batch in batches.block(step, group, engine.device):
                        loss = self.training_step(engine.forward, batch, request.loss)
                        if not losses:
                            check_first_loss(loss, name_of(request.loss))
                        if engine.step(loss):
                            scheduler.step()
                        losses.append(loss.detach())
                        if curve.has(batch.step + 1):
                            share_buffers(model, group)
                            curve.predict(batch.step + 1, model)

                    # One exchange per block. A loss that is not finite in one process ends all, before a checkpoint holds its effects.
                    means = group.mean(torch.stack(losses))
                    self._check_finite(means, step)
                    curve.add(step, means)
                    share_buffers(model, group)
                    step += len(losses)
                    checkpoint.save(step, steps)
                    if request.progress is not None:
                        request.progress(step, steps)
        return Trained(model.cpu().eval(), curve.steps, curve.losses.numpy(), curve.watched.numpy())

    def _check_finite(self, means: Tensor, step: int) -> None:
        if bad := means.isfinite().logical_not().nonzero().flatten().tolist():
            raise FloatingPointError(
                f"student: the loss is {means[bad[0]].item()} at step {step + bad[0]} of {self.optimization.steps}; lower "
                f"optimization.learning_rate ({self.optimization.learning_rate}) or look for extreme inputs or targets"
            )

    def _fingerprint(self, model: nn.Module, request: Request, group: Processes) -> str:
        """A digest of everything that the student depends on; "" where no checkpoint and no other process needs it."""
        if request.checkpoint is not None:
            check_resumable(model)
        elif group.count == 1:
            return ""
        # A cache's fingerprint includes the code and the settings of its versions.
        augment = None if isinstance(request.augment, Versions) else request.augment
        code = [source_digest(type(model)), None if augment is None else source_digest(type(augment))]
        made, views = request.held
        loss = request.loss.fingerprint()
        about = [*made, *(loss if isinstance(loss, list) else [loss]), *views, request.checkpoint is not None]
        settings = [self.optimization, self.mixed_precision, self.impl, self.sync_batch_norm, about]
        # A subclass may override the step, which then reads attributes of its own.
        own = [] if type(self) is StudentTrainer else [code_and_values(self)]
        parts = [repr(model), request.rows, repr(augment), code, request.seed, request.watch, settings, *own]
        return common_fingerprint(model, parts, group)

    def _norms(self, model: nn.Module, group: Processes) -> AbstractContextManager[None]:
        """The training of BatchNorm by several processes."""
        if group.count == 1:
            return nullcontext()
        if self.sync_batch_norm:
            return whole_batch_norms(model)
        if group.rank == 0 and (names := split_norms(model)):
            warnings.warn(
                f"BatchNorm ({names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}): each of the {group.count} processes "
                f"takes mean and variance of its own {self.optimization.batch_size // group.count} rows of a batch, so the student is "
                "another one than that of one process; StudentTrainer(sync_batch_norm=True) takes them of the whole batch",
                stacklevel=4,
            )
        return nullcontext()


def _set_seed(device: str, *parts: Any) -> None:
    """Seed torch's generators of the CPU and of the device in use; ``torch.manual_seed`` would change those of all devices."""
    seed = derive_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if device != "cpu":
        torch.get_device_module(device).manual_seed(seed)
