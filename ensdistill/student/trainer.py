"""The student's training: from a target cache, or, as the baseline that the claim is measured against, on hard labels.

One loop serves both, so that *direct* differs from the student in its targets alone. The loop runs on accelerate (see
:mod:`ensdistill.student.engine`), in as many processes as ``accelerate launch`` or ``torchrun`` started.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.cache import TargetCache
from ensdistill.common.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.common.describe import make_module
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimization import Optimization
from ensdistill.common.processes import Processes, processes
from ensdistill.common.random import BatchOrder, derive_seed, random_generator
from ensdistill.common.source import source_digest
from ensdistill.data import UNLABELLED, Rows
from ensdistill.data.augmentation import Augmentation
from ensdistill.loss.functional import distillation_loss
from ensdistill.loss.settings import Impl, LossKeywords, LossSettings, check_trained, digest_parts, settings_of
from ensdistill.student.batch_statistics import share_buffers, split_norms, whole_batch_norms
from ensdistill.student.curve import Curve
from ensdistill.student.engine import device_type, start_engine
from ensdistill.student.feeding import Block, TargetBlocks, Versions, draw_block, versions_of
from ensdistill.teachers.members.dtypes import refusal
from ensdistill.teachers.stack.validation import check_ending, check_fresh

# Batches are gathered, and losses checked, once per block of steps; checkpoints lie between blocks.
BLOCK = 32

Precision = Literal["no", "bf16", "fp16"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind.

    Parameters
    ----------
    module : Module
        In eval mode, on the CPU.
    steps : ndarray [P], int64
        Where the learning curve has points.
    losses : ndarray [P], float64
        The mean training loss (nats) since the point before, over all processes.
    watched : ndarray [P, M, C], float32
        The logits for the watched inputs at each point; M = 0 where none were watched.
    """

    module: nn.Module
    steps: np.ndarray
    losses: np.ndarray
    watched: np.ndarray


class StudentTrainer:
    """Trains students.

    Started by ``torchrun`` or ``accelerate launch``, each of P processes takes B / P rows of each batch of B, and all return the same
    student. It is that of one process up to rounding, except for dropout, whose masks differ by process, and for BatchNorm; see
    ``sync_batch_norm``. All processes have to call the same method with the same arguments.

    Parameters
    ----------
    optimization : Optimization
    loss, **keywords
        How the student is compared with the cache's targets and with the labels: a :class:`~ensdistill.loss.settings.LossSettings`, or
        its fields as keywords (``temperature=2.0, alpha=0.9``). The reduction is ``mean``: the divergence's over all rows of the batch,
        the cross entropy's over those whose label is known, however few they are. With alpha below 1, some row needs a label. A
        ``combiner`` of None is the cache's.
    mixed_precision : {"no", "bf16", "fp16"}
        The forward pass's precision; the loss is computed in float32 whatever it is. fp16 needs a GPU.
    cpu : bool
        Stay on the CPU even where there is a GPU.
    impl : {"fused", "reference", "compile"}
        See :func:`ensdistill.loss.functional.distillation_loss`.
    sync_batch_norm : bool
        With several processes, whether BatchNorm takes mean and variance of the whole batch, as one process does, at the price of two
        exchanges per layer and step. Otherwise each process normalises its own share of the batch, with a warning. Either way all end
        with the same running statistics.

    Raises
    ------
    ValueError
        A value outside what stands above.

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
        loss: LossSettings | None = None,
        *,
        mixed_precision: Precision = "no",
        cpu: bool = True,
        impl: Impl = "fused",
        sync_batch_norm: bool = False,
        **keywords: Unpack[LossKeywords],
    ) -> None:
        self.loss = settings_of(loss, dict(keywords), "loss")
        check_trained("loss", self.loss)
        for name, value, allowed in (("mixed_precision", mixed_precision, get_args(Precision)), ("impl", impl, get_args(Impl))):
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
            The transfer set that the cache was made from. Every input is checked against the cache's record of it.
        cache : TargetCache
        seed : int
            Initialisation, order of the batches, dropout.
        member : str, optional
            Distil this one member instead of the mixture.
        augment : Augmentation, optional
            The one that the cache was made with, and only then: in epoch e the student sees view e mod ``cache.views``, the pixels that
            the teachers saw. One input of each batch is compared with the cache's record of it.
        watch : ndarray [M, ...], optional
            Inputs whose predictions are recorded along the way. Nothing is chosen by them.
        checkpoint : path, optional
            A file for the state of the training, every ``checkpoint_every`` steps: the same call goes on from it, with the same bits,
            by as many processes as before. Process 0 writes and reads it.
        progress : callable (done, total), optional
            In steps.

        Raises
        ------
        CacheMismatch
            An input is not the one that the cache was made from, or ``augment`` isn't that of the cache.
        ValueError
            A member that the cache does not have, a temperature at which it holds nothing, sequences,
            a module with another number of outputs, or ``alpha`` < 1 and no row with a label. Processes with different arguments,
            or a checkpoint of another number of processes.
        TypeError
            ``factory`` is no factory; a module, for example.
        FloatingPointError
            A loss that is not finite; names the step.
        """
        classes = len(cache.classes)
        if member is not None and member not in cache.names:
            raise ValueError(f"member: expected one of {', '.join(cache.names)}; got {member!r}")
        if self.loss.alpha < 1:
            self._check_labels(rows, classes)
        self._check_cache(cache, member)
        versions = versions_of(cache, rows, augment)
        weights = None if member is None else torch.tensor([float(name == member) for name in cache.names], dtype=torch.float64)
        labels = torch.from_numpy(rows.labels)

        def losses(block: Block, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
            # One gather for a block of steps; each step then takes its rows as a view.
            target, size = targets.of(block), block.positions.shape[1]
            for i in range(len(block.positions)):
                batch = _to(target.rows(i * size, (i + 1) * size), device)
                loss = partial(distillation_loss, targets=batch, settings=self.loss, weights=weights, impl=self.impl)
                if self.loss.alpha < 1:
                    loss = partial(loss, labels=labels[block.positions[i]].to(device), class_weights=_share(labels, block, i, classes))
                yield loss

        held = [cache.manifest[field] for field in ("fingerprint", "codec", "seed", "temperature", "views", "weights")]
        about = [held, member, *digest_parts(self.loss), cache.combiner, repr(augment)]
        with TargetBlocks(cache, rows) as targets:
            return self._train(
                factory, rows, losses, versions, classes, seed, watch, checkpoint, checkpoint_every, progress, about, targets.ahead
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
        """
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= classes))
        if len(wrong):
            raise ValueError(f"rows.labels: expected 0..{classes - 1}; uid {rows.uids[wrong[0]]} has {rows.labels[wrong[0]]}")
        labels, smoothing = torch.from_numpy(rows.labels), self.optimization.label_smoothing

        def losses(block: Block, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
            for index in block.positions:
                hard = labels[index].to(device)
                yield partial(_cross_entropy, labels=hard, smoothing=smoothing)

        return self._train(factory, rows, losses, augment, classes, seed, watch, checkpoint, checkpoint_every, progress, ["labels"])

    def _check_cache(self, cache: TargetCache, member: str | None) -> None:
        made_at = cache.temperature
        if made_at is not None and made_at != self.loss.temperature:
            raise ValueError(f"temperature: {self.loss.temperature}, but the cache {cache.path} holds the mixture at {made_at} only")
        if made_at is not None and member is not None:
            raise ValueError(f"member: {member!r} is not in the cache {cache.path}: it holds the members' mixture only")
        if cache.max_temperature is not None and self.loss.temperature > cache.max_temperature:
            raise ValueError(
                f"temperature: {self.loss.temperature}, but the cache {cache.path} holds rows that serve temperatures up to "
                f"{cache.max_temperature:g} only; build it again with max_temperature={self.loss.temperature}, or with codec='fp32'"
            )
        if cache.manifest["sequences"]:
            raise ValueError(
                f"cache: {cache.path} holds sequences, which this trainer does not take; gather their targets in a loop of your own"
            )

    def _check_labels(self, rows: Rows, classes: int) -> None:
        known = rows.labels != UNLABELLED
        if not known.any():
            raise ValueError(
                f"alpha, rows.labels: alpha = {self.loss.alpha} mixes in cross entropy, but none of the {len(rows)} rows has a label; "
                "pass labels or alpha=1.0"
            )
        wrong = np.flatnonzero(known & ((rows.labels < 0) | (rows.labels >= classes)))
        if len(wrong):
            raise ValueError(
                f"rows.labels: expected 0..{classes - 1} or {UNLABELLED}; uid {rows.uids[wrong[0]]} has {rows.labels[wrong[0]]}"
            )

    def _train(
        self,
        factory: Callable[[], nn.Module],
        rows: Rows,
        losses: Callable[[Block, torch.device], Iterator[Callable[[Tensor], Tensor]]],
        augment: Augmentation | Versions | None,
        classes: int,
        seed: int,
        watch: np.ndarray | None,
        checkpoint: Path | str | None,
        checkpoint_every: int,
        progress: Progress | None,
        about: list[Any],
        ahead: Callable[[Block], None] | None = None,
    ) -> Trained:
        kind = device_type(self.cpu, self.mixed_precision)
        with processes(kind) as group, torch.random.fork_rng([torch.cuda.current_device()] if kind == "cuda" else []):
            world, rank = group.count, group.rank
            size, steps = self.optimization.batch_size, self.optimization.steps
            if size % world:
                raise ValueError(f"optimization.batch_size: expected a multiple of the {world} processes; got {size}")
            _set_seed(kind, "student", seed)
            model = build_student(factory, rows, classes)
            fingerprint = ""
            if checkpoint is not None or world > 1:
                known = [*about, checkpoint is not None]
                fingerprint = self._fingerprint(model, rows, augment, seed, watch, known, group)
            if checkpoint is not None:
                _check_resumable(model)
            optimizer, scheduler = self.optimization.build(model.parameters())
            engine = start_engine(model, optimizer, self.mixed_precision, group)
            curve = Curve(steps, None if watch is None else torch.from_numpy(np.ascontiguousarray(watch)), classes)
            step = saved = 0
            if checkpoint is not None:
                resumed = load_checkpoint(
                    checkpoint,
                    fingerprint=fingerprint,
                    tensors={**_state(model), **curve.state},
                    optimizer=optimizer,
                    scheduler=scheduler,
                    group=group,
                )
                if resumed:
                    if resumed.values["processes"] != world:
                        raise ValueError(
                            f"checkpoint: {checkpoint} is of a training by {resumed.values['processes']} processes, now there are "
                            f"{world}, whose sums would round differently; start as many again, or delete it to start anew"
                        )
                    step = saved = resumed.step
                    engine.load_scaler(resumed.values["scaler"])
            order = BatchOrder(len(rows), size, derive_seed("student batches", seed))
            inputs = torch.from_numpy(np.ascontiguousarray(rows.inputs))
            engine.model.train()
            drawn = draw_block(order, step, min(BLOCK, steps - step), rank, world)
            with self._norms(model, group):
                while step < steps:
                    # Every process draws the same batches and takes its share; dropout differs by process and block.
                    now, count = drawn, len(drawn.positions)
                    _set_seed(kind, "student dropout", seed, step // BLOCK, rank)
                    block = []
                    batch_losses = losses(now, engine.device)
                    if step + count < steps:
                        drawn = draw_block(order, step + count, min(BLOCK, steps - step - count), rank, world)
                    if isinstance(augment, Versions):
                        batches = torch.from_numpy(augment.inputs(now))
                    else:
                        batches = inputs[torch.from_numpy(now.positions)]
                    if augment is not None and not isinstance(augment, Versions):
                        draws = torch.from_numpy(augment.draw(BLOCK * size, random_generator("student augment", seed, step // BLOCK)))
                        share = draws.unflatten(0, (BLOCK, size))[:count, rank::world]
                        batches = augment.apply(batches.flatten(0, 1), share.flatten(0, 1)).view(batches.shape)
                    for i, loss_of in enumerate(batch_losses):
                        if i == 0 and ahead is not None and drawn is not now:
                            ahead(drawn)
                        loss = loss_of(engine.forward(batches[i].to(engine.device)))
                        if engine.step(loss):
                            scheduler.step()
                        block.append(loss.detach())
                        if curve.has(step + i + 1):
                            share_buffers(model, group)
                            curve.predict(step + i + 1, model)
                    # One exchange per block. A loss that is not finite in one process ends all, before a checkpoint holds its effects.
                    means = group.mean(torch.stack(block))
                    bad = means.isfinite().logical_not().nonzero().flatten().tolist()
                    if bad:
                        raise FloatingPointError(
                            f"student: the loss is {means[bad[0]].item()} at step {step + bad[0]} of {steps}; lower "
                            f"optimization.learning_rate ({self.optimization.learning_rate}) or look for extreme inputs or targets"
                        )
                    curve.add(step, means)
                    share_buffers(model, group)
                    step += count
                    if checkpoint is not None and rank == 0 and step - saved >= checkpoint_every and step < steps:
                        save_checkpoint(
                            checkpoint,
                            step=step,
                            fingerprint=fingerprint,
                            tensors={**_state(model), **curve.state},
                            optimizer=optimizer,
                            scheduler=scheduler,
                            values={"processes": world, "scaler": engine.scaler},
                        )
                        saved = step
                    if progress is not None:
                        progress(step, steps)
        return Trained(model.cpu().eval(), curve.steps, curve.losses.numpy(), curve.watched.numpy())

    def _fingerprint(
        self,
        model: nn.Module,
        rows: Rows,
        augment: Augmentation | Versions | None,
        seed: int,
        watch: np.ndarray | None,
        about: list[Any],
        group: Processes,
    ) -> str:
        """Of all that the student depends on but the number of processes.

        Raises
        ------
        ValueError
            It differs between the processes.
        """
        # What makes a cache's versions stands in its fingerprint.
        augment = None if isinstance(augment, Versions) else augment
        code = [source_digest(type(model)), None if augment is None else source_digest(type(augment))]
        settings = [self.optimization, self.mixed_precision, self.impl, self.sync_batch_norm, about]
        same = digest([repr(model), rows, repr(augment), code, seed, watch, settings])
        if not group.agree(same.encode()):
            raise ValueError(
                f"rows: the {group.count} processes were called with different rows, models or settings; pass all of them the same, "
                "whole transfer set: each process takes its share of every batch by itself"
            )
        # Where weights are drawn without torch's generator they differ between processes, and all get those of process 0.
        start = group.first(digest([_state(model), torch.__version__, torch.get_num_threads()]).encode())
        return digest([same, start])

    def _norms(self, model: nn.Module, group: Processes) -> AbstractContextManager[None]:
        """How BatchNorm is trained by several processes."""
        if group.count == 1:
            return nullcontext()
        if self.sync_batch_norm:
            return whole_batch_norms(model)
        if group.rank == 0 and (names := split_norms(model)):
            warnings.warn(
                f"BatchNorm ({names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}): each of the {group.count} processes takes "
                f"mean and variance of its own {self.optimization.batch_size // group.count} rows of a batch, so the student is another "
                "one than that of one process; StudentTrainer(sync_batch_norm=True) takes them of the whole batch",
                stacklevel=4,
            )
        return nullcontext()


def _set_seed(device: str, *parts: Any) -> None:
    """Seed torch's generators of the CPU and of the device in use; ``torch.manual_seed`` would change those of all devices."""
    seed = derive_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if device != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers, those among them that ``state_dict()`` leaves out.

    To be asked for anew after each change of place: ``to(device)`` puts other tensors into the place of a buffer.
    """
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _check_resumable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"checkpoint: {name or 'the model'} ({type(module).__name__}) keeps state that is no tensor (get_extra_state), which a "
                "checkpoint can't hold; make buffers of it, or train with checkpoint=None"
            )


def _share(labels: Tensor, block: Block, step: int, classes: int) -> Tensor | None:
    """Class weights [C] that make the mean over this process's labels a part of the mean over those of all processes.

    Gradients are averaged over processes: a mean of the processes' own means would weigh their rows differently.
    """
    own, whole = block.positions[step], block.whole[step]
    if len(own) == len(whole):
        return None
    known, all_known = (int((labels[positions] != UNLABELLED).sum()) for positions in (own, whole))
    return torch.full((classes,), known * len(whole) / (max(all_known, 1) * len(own)), dtype=torch.float64)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def _to(target: Any, device: torch.device) -> Any:
    """A batch of targets on the student's device, still as stored."""
    if device.type == "cpu":
        return target
    return replace(
        target, **{name: value.to(device, non_blocking=True) for name, value in vars(target).items() if isinstance(value, Tensor)}
    )


def build_student(factory: Callable[[], nn.Module], rows: Rows, classes: int) -> nn.Module:
    """A new student, tried on two rows.

    Raises
    ------
    ValueError
        It does not take the rows' inputs, or does not return [N, classes].
    TypeError
        ``factory`` makes no module, or is one itself.
    """
    check_fresh(factory, "the student", {})
    model = make_module(factory)
    if rows.inputs.dtype != np.float32:
        raise ValueError(f"rows.inputs: expected float32; got {rows.inputs.dtype}")
    if len(rows) == 0:
        raise ValueError("rows: expected at least one; got none")
    model.eval()
    first = torch.from_numpy(np.ascontiguousarray(rows.inputs[:2]))
    try:
        with torch.no_grad():
            logits = model(first)
    except RuntimeError as error:
        if (refused := refusal("factory", f"the student's {type(model).__name__}", model, first)) is not None:
            raise refused from error
        shape = list(rows.inputs.shape[1:])
        raise ValueError(f"model: {type(model).__name__}: does not take inputs of shape {shape} ({error})") from error
    expected = (min(2, len(rows)), classes)
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"model: {type(model).__name__}: expected {classes} outputs per sample, one for each class, {list(expected)}; "
            f"got {list(logits.shape)}"
        )
    check_ending(model, first, type(model).__name__)
    return model
