"""Several students of one architecture, trained from one source of targets as a stack: each layer of all of
them is one operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from ensdistill.cache import TargetCache
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import build_optimizer, student_settings
from ensdistill.common.processes import Processes, processes
from ensdistill.common.progress import Progress
from ensdistill.common.random import derive_seed
from ensdistill.common.scalars import whole
from ensdistill.data import Rows
from ensdistill.data.samples import as_samples
from ensdistill.student.averaging import WeightAverage
from ensdistill.student.batches import BLOCK, order_of
from ensdistill.student.blocks import draw_block
from ensdistill.student.curve import Curve
from ensdistill.student.engine import clip_norm_of, device_type
from ensdistill.student.inputs import Preparation, call, takes_ids
from ensdistill.student.methods import MomentTargets, SoftTargets
from ensdistill.student.preconditions import check_optimization
from ensdistill.student.selection import Choice, Selection
from ensdistill.student.sources import TargetSource
from ensdistill.student.trainer import StudentTrainer
from ensdistill.student.training import Trained, Training, set_seed
from ensdistill.student.units import rows_of_task
from ensdistill.student.validation import Examination
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.stack.strategies import STACK_FROM
from ensdistill.teachers.stack.traits import traits

Way = Literal["auto", "stacked", "one_by_one"]
# Of the trial whether a stack computes what each student does alone: its sums have another order.
TRIED, TOLERANCE = 16, 1e-3


def distill_many(
    trainer: StudentTrainer,
    factory: Callable[[], nn.Module],
    rows: Rows,
    cache: TargetCache | TargetSource,
    *,
    seeds: Sequence[int],
    optimizations: Sequence[Optimization] | None = None,
    way: Way = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> list[Trained]:
    """Train one student for each seed from the same source of targets, at once where that is faster.

    Each student has its own first weights, batches, optimiser, schedule, average, validation and early end,
    as if it were trained alone by ``trainer.distill(factory, rows, cache, seed=seed, **options)``. Stacked,
    only the order of sums within a layer differs: 1e-7 of an output in a step, which AdamW lets grow to 1e-5
    of the parameters within some hundred steps. A student that ends early keeps its best weights, and its
    place in the stack until the last one ends.

    Parameters
    ----------
    trainer : StudentTrainer
    factory : callable
        See :meth:`StudentTrainer.distill`.
    rows : Rows
    cache : TargetCache or TargetSource
    seeds : sequence of int
        One for each student; equal ones are allowed, for students with other optimisations.
    optimizations : sequence of Optimization, optional
        One for each student, in place of the trainer's: other learning rates, weight decays, schedules,
        optimisers. Steps and batch size have to be equal for a stack.
    way : {"auto", "stacked", "one_by_one"}
        ``auto`` stacks from four students on, where that is possible. ``stacked`` insists on it for fewer.
        Where it is not possible, a warning gives the reason, and the students are trained one by one.
    progress : callable (done, total), optional
        In steps of all students.
    **options
        Those of :meth:`StudentTrainer.distill`.

    Returns
    -------
    list of Trained
        In the order of ``seeds``.

    Raises
    ------
    ValueError, TypeError
        As :meth:`StudentTrainer.distill`; no seed, another number of optimisations, a ``checkpoint`` or a
        ``folder``, which would be all students'.
    FloatingPointError
        A loss that is not finite; names the student and the step.

    Notes
    -----
    What can't be stacked: dropout and other random numbers of a module, whose generator is torch's; BatchNorm
    is fine. Samples that are lazy, changed as they are read, or named fields; weights of rows; alpha below 1
    with unlabelled rows; a loss or a ``training_step`` of your own; mixed precision, ``compile``,
    ``recompute_modules`` and ``accumulate``; callbacks and trackers; several processes.

    Examples
    --------
    >>> import tempfile
    >>> from ensdistill import Ensemble, cache_targets
    >>> from ensdistill.models import MLP
    >>> rows = Rows(np.eye(4, dtype=np.float32), np.arange(4), np.array([0, 1, 0, 1]))
    >>> teacher = MLP(4, [8], 2).requires_grad_(False)
    >>> cache = cache_targets(Ensemble.from_members([teacher]), rows, tempfile.mkdtemp() + "/cache")
    >>> rates = [Optimization(steps=8, batch_size=4, learning_rate=r) for r in (0.1, 0.03, 0.01, 0.003)]
    >>> found = distill_many(
    ...     StudentTrainer(rates[0]), lambda: MLP(4, [8], 2), rows, cache, seeds=[0] * 4, optimizations=rates
    ... )
    >>> len(found)
    4
    """
    if not isinstance(seeds, Sequence) or not all(map(whole, seeds)):
        raise TypeError(f"seeds: expected integers, one for each student; got {seeds!r}")
    if not seeds:
        raise ValueError("seeds: expected at least one; got none")
    if optimizations is not None and len(optimizations) != len(seeds):
        raise ValueError(
            f"optimizations: expected one for each of the {len(seeds)} seeds; got {len(optimizations)}"
        )
    if way not in get_args(Way):
        raise ValueError(f"way: expected one of {', '.join(get_args(Way))}; got {way!r}")
    for name in ("checkpoint", "folder"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name}: expected none, because all students would write it; got {options[name]}: call "
                "trainer.distill for each student with a path of its own"
            )
    trainers = [copy(trainer) for _ in seeds]
    for own, optimization in zip(trainers, optimizations or [], strict=bool(optimizations)):
        check_optimization("optimizations", optimization)
        own.optimization = optimization

    for own, seed in zip(trainers, seeds, strict=True):
        if own.optimization.automatic:
            numbers = own.numbers(factory, rows, cache, seed=seed, **options)
            assert numbers is not None
            own.optimization = numbers.applied(own.optimization)
    wanted = way == "stacked" or (way == "auto" and len(seeds) >= STACK_FROM)
    if wanted:
        trainings = [
            _collected(own).distill(factory, rows, cache, seed=seed, **options)
            for own, seed in zip(trainers, seeds, strict=True)
        ]
        kind = device_type(trainer.cpu, trainer.mixed_precision)
        devices = [torch.cuda.current_device()] if kind == "cuda" else []
        with processes(kind) as group, torch.random.fork_rng(devices):
            reason = hindrance(trainers, trainings, group)
            if reason is None:
                stack = Stack(trainers, trainings, rows, kind, group)
                reason = stack.hindrance()
            if reason is None:
                return stack.train(progress)
        warnings.warn(f"the students can't be trained as a stack: {reason}", stacklevel=2)
    found, steps = [], [own.optimization.steps for own in trainers]
    for i, (own, seed) in enumerate(zip(trainers, seeds, strict=True)):
        shown = None if progress is None else _after(progress, sum(steps[:i]), sum(steps))
        found.append(own.distill(factory, rows, cache, seed=seed, progress=shown, **options))
    return found


def _after(progress: Progress, before: int, total: int) -> Progress:
    """The progress of one training after others, as that of all of them."""
    return lambda done, _: progress(before + done, total)


def _collected(trainer: StudentTrainer) -> Any:
    """A trainer whose ``distill`` returns its checked arguments, a :class:`Training`."""
    own: Any = copy(trainer)
    own._run = lambda training, again: training
    return own


def hindrance(
    trainers: Sequence[StudentTrainer], trainings: Sequence[Training], group: Processes
) -> str | None:
    """The reason why students of these settings and data can't be a stack, or None."""
    trainer, training = trainers[0], trainings[0]
    loss, targets = training.loss, training.targets
    optimizations = [own.optimization for own in trainers]
    own_loss = isinstance(loss, SoftTargets | MomentTargets)
    reasons: dict[str, Any] = {
        "the trainer has a training_step of its own": type(trainer).training_step
        is not StudentTrainer.training_step,
        "the loss is no distillation loss of LossSettings": not own_loss,
        "alpha is below 1, and some rows have no label": own_loss
        and loss.settings.alpha < 1  # type: ignore[attr-defined]
        and not training.rows.known.all(),
        "the rows have weights": training.rows.weights is not None,
        "they have callbacks or trackers": trainer.callbacks or trainer.trackers,
        "mixed_precision is set": trainer.mixed_precision != "no",
        "compile or recompute_modules is set": trainer.compile or trainer.recompute_modules,
        "their steps or batch sizes differ": len({(o.steps, o.batch_size) for o in optimizations}) > 1,
        "optimization.accumulate is set": any(student_settings(o).accumulate > 1 for o in optimizations),
        "samples are changed as they are read": targets is None
        or targets.versions is not None
        or targets.needs_samples,
        "several processes train": group.count > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class Stack:
    """Students whose parameters and buffers are slices of stacked tensors.

    The students stay modules of their own, with optimisers of their own, which change the stacked tensors.

    Parameters
    ----------
    trainers, trainings : sequence
        One of each for every student.
    rows : Rows
        Among which the trainings' rows are.
    kind : str
        The device's type.
    group : Processes
        Of one process.
    """

    def __init__(
        self,
        trainers: Sequence[StudentTrainer],
        trainings: Sequence[Training],
        rows: Rows,
        kind: str,
        group: Processes,
    ) -> None:
        self.trainers, self.trainings, self.group = trainers, trainings, group
        self.steps, self.size = trainers[0].optimization.steps, trainers[0].optimization.batch_size
        self.device = torch.device(kind)
        self.models: list[nn.Module] = []
        for one in trainings:
            set_seed(kind, "student", one.seed)
            model, self.outputs = one.build()
            self.models.append(model.to(self.device).train())
        self.prepare = Preparation(trainings[0].preprocess, takes_ids(self.models[0]))
        held = self.prepare.held(rows.inputs)
        self.inputs = held.to(self.device) if isinstance(held, Tensor) else None
        first = trainings[0]
        rows = rows_of_task(rows, first.task, first.classes)
        self.uids, self.labels = rows.uids, torch.from_numpy(rows.labels)
        if first.units is not None:
            self.labels = first.units.standardised(rows.labels)
        # Each training may hold out rows of its own.
        sorted_ = np.argsort(rows.uids, kind="stable")
        self.where = [sorted_[np.searchsorted(rows.uids[sorted_], one.rows.uids)] for one in trainings]
        self.orders = [
            order_of(one.rows, self.size, derive_seed("student batches", one.seed)) for one in trainings
        ]

    def hindrance(self) -> str | None:
        """The reason why the students themselves can't be a stack, or None."""
        if self.inputs is None:
            return "their inputs are lazy, too many to be prepared in memory, or named fields"
        found = traits(self.models[0], self.inputs, channels_last=False)
        if found.drops or found.draws:
            return "they draw random numbers, dropout's for example, from a generator that a stack shares"
        if found.reassigns:
            return "the forward pass assigns buffers anew, which vmap would lose"
        if len({repr(model) for model in self.models}) > 1:
            return "they are not of one architecture"
        few = self.inputs[self.where[0][:TRIED]]
        copies = [deepcopy(model) for model in self.models]
        try:
            state = stack_module_state(copies)
            together = _stacked_call(copies[0])(*state, few.expand(len(copies), *few.shape)).detach()
            for model, outputs in zip(copies, together, strict=True):
                alone = call(model, few).detach()
                scale = 1 + float(alone.abs().max())
                if not torch.allclose(alone, outputs, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
                    return "they differ by more than their parameters, or depend on each other"
        except Exception as error:  # operations that vmap lacks, modules that need real tensors, memory
            return (str(error).splitlines() or [type(error).__name__])[0]
        return None

    def train(self, progress: Progress | None) -> list[Trained]:
        """Train all students; see :func:`ensdistill.student.training.train` for one."""
        count, trainings = len(self.models), self.trainings
        parameters, self.buffers = stack_module_state(self.models)
        self.parameters = {n: nn.Parameter(p.detach(), p.requires_grad) for n, p in parameters.items()}
        for i, model in enumerate(self.models):
            _alias(model, self.parameters, self.buffers, i)
        optimizers = [
            build_optimizer(t.optimization, m) for t, m in zip(self.trainers, self.models, strict=True)
        ]
        clips = [
            clip_norm_of(trainer.optimization, self.outputs != one.classes)
            for trainer, one in zip(self.trainers, trainings, strict=True)
        ]
        average, averages = self._averages()
        curves = [self._curve(one) for one in trainings]
        selections = [
            Selection(
                model,
                own,
                None
                if one.validation is None
                else Examination(
                    one.validation,
                    one.loss,
                    self.prepare,
                    self.group,
                    variances=self.outputs != one.classes,
                ),
                self.steps,
            )
            for model, own, one in zip(self.models, averages, trainings, strict=True)
        ]
        slices = [
            [(p, self.parameters[name], i) for name, p in model.named_parameters() if p.requires_grad]
            for i, model in enumerate(self.models)
        ]
        forward, ended, step = _stacked_call(self.models[0]), [0] * count, 0
        while step < self.steps and not all(ended):
            index, targets = self._block(step)
            inputs, labels = self._rows(index), self.labels[index].to(self.device)
            losses = []
            for i in range(len(index)):
                outputs = forward(self.parameters, self.buffers, inputs[i])
                loss = self._losses(outputs, targets, labels[i], i)
                for parameter in self.parameters.values():
                    parameter.grad = None
                loss.sum().backward()  # the sum, so that a student's gradient is the one it has alone
                for s, (optimizer, scheduler) in enumerate(optimizers):
                    for p, stacked, place in slices[s]:
                        p.grad = None if stacked.grad is None else stacked.grad[place]
                    if (clip := clips[s]) is not None:
                        nn.utils.clip_grad_norm_(self.models[s].parameters(), clip)
                    optimizer.step()
                    scheduler.step()
                if average is not None:
                    average.update(self.holder)
                losses.append(loss.detach())
                for s, curve in enumerate(curves):
                    if not ended[s] and curve.has(step + i + 1):
                        curve.predict(step + i + 1, self.models[s])
            means = torch.stack(losses).cpu()
            self._check(means, step, ended)
            for s, curve in enumerate(curves):
                if not ended[s]:
                    curve.add(step, means[:, s])
            step += len(losses)
            for s, selection in enumerate(selections):
                if ended[s]:
                    continue
                if selection.due(step):
                    selection.evaluate(step)
                    self.models[s].train()
                if selection.exhausted:
                    ended[s] = step
            if progress is not None:
                progress(count * (self.steps if all(ended) else step), count * self.steps)
        return [
            self._trained(s, ended[s] or step, curves[s], selections[s], averages[s]) for s in range(count)
        ]

    def _block(self, step: int) -> tuple[Tensor, Any]:
        """The rows of a block of steps, [steps, students, batch], and the targets of all of them."""
        targets = self.trainings[0].targets
        assert targets is not None
        blocks = [draw_block(order, step, min(BLOCK, self.steps - step), 0, 1) for order in self.orders]
        index = np.stack([where[b.positions] for where, b in zip(self.where, blocks, strict=True)], axis=1)
        epochs = np.stack([block.epochs for block in blocks], axis=1)
        found = targets.of(self.uids[index.reshape(-1)], epochs.reshape(-1), None)
        return torch.from_numpy(index), found.to(self.device)

    def _rows(self, index: Tensor) -> Tensor:
        assert self.inputs is not None
        return self.inputs[index.to(self.device)]

    def _losses(self, outputs: Tensor, targets: Any, labels: Tensor, i: int) -> Tensor:
        """The loss of each student, [students], at step ``i`` of a block."""
        loss, count = self.trainings[0].loss, outputs.shape[0] * outputs.shape[1]
        assert isinstance(loss, SoftTargets | MomentTargets)
        each = loss.each(
            outputs.flatten(0, 1), targets.rows(i * count, (i + 1) * count), labels.flatten(0, 1)
        )
        return each.view(outputs.shape[:2]).mean(1)

    def _averages(self) -> tuple[WeightAverage | None, list[WeightAverage | None]]:
        """The average of the whole stack, and each student's, whose tensors are slices of it."""
        decay = self.trainers[0].ema
        if decay is None:
            return None, [None] * len(self.models)
        self.holder = nn.Module()
        for i, value in enumerate(self.parameters.values()):
            self.holder.register_parameter(f"p{i}", value)
        for i, value in enumerate(self.buffers.values()):
            self.holder.register_buffer(f"b{i}", value)
        whole, own = WeightAverage(self.holder, decay), list[WeightAverage | None]()
        parameters = dict(zip(self.parameters, whole.module.parameters(), strict=True))
        buffers = dict(zip(self.buffers, whole.module.buffers(), strict=True))
        for i, model in enumerate(self.models):
            one = WeightAverage(model, decay)
            one.updates = whole.updates
            _alias(one.module, parameters, buffers, i)
            own.append(one)
        return whole, own

    def _curve(self, training: Training) -> Curve:
        watch = None if training.watch is None else as_samples(training.watch, "watch")
        watched = None if watch is None else replace(self.prepare, argument="watch").batches(watch)
        return Curve(self.steps, 0 if watch is None else len(watch), watched, self.outputs)

    def _check(self, means: Tensor, step: int, ended: list[int]) -> None:
        """Raise FloatingPointError for a student's loss that is not finite."""
        for i, s in means.isfinite().logical_not().nonzero().tolist():
            if not ended[s]:
                rate = self.trainers[s].optimization.learning_rate
                raise FloatingPointError(
                    f"loss: {means[i, s]} of student {s} (seed {self.trainings[s].seed}, learning rate "
                    f"{rate}) at step {step + i + 1} of {self.steps}; lower its learning rate, or train it "
                    "alone by trainer.distill, which looks for the cause"
                )

    def _trained(
        self, s: int, step: int, curve: Curve, selection: Selection, average: WeightAverage | None
    ) -> Trained:
        """The result of a student that ended after ``step`` steps, with tensors of its own."""
        model, training = self.models[s], self.trainings[s]
        if selection.due(step, last=True):
            selection.evaluate(step)
        choice = selection.finish(step)
        curve.end(step, model, again=choice != Choice(step, "student"))
        for module in (model, *([] if average is None else [average.module])):
            _own(module)
        return Trained(
            training.finished(model.cpu()),
            curve.steps,
            curve.losses.numpy(),
            curve.watched.numpy(),
            training.preprocess,
            None,
            choice,
            tuple(selection.evaluations),
            None if average is None else training.finished(average.module.cpu()),
            task=training.task,
            units=training.units,
        )


def _stacked_call(model: nn.Module) -> Callable[..., Tensor]:
    """Maps stacked parameters, buffers and inputs [students, batch, ...] to logits [students, batch, C]."""

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return logits_of(functional_call(model, (parameters, buffers), (inputs,))).float()

    stacked: Callable[..., Tensor] = vmap(one, randomness="error")
    return stacked


def _alias(
    module: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], i: int
) -> None:
    """Make the module's tensors the ``i``-th slices of stacked ones."""
    for name, parameter in module.named_parameters():
        parameter.data = parameters[name].detach()[i]
    for name, buffer in module.named_buffers():
        buffer.data = buffers[name].detach()[i]


def _own(module: nn.Module) -> None:
    """Give a module tensors of its own in the place of slices."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data, tensor.grad = tensor.data.clone(), None
