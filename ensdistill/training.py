"""Supervised training of several models of one architecture: stacked under ``vmap``, or one by one.

Every model has its own stream of batches and augmentation draws, keyed by its own seed and the step alone. So a model does not
depend on who is trained beside it (see :func:`train_stack` for how exactly), and a resumed run needs no saved random state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from ensdistill.augmentation import Augmentation
from ensdistill.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.data import BatchOrder, derive_seed, random_generator
from ensdistill.describe import make_module
from ensdistill.fingerprint import digest, source_digest
from ensdistill.optimization import Optimization

# Batches and draws are made, losses are checked and dropout is seeded once per block; checkpoints lie between blocks.
BLOCK = 32

# Measured on one thread of a 2-core x86 machine (torch 2.13), ms per step of all models, one by one / stacked:
#   MLP 64-64-10, batch 64           1 model 0.5/0.9    4 models 1.8/1.2     24 models 10.7/3.0
#   CNN 8-16, batch 64               1 model 1.6/2.0    4 models 4.5/3.2     24 models 26.8/14.6
#   CNN (16, 32) + 64, batch 32      1 model 3.2/4.0    4 models 9.4/10.9    24 models 63.1/46.9
STACK_FROM = 4

Way = Literal["auto", "stacked", "one_by_one"]


def train_stack(
    factory: Callable[[], nn.Module],
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seeds: Sequence[int],
    rows: Sequence[np.ndarray] | None = None,
    optimization: Optimization | None = None,
    augment: Augmentation | None = None,
    augmented: Sequence[bool] | None = None,
    way: Way = "auto",
    names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> list[nn.Module]:
    """Train one model per seed with cross entropy.

    Parameters
    ----------
    factory : callable
        Makes a new, randomly initialised module that maps [N, ...] to logits [N, C]; torch's seed is set before each call.
    inputs : ndarray [N, ...], float32
    labels : ndarray [N], int64
    classes : int
        C; every label is in 0..C-1.
    seeds : sequence of int
        One per model: initialisation, order of the batches, augmentation and dropout.
    rows : sequence of int64 ndarray, optional
        For each model the positions in ``inputs`` that it learns from, for example a fold or a bootstrap sample. All by default.
    optimization : Optimization, optional
    augment : Augmentation, optional
    augmented : sequence of bool, optional
        For each model whether it uses ``augment``; all by default.
    way : {"auto", "stacked", "one_by_one"}
        ``stacked`` trains all models at once by ``torch.func.stack_module_state`` and ``vmap(randomness="different")``.
        ``auto`` stacks from four models on (the measurement stands in the source) and, with a warning that says why,
        trains one by one what can't be vmapped.
    names : sequence of str, optional
        For messages.
    checkpoint : folder, optional
        Where the state is kept, every ``checkpoint_every`` steps and at the end; the same call resumes from it with the same bits.
        The caller removes the folder once it has put the models away.
    progress : callable (done, total), optional
        In steps, over all models.

    Returns
    -------
    list of Module
        In the order of ``seeds``, in eval mode, on ``device``.

    Raises
    ------
    ValueError
        Bad arguments, a factory that returns shared parameters, or a model with another number of outputs.
    FloatingPointError
        A loss that is not finite; names the model and the step.

    Notes
    -----
    One by one, a model has the same bits whoever is trained beside it. Stacked, batches and augmentation are still the same
    and only the rounding differs, while dropout masks are drawn for the whole stack: they depend on the list of seeds.

    Examples
    --------
    >>> from ensdistill.models import MLP
    >>> x = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 8]
    >>> y = np.array([0, 1, 0, 1] * 8)
    >>> fast = Optimization(steps=60, batch_size=8, learning_rate=0.05)
    >>> models = train_stack(lambda: MLP(4, [8], 2), x, y, classes=2, seeds=[1, 2, 3, 4], optimization=fast)
    >>> [int((m(torch.from_numpy(x)).argmax(1).numpy() == y).sum()) for m in models]
    [32, 32, 32, 32]
    """
    optimization = optimization or Optimization()
    count = len(seeds)
    rows = [np.arange(len(inputs), dtype=np.int64)] * count if rows is None else list(rows)
    names = [f"model {i}" for i in range(count)] if names is None else list(names)
    _check(inputs, labels, rows, names, count, classes)
    augmented = [augment is not None] * count if augmented is None else list(augmented)
    if len(augmented) != count or (any(augmented) and augment is None):
        raise ValueError(f"augmented: expected {count} values, one for each model, and an augmentation; got {augmented} and {augment}")
    models = [_initialise(factory, seed) for seed in seeds]
    _check_models(models, names)
    if way not in ("auto", "stacked", "one_by_one"):
        raise ValueError(f"way: expected auto, stacked or one_by_one; got {way!r}")
    stacked = way == "stacked" or (way == "auto" and count >= STACK_FROM and _stackable(models, inputs))
    groups = [list(range(count))] if stacked else [[i] for i in range(count)]
    for group in groups:
        job = _Job(
            [models[i].to(device) for i in group],
            [names[i] for i in group],
            [seeds[i] for i in group],
            [rows[i] for i in group],
            torch.from_numpy(inputs).to(device),
            torch.from_numpy(labels).to(device),
            classes,
            optimization,
            augment,
            [i for i, model in enumerate(group) if augmented[model]],
        )
        file = None if checkpoint is None else Path(checkpoint) / ("stack.safetensors" if stacked else f"model-{group[0]:04d}.safetensors")
        report = None if progress is None else _shifted(progress, group[0] * optimization.steps, len(groups) * optimization.steps)
        job.run(file, checkpoint_every, report)
    return [model.eval() for model in models]


class _Job:
    """The training of a stack of models, or of a single plain one."""

    def __init__(
        self,
        models: list[nn.Module],
        names: list[str],
        seeds: list[int],
        rows: list[np.ndarray],
        inputs: Tensor,
        labels: Tensor,
        classes: int,
        optimization: Optimization,
        augment: Augmentation | None,
        augmented: list[int],
    ) -> None:
        self.models, self.names, self.seeds, self.rows, self.augmented = models, names, seeds, rows, augmented
        self.inputs, self.labels, self.classes = inputs, labels, classes
        self.optimization, self.augment = optimization, augment if augmented else None
        self.orders = [BatchOrder(len(r), optimization.batch_size, s) for r, s in zip(rows, seeds, strict=True)]
        self.single = len(models) == 1
        base = models[0].train()
        if self.single:
            self.parameters, self.buffers = dict(base.named_parameters()), dict(base.named_buffers())
        else:
            self.parameters, self.buffers = stack_module_state(models)
            self.stack = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), randomness="different")
        self.optimizer, self.scheduler = optimization.build(self.parameters.values())

    def run(self, checkpoint: Path | None, checkpoint_every: int, progress: Callable[[int], None] | None) -> None:
        state = {**self.parameters, **{f"buffer {name}": value for name, value in self.buffers.items()}}
        fingerprint = "" if checkpoint is None else self._fingerprint()
        step = saved = 0
        if checkpoint is not None:
            resumed = load_checkpoint(
                checkpoint, fingerprint=fingerprint, tensors=state, optimizer=self.optimizer, scheduler=self.scheduler
            )
            step = saved = resumed.step if resumed else 0
        steps, device = self.optimization.steps, self.inputs.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            while step < steps:
                step = self._block(step // BLOCK, min(BLOCK, steps - step))
                if checkpoint is not None and (step - saved >= checkpoint_every or step == steps):
                    save_checkpoint(
                        checkpoint, step=step, fingerprint=fingerprint, tensors=state, optimizer=self.optimizer, scheduler=self.scheduler
                    )
                    saved = step
                if progress is not None:
                    progress(step)
        if not self.single:
            self._unstack()

    def _block(self, block: int, steps: int) -> int:
        """Train ``steps`` steps from the start of ``block``; the number of steps that are then done."""
        start, size, device = block * BLOCK, self.optimization.batch_size, self.inputs.device
        torch.manual_seed(derive_seed("dropout", self.seeds, block))
        positions = np.stack(
            [np.stack([r[order(start + i)] for i in range(steps)]) for r, order in zip(self.rows, self.orders, strict=True)], axis=1
        )  # [steps, models, batch]
        index = torch.from_numpy(positions).to(device)
        if self.augment is not None:
            # Draws for a whole block, cut to its steps, so that they do not depend on how many steps there are.
            drawn = [self.augment.draw(BLOCK * size, random_generator("augment", self.seeds[m], block)) for m in self.augmented]
            draws = torch.from_numpy(np.stack([d.reshape(BLOCK, size, *d.shape[1:])[:steps] for d in drawn], axis=1)).to(device)
        losses = []
        for i in range(steps):
            inputs = self.inputs[index[i].flatten()]
            if self.augment is not None:
                inputs = self._augmented(self.augment, inputs, draws[i].flatten(0, 1))
            loss = self._losses(inputs, self.labels[index[i].flatten()])
            self.optimizer.zero_grad()
            loss.sum().backward()  # the sum, so that a model's gradient is the one it has alone
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.detach())
        bad = torch.stack(losses).isfinite().logical_not().nonzero().tolist()  # one synchronisation per block
        if bad:
            step, model = bad[0]
            raise FloatingPointError(
                f"{self.names[model]}: the loss is {losses[step][model].item()} at step {start + step} of {self.optimization.steps}; "
                f"lower optimization.learning_rate ({self.optimization.learning_rate}) or look for extreme inputs"
            )
        return start + steps

    def _augmented(self, augment: Augmentation, inputs: Tensor, draws: Tensor) -> Tensor:
        if len(self.augmented) == len(self.models):
            return augment.apply(inputs, draws)
        each = inputs.unflatten(0, (len(self.models), -1))  # a copy already: it was indexed
        each[self.augmented] = augment.apply(each[self.augmented].flatten(0, 1), draws).unflatten(0, (len(self.augmented), -1))
        return inputs

    def _losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of each model: [models]; inputs [models * batch, ...]."""
        count = len(self.models)
        if self.single:
            logits = self.models[0](inputs)[None]
        else:
            logits = self.stack(self.parameters, self.buffers, inputs.unflatten(0, (count, -1)))
        expected = (count, len(labels) // count, self.classes)
        if logits.shape != expected:
            raise ValueError(
                f"{self.names[0]}: expected {self.classes} outputs per sample, one for each class: {list(expected[1:])}; "
                f"got {list(logits.shape[1:])}"
            )
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none", label_smoothing=self.optimization.label_smoothing)
        return loss.view(count, -1).mean(1)

    @torch.no_grad()
    def _unstack(self) -> None:
        for i, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.copy_(self.parameters[name][i])
            for name, buffer in model.named_buffers():
                buffer.copy_(self.buffers[name][i])

    def _fingerprint(self) -> str:
        start = {name: value.detach() for name, value in {**self.parameters, **self.buffers}.items()}
        augment = None if self.augment is None else [repr(self.augment), source_digest(type(self.augment))]
        model = [repr(self.models[0]), source_digest(type(self.models[0]))]
        data = [self.inputs, self.labels, self.rows]
        return digest([model, start, self.seeds, self.optimization, augment, self.augmented, data, torch.__version__])


def _shifted(progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


def _initialise(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("initial parameters", seed))
        return make_module(factory)


def _check(inputs: np.ndarray, labels: np.ndarray, rows: list[np.ndarray], names: list[str], count: int, classes: int) -> None:
    if count == 0 or len(rows) != count or len(names) != count:
        raise ValueError(f"seeds, rows and names: expected one of each for each model; got {count}, {len(rows)} and {len(names)}")
    if inputs.dtype != np.float32 or inputs.ndim < 2:
        raise ValueError(f"inputs: expected float32 [N, ...]; got {inputs.dtype} {list(inputs.shape)}")
    if labels.shape != (len(inputs),) or labels.dtype != np.int64:
        raise ValueError(f"labels: expected int64 [{len(inputs)}], one for each input; got {labels.dtype} {list(labels.shape)}")
    for name, index in zip(names, rows, strict=True):
        if len(index) == 0 or index.min() < 0 or index.max() >= len(inputs):
            raise ValueError(f"rows: {name}: expected positions in 0..{len(inputs) - 1}, at least one; got {len(index)} positions")
        used = labels[index]
        if used.min() < 0 or used.max() >= classes:
            wrong = int(np.flatnonzero((used < 0) | (used >= classes))[0])
            raise ValueError(f"labels: {name}: expected 0..{classes - 1}; row {index[wrong]} has {used[wrong]}")


def _check_models(models: list[nn.Module], names: list[str]) -> None:
    seen: dict[int, int] = {}
    shapes = [(n, p.shape) for n, p in models[0].named_parameters()]
    for i, model in enumerate(models):
        if [(n, p.shape) for n, p in model.named_parameters()] != shapes:
            raise ValueError(f"factory: expected one architecture; the parameters of {names[i]} differ from those of {names[0]}")
        for name, parameter in model.named_parameters():
            if seen.setdefault(id(parameter), i) != i:
                raise ValueError(
                    f"factory: expected a new module from every call; {names[i]} shares {name} with {names[seen[id(parameter)]]}"
                )


def _stackable(models: list[nn.Module], inputs: np.ndarray) -> bool:
    """Whether the models run under ``vmap``, tried on copies of their parameters and buffers."""
    base = models[0].train()
    parameters, buffers = stack_module_state(models)
    batch = torch.from_numpy(inputs[:2]).to(next(iter(parameters.values())).device).expand(len(models), *inputs[:2].shape)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), randomness="different")(parameters, buffers, batch)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"{type(base).__name__} can't be trained as a stack and is trained one by one: {reason}", stacklevel=3)
        return False
    return True
