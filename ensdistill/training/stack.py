"""Supervised training of several models of one architecture: stacked under ``vmap``, or one by one.

Every model has its own stream of batches, augmentation draws and dropout masks, keyed by its own seed and the step alone. So a model
does not depend on who is trained beside it (see :func:`train_stack` for how exactly), and a resumed run needs no saved random state.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from ensdistill.augmentation import Augmentation
from ensdistill.data import derive_seed
from ensdistill.describe import make_module
from ensdistill.files import read_json, write_json
from ensdistill.optimization import Optimization
from ensdistill.training.job import Job
from ensdistill.training.status import Watch

# Measured on one thread of a 2-core x86 machine (torch 2.13), ms per step of all models, one by one / stacked:
#   MLP 64-64-10, batch 64           1 model 0.5/0.9    4 models 1.8/1.2     24 models 10.7/3.0
#   CNN 8-16, batch 64               1 model 1.6/2.0    4 models 4.5/3.2     24 models 26.8/14.6
#   CNN (16, 32) + 64, batch 32      1 model 3.2/4.0    4 models 9.4/10.9    24 models 63.1/46.9
STACK_FROM = 4
MEASURE_FROM = 200  # steps; timing both ways takes as long as about seven
_PROBES, _PROBE = 3, 2  # timings of as many steps, after one to warm up

Way = Literal["auto", "measured", "stacked", "one_by_one"]


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
    watch: Watch | None = None,
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
    way : {"auto", "measured", "stacked", "one_by_one"}
        ``stacked`` trains all models at once by ``torch.func.stack_module_state`` and ``vmap(randomness="different")``.
        ``auto`` stacks from four models on (the measurement stands in the source); ``measured`` times the first steps both ways, which
        is worth its time in long trainings, and chooses: the bits then depend on the machine's mood. Both train one by one, with a
        warning that says why, what can't be vmapped.
    names : sequence of str, optional
        For messages.
    checkpoint : folder, optional
        Where the state is kept, every ``checkpoint_every`` steps and at the end; the same call resumes from it with the same bits.
        The caller removes the folder once it has put the models away.
    progress : callable (done, total), optional
        In steps, over all models.
    watch : callable, optional
        Told the :class:`Status` of the models that are in work after every 32 steps.

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
    One by one, a model has the same bits whoever is trained beside it. Stacked, its batches, augmentation and dropout are still the
    same and only the rounding differs (1e-7 in a step, which AdamW lets grow: 1e-4 of parameters after some hundred steps). What a
    module draws by other means than torch's dropout functions is drawn for the whole stack.

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
    if way not in ("auto", "measured", "stacked", "one_by_one"):
        raise ValueError(f"way: expected auto, measured, stacked or one_by_one; got {way!r}")
    data = torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)

    def job(group: Sequence[int], copies: bool = False) -> Job:
        return Job(
            [(copy.deepcopy(models[i]) if copies else models[i]).to(device) for i in group],
            [names[i] for i in group],
            [seeds[i] for i in group],
            [rows[i] for i in group],
            *data,
            classes,
            optimization,
            augment,
            [i for i, model in enumerate(group) if augmented[model]],
            watch=None if copies else watch,
        )

    stacked = way == "stacked"
    if way in ("auto", "measured") and count > 1:
        remembered = None if checkpoint is None else read_json(Path(checkpoint) / "way.json")
        long = way == "measured" and optimization.steps >= MEASURE_FROM
        if not long:
            stacked = count >= STACK_FROM and _stackable(models, inputs)
        elif remembered is not None:  # a training that is resumed goes on as it began
            stacked = bool(remembered["stacked"])
        else:
            stacked = _stackable(models, inputs) and stack_is_faster(job(range(count), True), job([0], True))
            if checkpoint is not None:
                write_json(Path(checkpoint) / "way.json", {"stacked": stacked})
    groups = [list(range(count))] if stacked else [[i] for i in range(count)]
    for group in groups:
        file = None if checkpoint is None else Path(checkpoint) / ("stack.safetensors" if stacked else f"model-{group[0]:04d}.safetensors")
        report = None if progress is None else _shifted(progress, group[0] * optimization.steps, len(groups) * optimization.steps)
        job(group).run(file, checkpoint_every, report)
    return [model.eval() for model in models]


def train_trajectory(
    factory: Callable[[], nn.Module],
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seed: int,
    captures: Sequence[int],
    optimization: Optimization,
    augment: Augmentation | None = None,
    name: str = "model",
    device: str | torch.device = "cpu",
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 256,
    watch: Watch | None = None,
) -> list[nn.Module]:
    """Train one model and keep it as it was after each of the steps ``captures``: one module each, in eval mode.

    The other arguments, errors and resumption are those of :func:`train_stack`.
    """
    if not captures or sorted(set(captures)) != list(captures) or captures[0] < 1 or captures[-1] > optimization.steps:
        raise ValueError(f"captures: expected growing steps in 1..{optimization.steps}; got {list(captures)}")
    rows = [np.arange(len(inputs), dtype=np.int64)]
    _check(inputs, labels, rows, [name], 1, classes)
    model = _initialise(factory, seed)
    data = torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)
    used = [] if augment is None else [0]
    job = Job([model.to(device)], [name], [seed], rows, *data, classes, optimization, augment, used, captures, watch)
    job.run(None if checkpoint is None else Path(checkpoint) / "trajectory.safetensors", checkpoint_every, None)
    taken = []
    for i in range(len(captures)):
        module = copy.deepcopy(model).eval()
        with torch.no_grad():
            for key, value in [*module.named_parameters(), *module.named_buffers()]:
                value.copy_(job.captured[key][i])
        taken.append(module)
    return taken


def stack_is_faster(stack: Job, single: Job) -> bool:
    """Whether a step of the stack takes less time than that of its models one by one; both jobs are used up."""
    times = []
    for job in (stack, single):
        with torch.random.fork_rng(devices=[job.inputs.device] if job.inputs.device.type == "cuda" else []):
            job.block(0, 1)
            found = []
            for _ in range(_PROBES):
                start = time.perf_counter()
                job.block(0, _PROBE)  # looks at the losses, so that a GPU has done its work
                found.append(time.perf_counter() - start)
            times.append(min(found))  # what disturbs adds
    return times[0] < times[1] * len(stack.models)


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
