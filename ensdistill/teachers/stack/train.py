"""Supervised training of several models of one architecture: stacked under ``vmap``, side by side on threads,
or one by one.

Every model has its own stream of batches, augmentation draws and dropout masks, keyed by its own seed and the
step alone. So a model does not depend on the models beside it (see :func:`train_stack` for how exactly), and
a resumed run needs no saved random state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.describe import make_module
from ensdistill.common.errors import is_out_of_memory
from ensdistill.common.files import read_json, write_json
from ensdistill.common.optimization import Optimization, trained_parameters
from ensdistill.common.optimizers import refuse_extras
from ensdistill.common.progress import Progress, shifted
from ensdistill.common.random import derive_seed
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.tasks import task_of_labels
from ensdistill.teachers.stack.loop import Job
from ensdistill.teachers.stack.objectives import Objective
from ensdistill.teachers.stack.side_by_side import SideBySide
from ensdistill.teachers.stack.status import Watch
from ensdistill.teachers.stack.strategies import (
    CONCRETE,
    MEASURE_FROM,
    STACK_FROM,
    Way,
    as_stack,
    can_run_side_by_side,
    fastest,
    workers,
)
from ensdistill.teachers.stack.traits import Traits, traits
from ensdistill.teachers.stack.validation import (
    check_data,
    check_ending,
    check_fresh,
    check_models,
    check_way,
)


def train_stack(
    factory: Callable[[], nn.Module],
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    seeds: Sequence[int],
    rows: Sequence[np.ndarray] | None = None,
    weights: np.ndarray | None = None,
    variance: bool = False,
    optimization: Optimization | None = None,
    augment: Augmentation | None = None,
    augmented: Sequence[bool] | None = None,
    way: Way = "auto",
    names: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 256,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> list[nn.Module]:
    """Train one model per seed on labels, by the loss of their task; see
    :class:`ensdistill.teachers.stack.objectives.Objective`.

    Parameters
    ----------
    factory : callable
        Makes a new, randomly initialised module that maps [N, ...] to logits [N, C], or to standardised
        numbers [N, D]; torch's seed is set before each call.
    inputs : ndarray [N, ...], float32
    labels : ndarray [N], int64
        Or in the form of another task, int8 [N, C] or float64 [N, D]; see :mod:`ensdistill.data.tasks`.
    classes : int
        C; every label is in 0..C-1. Of other tasks the number of the labels' columns.
    seeds : sequence of int
        One per model: initialisation, order of the batches, augmentation and dropout.
    rows : sequence of int64 ndarray, optional
        For each model the positions in ``inputs`` that it learns from, for example a fold or a bootstrap
        sample. All by default.
    weights : ndarray [N], float64, optional
        The loss of a row is multiplied by its weight over the mean weight of the model's rows.
    variance : bool
        Whether a model of regression returns 2 D outputs, the means and then the logarithms of the variances.
    optimization : Optimization, optional
    augment : Augmentation, optional
    augmented : sequence of bool, optional
        For each model whether it uses ``augment``; all by default.
    way : {"auto", "measured", "stacked", "one_by_one", "side_by_side"}
        ``stacked`` trains all models at once by ``torch.func.stack_module_state`` and
        ``vmap(randomness="different")``; ``side_by_side``, on the CPU, as many at once as torch has threads,
        each on a thread of its own. ``auto`` stacks from four models on (the measurement stands in the
        source); ``measured`` times the first steps of all three, which is worth its time in long trainings
        (``auto`` decides below 200 steps), and chooses: the bits then depend on the machine's mood. Some
        models cannot be stacked: vmap fails, memory is short, or one model computes something else by an
        attribute. Some cannot run side by side: they are compiled or share a part. Models that draw from a
        global generator beside dropout can do neither. A warning then gives the reason, and they are trained
        one by one (``measured``: in the faster way that is left). Under ``stacked``, models that draw only
        cause the warning.
    names : sequence of str, optional
        For messages.
    checkpoint : folder, optional
        Where the state is kept, every ``checkpoint_every`` steps and at the end; the same call resumes from
        it with the same bits. The caller removes the folder once it has put the models away.
    progress : callable (done, total), optional
        In steps, over all models.
    watch : callable, optional
        Called with the :class:`Status` of the models in work after every 32 steps. Both are called by the
        caller's thread.

    Returns
    -------
    list of Module
        In the order of ``seeds``, in eval mode, on ``device``. The numbers of a regression are in units of
        the location and scale of the model's own rows, which ``objectives.units_of`` returns.

    Raises
    ------
    ValueError
        Bad arguments, a factory that returns shared parameters, or a model with another number of outputs.
    FloatingPointError
        A loss that is not finite; names the model and the step.
    MemoryError
        Memory is short; names the model. Other errors of a model have a note that does.

    Notes
    -----
    One by one and side by side, a model has the same bits with any models beside it. Between the ways its
    batches, augmentation and dropout are still the same and only the rounding differs (1e-7 in a step, which
    AdamW lets grow: 1e-4 of parameters after some hundred steps). Random numbers that a module draws by other
    means than ``dropout`` and ``dropout1d`` to ``3d`` of torch's functions (within attention, alpha dropout,
    noise of its own) come from a global generator. One by one they are keyed by the model's seed, but under
    ``stacked`` they are drawn for the whole stack, so no other way stacks such modules. Parameters that don't
    change the loss (a bias before BatchNorm) have gradients of nothing but rounding, which AdamW scales up to
    whole steps: between the ways they differ by as much as they have moved, the outputs only by the rounding
    of the rest. Objects that modules and augmentations share beside parameters, buffers and submodules (a
    global cache) have to be safe to use from several threads.

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
    refuse_extras(optimization)
    count = len(seeds)
    rows = [np.arange(len(inputs), dtype=np.int64)] * count if rows is None else list(rows)
    names = [f"model {i}" for i in range(count)] if names is None else list(names)
    check_data(inputs, labels, rows, names, count, classes, weights, variance)
    augmented = [augment is not None] * count if augmented is None else list(augmented)
    if len(augmented) != count or (any(augmented) and augment is None):
        raise ValueError(
            f"augmented: expected {count} values, one for each model, and an augmentation; got {augmented} "
            f"and {augment}"
        )
    check_way(way, device)
    if count == 1:
        check_fresh(factory, names[0], {})
    models = [_initialise(factory, seed) for seed in seeds]
    check_models(models, names)
    optimization = optimization.for_member(len(inputs), trained_parameters(models[0]))
    data = _tensors(inputs, labels, device)
    outputs = classes * (1 + variance)
    check_ending(
        models[0], torch.from_numpy(np.ascontiguousarray(inputs[:2])), names[0], task_of_labels(labels)
    )

    def job(
        group: Sequence[int],
        copies: bool = False,
        watch: Watch | None = None,
        stop: Event | None = None,
        known: Traits | None = None,
    ) -> Job:
        own = [rows[i] for i in group]
        objective = Objective.of(labels, own, outputs, optimization.label_smoothing, data[0].device)
        return Job(
            [(copy.deepcopy(models[i]) if copies else models[i]).to(device) for i in group],
            [names[i] for i in group],
            [seeds[i] for i in group],
            own,
            *data,
            objective,
            optimization,
            augment,
            [i for i, model in enumerate(group) if augmented[model]],
            watch=watch,
            stop=stop,
            known=known,
            weights=weights,
        )

    home = None if checkpoint is None else Path(checkpoint)
    with _generators_kept(device):
        with named(
            names[:1], optimization, names
        ):  # the first model is tried; where others fail, they are trained another way
            chosen = _choose(way, models, optimization, home, partial(job, copies=True))
        if chosen == "side_by_side":
            beside, done = SideBySide(), [0] * count

            def report(i: int, steps: int) -> None:
                done[i] = steps
                if progress is not None:
                    progress(sum(done), count * optimization.steps)

            told = None if watch is None else beside.by_caller(watch)
            tried = []  # by this thread: it looks at the global generators
            for i, model in enumerate(models):
                with named(names[i : i + 1], optimization):
                    tried.append(traits(model.train(), data[0]))

            def training(i: int) -> None:  # its optimizer is there only while it runs
                with named(names[i : i + 1], optimization):
                    one = job([i], watch=told, stop=beside.stop, known=tried[i])
                    one.run(_file(home, i), checkpoint_every, beside.by_caller(partial(report, i)))

            beside.run([partial(training, i) for i in range(count)], workers(count))
        else:
            groups = [list(range(count))] if chosen == "stacked" else [[i] for i in range(count)]
            for group in groups:
                shown = (
                    None
                    if progress is None
                    else shifted(progress, group[0] * optimization.steps, len(groups) * optimization.steps)
                )
                with named([names[i] for i in group], optimization):
                    job(group, watch=watch).run(
                        _file(home, None if chosen == "stacked" else group[0]), checkpoint_every, shown
                    )
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
    weights: np.ndarray | None = None,
    variance: bool = False,
    augment: Augmentation | None = None,
    name: str = "model",
    device: str | torch.device = "cpu",
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 256,
    watch: Watch | None = None,
) -> list[nn.Module]:
    """Train one model and keep it as it was after each of the steps ``captures``: one module each, in eval
    mode.

    The other arguments, errors and resumption are those of :func:`train_stack`.
    """
    check_fresh(factory, name, {})
    model = _initialise(factory, seed)
    optimization = optimization.for_member(len(inputs), trained_parameters(model))
    if (
        not captures
        or sorted(set(captures)) != list(captures)
        or captures[0] < 1
        or captures[-1] > optimization.steps
    ):
        raise ValueError(f"captures: expected growing steps in 1..{optimization.steps}; got {list(captures)}")
    rows = [np.arange(len(inputs), dtype=np.int64)]
    check_data(inputs, labels, rows, [name], 1, classes, weights, variance)
    data = _tensors(inputs, labels, device)
    check_ending(model, torch.from_numpy(np.ascontiguousarray(inputs[:2])), name, task_of_labels(labels))
    refuse_extras(optimization)
    used = [] if augment is None else [0]
    objective = Objective.of(
        labels, rows, classes * (1 + variance), optimization.label_smoothing, data[0].device
    )
    with _generators_kept(device), named([name], optimization):
        job = Job(
            [model.to(device)],
            [name],
            [seed],
            rows,
            *data,
            objective,
            optimization,
            augment,
            used,
            captures,
            watch,
            weights=weights,
        )
        job.run(
            None if checkpoint is None else Path(checkpoint) / "trajectory.safetensors",
            checkpoint_every,
            None,
        )
    taken = []
    for i in range(len(captures)):
        module = copy.deepcopy(model).eval()
        with torch.no_grad():
            for key, value in [*module.named_parameters(), *module.named_buffers()]:
                value.copy_(job.captured[key][i])
        taken.append(module)
    return taken


def _choose(
    way: Way,
    models: list[nn.Module],
    optimization: Optimization,
    checkpoint: Path | None,
    job: Callable[[Sequence[int]], Job],
) -> Way:
    """One of the concrete ways; ``job`` makes jobs of copies of models."""
    if way == "side_by_side":
        return way if can_run_side_by_side(models, job([0])) else "one_by_one"
    if way == "stacked" and len(models) > 1:
        return way if as_stack(models, job, insist=True) is not None else "one_by_one"
    if way in CONCRETE:
        return way
    if len(models) == 1:
        return "one_by_one"
    if way == "auto" or optimization.steps < MEASURE_FROM:
        return "stacked" if len(models) >= STACK_FROM and as_stack(models, job) is not None else "one_by_one"
    remembered = None if checkpoint is None else read_json(checkpoint / "way.json")
    if (
        isinstance(remembered, dict) and remembered.get("way") in CONCRETE
    ):  # a training that is resumed goes on as it began
        return remembered["way"]
    found = fastest(models, job)
    if checkpoint is not None:
        write_json(checkpoint / "way.json", {"way": found})
    return found


@contextmanager
def named(names: Sequence[str], optimization: Optimization, beside: Sequence[str] = ()) -> Iterator[None]:
    """Add the models' names to an error, unless it begins with the name of one of them or of those
    ``beside``.

    Where memory was short, the error gets a remedy.
    """
    who = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            if not str(error).startswith(tuple(f"{name}: " for name in (*names, *beside))):
                error.add_note(f"in the training of {who}")
            raise
        fewer = "" if len(names) == 1 else ", or train them by way='one_by_one'"
        raise MemoryError(
            f"{who}: out of memory in the training ({error}); lower optimization.batch_size "
            f"({optimization.batch_size}){fewer}"
        ) from None


def _tensors(inputs: np.ndarray, labels: np.ndarray, device: str | torch.device) -> tuple[Tensor, Tensor]:
    # Flattened and back, which copies nothing: an axis of length one can have any stride, and a channel's
    # would choose the layout.
    return torch.from_numpy(inputs).reshape(-1).view(inputs.shape).to(device), torch.from_numpy(labels).to(
        device
    )


def _file(checkpoint: Path | None, model: int | None) -> Path | None:
    return (
        None
        if checkpoint is None
        else checkpoint / ("stack.safetensors" if model is None else f"model-{model:04d}.safetensors")
    )


def _generators_kept(device: str | torch.device) -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else [])


def _initialise(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("initial parameters", seed))
        return make_module(factory)
