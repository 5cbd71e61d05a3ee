"""The student's training: from a target cache, or, as the baseline that the claim is measured against, on hard labels.

One loop serves both, so that *direct* differs from the student in nothing but what it is asked to match. accelerate drives it:
device, mixed precision and data parallelism are what ``accelerate launch`` or ``torchrun`` say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, is_initialized
from torch import Tensor, nn
from torch.nn import functional as F

from ensdistill.augmentation import Augmentation
from ensdistill.cache import TargetCache
from ensdistill.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.data import UNLABELLED, BatchOrder, Rows, derive_seed, random_generator
from ensdistill.describe import make_module
from ensdistill.feeding import Block, TargetBlocks, Versions, draw_block, versions_of
from ensdistill.fingerprint import digest, source_digest
from ensdistill.functional import Impl, distillation_loss
from ensdistill.optimization import Optimization

# Batches are gathered, and losses checked, once per block of steps; checkpoints lie between blocks.
BLOCK = 32
CURVE_POINTS = 24
PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

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
        The mean training loss (nats) since the point before.
    watched : ndarray [P, M, C], float32
        The logits for the watched inputs at each point; M = 0 where none were watched.
    """

    module: nn.Module
    steps: np.ndarray
    losses: np.ndarray
    watched: np.ndarray


class StudentTrainer:
    """Trains students.

    Parameters
    ----------
    optimization : Optimization
    temperature : float
        T of the KL term.
    alpha : float
        Share of the KL term, which is the mean over all rows of the batch. The rest is cross entropy: the mean over those rows of the
        batch whose label is known, however few they are; 0 in a batch without any. Below 1, some row needs a label.
    mixed_precision : {"no", "bf16", "fp16"}
        The forward pass's precision; the loss is computed in float32 whatever it is.
    cpu : bool
        Stay on the CPU even where there is a GPU.
    impl : {"fused", "reference", "compile"}
        See :func:`ensdistill.functional.distillation_loss`.

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
        *,
        temperature: float = 1.0,
        alpha: float = 1.0,
        mixed_precision: Precision = "no",
        cpu: bool = True,
        impl: Impl = "fused",
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: expected a finite number above 0; got {temperature}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected 0 to 1; got {alpha}")
        for name, value, allowed in (("mixed_precision", mixed_precision, get_args(Precision)), ("impl", impl, get_args(Impl))):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}; got {value!r}")
        self.optimization = optimization or Optimization()
        self.temperature, self.alpha, self.mixed_precision, self.cpu, self.impl = temperature, alpha, mixed_precision, cpu, impl

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
            A file for the state of the training, every ``checkpoint_every`` steps: the same call goes on from it, with the same bits.
        progress : callable (done, total), optional
            In steps.

        Raises
        ------
        CacheMismatch
            An input is not the one that the cache was made from, or ``augment`` isn't that of the cache.
        ValueError
            A member that the cache does not have, a temperature at which it holds nothing, sequences,
            a module with another number of outputs, or ``alpha`` < 1 and no row with a label.
        TypeError
            ``factory`` is no factory; a module, for example.
        FloatingPointError
            A loss that is not finite; names the step.
        """
        classes = len(cache.classes)
        if member is not None and member not in cache.names:
            raise ValueError(f"member: expected one of {', '.join(cache.names)}; got {member!r}")
        if self.alpha < 1:
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
                hard = labels[block.positions[i]].to(device) if self.alpha < 1 else None
                yield partial(self._loss, targets=batch, labels=hard, weights=weights)

        held = [cache.manifest[field] for field in ("fingerprint", "codec", "seed", "temperature", "views", "weights")]
        about = [held, member, self.temperature, self.alpha, cache.combiner, repr(augment)]
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
        if made_at is not None and made_at != self.temperature:
            raise ValueError(f"temperature: {self.temperature}, but the cache {cache.path} holds the mixture at {made_at} only")
        if made_at is not None and member is not None:
            raise ValueError(f"member: {member!r} is not in the cache {cache.path}: it holds the members' mixture only")
        if cache.manifest["sequences"]:
            raise ValueError(
                f"cache: {cache.path} holds sequences, which this trainer does not take; gather their targets in a loop of your own"
            )

    def _check_labels(self, rows: Rows, classes: int) -> None:
        known = rows.labels != UNLABELLED
        if not known.any():
            raise ValueError(
                f"alpha, rows.labels: alpha = {self.alpha} mixes in cross entropy, but none of the {len(rows)} rows has a label; "
                "pass labels or alpha=1.0"
            )
        wrong = np.flatnonzero(known & ((rows.labels < 0) | (rows.labels >= classes)))
        if len(wrong):
            raise ValueError(
                f"rows.labels: expected 0..{classes - 1} or {UNLABELLED}; uid {rows.uids[wrong[0]]} has {rows.labels[wrong[0]]}"
            )

    def _loss(self, logits: Tensor, targets: Any, labels: Tensor | None, weights: Tensor | None) -> Tensor:
        loss = distillation_loss(logits, targets, temperature=self.temperature, weights=weights, impl=self.impl)
        if labels is None:
            return loss
        # Unlabelled rows keep their KL term, so the two means are taken apart: the op's own mixture would drop these rows.
        known = (labels != UNLABELLED).sum().clamp(min=1)
        hard = F.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="sum") / known
        return self.alpha * loss + (1 - self.alpha) * hard

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
        # accelerate keeps one precision for the whole process; two trainers of one process may want different ones.
        if is_initialized() and AcceleratorState().mixed_precision != self.mixed_precision:
            AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=self.cpu, mixed_precision=self.mixed_precision)
        world, rank = accelerator.num_processes, accelerator.process_index
        size, steps = self.optimization.batch_size, self.optimization.steps
        if size % world:
            raise ValueError(f"optimization.batch_size: expected a multiple of the {world} processes; got {size}")
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed("student", seed))
            model = build_student(factory, rows, classes)
            names = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
            optimizer, scheduler = self.optimization.build(model.parameters())
            fingerprint = self._fingerprint(model, rows, augment, seed, watch, about) if checkpoint is not None else ""
            wrapped, prepared = accelerator.prepare(model, optimizer)
            # Without a gradient scaler accelerate's backward and step only forward the call, for 0.3 ms of look-ups each step:
            # as much as a small student's whole step.
            plain = accelerator.scaler is None and accelerator.distributed_type in PLAIN
            curve = _Curve(steps, None if watch is None else torch.from_numpy(np.ascontiguousarray(watch)), classes)
            step = saved = 0
            if checkpoint is not None:
                resumed = load_checkpoint(
                    checkpoint, fingerprint=fingerprint, tensors={**names, **curve.state}, optimizer=optimizer, scheduler=scheduler
                )
                step = saved = resumed.step if resumed else 0
            order = BatchOrder(len(rows), size, derive_seed("student batches", seed))
            inputs = torch.from_numpy(np.ascontiguousarray(rows.inputs))
            wrapped.train()
            drawn = draw_block(order, step, min(BLOCK, steps - step), rank, world)
            while step < steps:
                # Every process draws the same batches and takes its share; dropout differs by process and block.
                now, count = drawn, len(drawn.positions)
                torch.manual_seed(derive_seed("student dropout", seed, step // BLOCK, rank))
                block = []
                batch_losses = losses(now, accelerator.device)
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
                    with accelerator.autocast():
                        logits = wrapped(batches[i].to(accelerator.device))
                    loss = loss_of(logits)
                    optimizer.zero_grad()
                    if plain:
                        loss.backward()
                        optimizer.step()
                    else:
                        accelerator.backward(loss)
                        prepared.step()
                    if plain or not accelerator.optimizer_step_was_skipped:
                        scheduler.step()
                    block.append(loss.detach())
                    curve.after(step + i + 1, loss.detach(), model)
                bad = torch.stack(block).isfinite().logical_not().nonzero().flatten().tolist()
                if bad:
                    raise FloatingPointError(
                        f"student: the loss is {block[bad[0]].item()} at step {step + bad[0]} of {steps}; lower "
                        f"optimization.learning_rate ({self.optimization.learning_rate}) or look for extreme inputs or targets"
                    )
                step += count
                if checkpoint is not None and accelerator.is_main_process and step - saved >= checkpoint_every and step < steps:
                    save_checkpoint(
                        checkpoint,
                        step=step,
                        fingerprint=fingerprint,
                        tensors={**names, **curve.state},
                        optimizer=optimizer,
                        scheduler=scheduler,
                    )
                    saved = step
                if progress is not None:
                    progress(step, steps)
        if "_original_forward" in vars(model):  # accelerate's, for mixed precision, in the place of the model's own
            own = vars(model).pop("_original_forward")
            del model.forward
            if getattr(own, "__func__", None) is not type(model).forward:
                model.forward = own
        return Trained(model.cpu().eval(), curve.steps, curve.losses.cpu().numpy(), curve.watched.numpy())

    def _fingerprint(
        self, model: nn.Module, rows: Rows, augment: Augmentation | Versions | None, seed: int, watch: np.ndarray | None, about: list[Any]
    ) -> str:
        start = dict(model.state_dict())
        # What makes a cache's versions stands in its fingerprint.
        augment = None if isinstance(augment, Versions) else augment
        code = [source_digest(type(model)), None if augment is None else source_digest(type(augment))]
        what = [repr(model), start, rows, repr(augment), code, seed, watch, self.optimization, self.mixed_precision, self.impl, about]
        return digest([*what, torch.__version__, torch.get_num_threads()])


class _Curve:
    """The learning curve: the mean loss between points that lie closer together at the start, and predictions at each."""

    def __init__(self, steps: int, watch: Tensor | None, classes: int) -> None:
        points = np.unique(np.geomspace(min(16, steps), steps, CURVE_POINTS).round().astype(np.int64))
        self.steps, self.watch = points, watch
        self._at = {int(step): i for i, step in enumerate(points)}
        self.losses = torch.zeros(len(points), dtype=torch.float64)
        self.watched = torch.zeros(len(points), 0 if watch is None else len(watch), classes)
        self._sum, self._count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)

    @property
    def state(self) -> dict[str, Tensor]:
        return {"curve losses": self.losses, "curve watched": self.watched, "curve sum": self._sum, "curve count": self._count}

    def after(self, step: int, loss: Tensor, model: nn.Module) -> None:
        self._sum += loss.to(self._sum.device, torch.float64)
        self._count += 1
        point = self._at.get(step)
        if point is None:
            return
        self.losses[point] = self._sum / self._count
        self._sum.zero_()
        self._count.zero_()
        if self.watch is not None:
            device = next(model.parameters()).device
            model.eval()
            with torch.no_grad():
                for start in range(0, len(self.watch), 1024):
                    self.watched[point, start : start + 1024] = model(self.watch[start : start + 1024].to(device)).float().cpu()
            model.train()


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
    model = make_module(factory)
    if rows.inputs.dtype != np.float32:
        raise ValueError(f"rows.inputs: expected float32; got {rows.inputs.dtype}")
    if len(rows) == 0:
        raise ValueError("rows: expected at least one; got none")
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.from_numpy(np.ascontiguousarray(rows.inputs[:2])))
    except RuntimeError as error:
        shape = list(rows.inputs.shape[1:])
        raise ValueError(f"model: {type(model).__name__}: does not take inputs of shape {shape} ({error})") from error
    expected = (min(2, len(rows)), classes)
    if tuple(logits.shape) != expected:
        raise ValueError(
            f"model: {type(model).__name__}: expected {classes} outputs per sample, one for each class, {list(expected)}; "
            f"got {list(logits.shape)}"
        )
    return model
