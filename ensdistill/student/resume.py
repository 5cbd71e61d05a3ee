"""The checkpoint of a student's training: its fingerprint, and the state that is saved and restored."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ensdistill.cache import TargetCache
from ensdistill.common.checkpoint import differences, load_checkpoint, save_checkpoint
from ensdistill.common.describe import class_path, describe
from ensdistill.common.divided import gathered
from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.common.processes import Processes
from ensdistill.common.source import source_digest
from ensdistill.data.samples import as_samples
from ensdistill.student.averaging import state_of
from ensdistill.student.checkpoint_files import CheckpointFiles
from ensdistill.student.companion import student_of
from ensdistill.student.curve import Curve
from ensdistill.student.engine import Engine
from ensdistill.student.methods import MomentTargets, SoftTargets, StudentLoss, name_of
from ensdistill.student.selection import Selection
from ensdistill.student.sources import CachedTargets, RowTargets

if TYPE_CHECKING:
    from ensdistill.student.automatic import Automatic
    from ensdistill.student.trainer import StudentTrainer
    from ensdistill.student.training import Training

BEST = "best.safetensors"


@dataclass
class Checkpoint:
    """The state of a training in a file, which process 0 writes and reads; shares of divided tensors lie
    beside it, of which each process writes its own. With ``files=None`` all methods do nothing.

    Parameters
    ----------
    files : CheckpointFiles or None
    every : int
        Steps between two writes, at least.
    fingerprint : str
        A file with another fingerprint is refused.
    about : dict
        The fingerprint's parts.
    engine : Engine
    scheduler : LRScheduler
    curve : Curve
    selection : Selection
    shard : sequence of str or None
        The patterns by which the student is divided over the processes; None where each has all of it.
    """

    files: CheckpointFiles | None
    every: int
    fingerprint: str
    about: dict[str, Any]
    engine: Engine
    scheduler: LRScheduler
    curve: Curve
    selection: Selection
    shard: Sequence[str] | None = None
    saved: int = 0

    def resume(self) -> int:
        """Restore the state that the file holds, and return the number of steps that are done.

        Raises
        ------
        CheckpointMismatch
            The file is of another training.
        ValueError
            The file is damaged.
        """
        if self.files is None:
            return 0
        group = self.engine.group
        # The name of process 0's file, by which errors of all processes name it.
        own = str(self.files.newest() or self.files.at(0)).encode()
        newest = Path((group.first(own) or own).decode())
        resumed = load_checkpoint(
            newest,
            fingerprint=self.fingerprint,
            tensors=self._tensors(),
            optimizer=self.engine.optimizer,
            scheduler=self.scheduler,
            group=group,
            about=self.about,
        )
        if resumed is None:
            return 0
        before = _way(resumed.values["processes"], resumed.values.get("shard"))
        if before != (now := _way(group.count, self.shard)) and group.rank == 0:
            warnings.warn(
                f"checkpoint: {newest} is of a training by {before}, continued by {now}: sums round "
                "differently and dropout masks differ, so the student is an equally good one, but not the "
                f"same to the bit; start {before} for the same bits",
                stacklevel=5,
            )
        self.engine.load_scaler(resumed.values["scaler"])
        self.selection.restore(resumed.values)
        self.saved = resumed.step
        self.save_best()
        return resumed.step

    def save(self, step: int, steps: int) -> Path | None:
        """Write the state after ``step`` of ``steps`` steps, unless the last one is recent or the training is
        complete; return the file where there is a new one."""
        if self.files is None or step - self.saved < self.every or step >= steps:
            return None
        self.saved, file = step, self.files.at(step)
        group = self.engine.group
        save_checkpoint(
            file,
            step=step,
            fingerprint=self.fingerprint,
            tensors=self._tensors(),
            optimizer=self.engine.optimizer,
            scheduler=self.scheduler,
            values={
                "processes": group.count,
                **({} if self.shard is None else {"shard": list(self.shard)}),
                "scaler": self.engine.scaler,
                **self.selection.values,
            },
            about=self.about,
            group=group,
        )
        if group.rank == 0:
            self.files.tidy()
        return file

    def save_best(self) -> None:
        """Write the best weights so far as ``best.safetensors`` in the folder."""
        choice = self.selection.choice
        if self.files is None or self.files.folder is None or choice is None:
            return
        group = self.engine.group
        tensors: dict[str, Tensor] = {}
        # In the model's order, the same in all processes: they gather one tensor after the other together.
        for name in [n for n in student_of(self.engine.model).state_dict() if n in self.selection.best]:
            whole = gathered(self.selection.best[name])  # by all processes
            tensors |= {name: whole.cpu()} if group.rank == 0 else {}
        if group.rank != 0:
            return
        metadata = {"ensdistill_choice": json.dumps(asdict(choice))}
        blob = save({k: v.contiguous().clone() for k, v in tensors.items()}, metadata=metadata)
        write_bytes(self.files.folder / BEST, blob)

    def _tensors(self) -> dict[str, Tensor]:
        return {**state_of(self.engine.model), **self.curve.state, **self.selection.tensors}


def _way(processes: int, shard: Sequence[str] | None) -> str:
    """How many processes train, and how they divide the student, in words."""
    count = f"{processes} process{'es' if processes > 1 else ''}"
    return count if shard is None or processes == 1 else f"{count} with shard={list(shard) or True}"


def training_fingerprint(
    trainer: StudentTrainer,
    training: Training,
    model: nn.Module,
    group: Processes,
    automatic: Automatic | None = None,
) -> str:
    """Return a digest of everything that the student depends on, except for the number of processes.

    It is empty where no checkpoint and no other process needs it.

    Raises
    ------
    ValueError
        It differs between the processes, or the model has state that a checkpoint cannot hold.
    """
    if training.checkpoint is not None:
        check_resumable(model)
    elif group.count == 1:
        return ""
    # The targets' own fingerprint includes the code and the settings of their versions.
    augment = training.augment
    code = [source_digest(type(student_of(model))), None if augment is None else source_digest(type(augment))]
    about = [*_method_and_targets(training), training.checkpoint is not None]
    settings = [trainer.optimization, trainer.mixed_precision, trainer.impl, trainer.sync_batch_norm, about]
    watch = None if training.watch is None else as_samples(training.watch, "watch")
    parts = [repr(model), training.rows, repr(augment), code, training.seed, watch, settings]
    parts += [] if training.preprocess is None else [training.preprocess.fingerprint()]
    parts += [] if training.task == "classification" else [[training.task, training.units]]
    # What is set adds a part, so that checkpoints from before the setting existed keep their fingerprint.
    parts += [] if trainer.ema is None else [["ema", trainer.ema]]
    parts += [] if training.validation is None else [["validation", *training.validation.fingerprint()]]
    parts += [] if training.division is None else [["machines", _shares(trainer, training)]]
    parts += [["compile", trainer.compile]] if trainer.compile else []
    parts += [["recompute_modules", list(trainer.recompute_modules)]] if trainer.recompute_modules else []
    parts += [] if automatic is None else [["automatic", automatic.record()]]
    same = digest([*parts, *trainer.fingerprint()])
    check_agreement(trainer, training, model, group, digest([same, trainer.shard]))
    # Weights drawn without torch's generator differ between processes, and all processes get those of process
    # 0.
    start = group.first(digest([state_of(model), torch.__version__, torch.get_num_threads()]).encode())
    return digest([same, start])


def check_agreement(
    trainer: StudentTrainer, training: Training, model: nn.Module, group: Processes, same: str
) -> None:
    """Raise ValueError in all processes unless they have the same digest; it names the differing fields."""
    other = group.first(same.encode()) != same.encode()
    if (rank := group.foremost(other)) is None:
        return
    about = describe_training(trainer, training, model)
    about |= {"checkpoint or folder": training.checkpoint is not None, "shard": as_leaves(trainer.shard)}
    for own in ("first weights", "torch", "threads"):  # these may differ
        del about[own]
    first = json.loads(group.first(json.dumps(about).encode()) or b"")
    lines = differences(first, json.loads(json.dumps(about)), ("process 0", f"process {rank}"))
    text = group.first("\n  ".join(lines or ["the code of the trainer"]).encode(), rank) or b""
    raise ValueError(
        f"rows: the {group.count} processes were called with different rows, models or settings:\n  "
        f"{text.decode()}\npass all of them the same, whole transfer set: each process takes its share of "
        "every batch by itself"
    )


def describe_training(
    trainer: StudentTrainer, training: Training, model: nn.Module, automatic: Automatic | None = None
) -> dict[str, Any]:
    """The parts of the fingerprint by name, as JSON: plain values, and digests of everything else."""
    targets, validation, augment = training.targets, training.validation, training.augment
    watch = None if training.watch is None else as_samples(training.watch, "watch")
    parts = {
        "student": {"layers": digest(repr(model)), "code": source_digest(type(student_of(model)))},
        "first weights": state_of(model),
        "rows": training.rows.__fingerprint__(),
        "targets": None if targets is None else _named_targets(targets),
        "loss": named_loss(training.loss),
        "optimization": {f.name: getattr(trainer.optimization, f.name) for f in fields(trainer.optimization)},
        "automatic": None if automatic is None else automatic.record(),
        "mixed_precision": trainer.mixed_precision,
        "impl": trainer.impl,
        "sync_batch_norm": trainer.sync_batch_norm,
        "ema": trainer.ema,
        "compile": trainer.compile,
        "recompute_modules": list(trainer.recompute_modules),
        "trainer": {"class": class_path(type(trainer)), "code and values": digest(trainer.fingerprint())},
        "augment": None if augment is None else [repr(augment), source_digest(type(augment))],
        "preprocess": None if training.preprocess is None else training.preprocess.fingerprint(),
        "validation": None if validation is None else validation.fingerprint(),
        "seed": training.seed,
        "watch": watch,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if training.task != "classification":
        parts |= {"task": training.task, "units": training.units}
    if training.division is not None:
        parts["rows of a batch by machine"] = _shares(trainer, training)
    return {name: as_leaves(part) for name, part in parts.items()}


def _shares(trainer: StudentTrainer, training: Training) -> list[int] | None:
    """How many rows of a batch each machine draws from its own; None where all draw from the same."""
    division = training.division
    return None if division is None else division.shares(trainer.optimization.batch_size)


def _named_targets(targets: RowTargets) -> Any:
    if not isinstance(targets, CachedTargets):
        return targets.fingerprint()
    return named_cache(targets.cache)


def named_cache(cache: TargetCache) -> dict[str, Any]:
    """The fields of a cache's manifest that decide on its targets."""
    manifest: Any = cache.manifest
    fields = ("fingerprint", "codec", "seed", "temperature", "views", "weights", "combiner")
    return {field: manifest[field] for field in fields}


def named_loss(loss: StudentLoss) -> Any:
    """A loss by its settings, or by its name and a digest."""
    if isinstance(loss, SoftTargets | MomentTargets):
        return {"settings": loss.settings, "member": loss.member, "weights": loss.weights}
    return {"kind": name_of(loss), "content": digest(loss.fingerprint())}


def as_leaves(value: Any) -> Any:
    """A value as JSON: plain values stay, everything else becomes a digest."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type) and not hasattr(type(value), "__fingerprint__"):
        return {field.name: as_leaves(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): as_leaves(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_leaves(part) for part in value]
    try:
        return digest(value)
    except TypeError:  # a class, a function: a setting by import path
        return as_leaves(describe(value))


def _method_and_targets(training: Training) -> list[Any]:
    """The loss's fingerprint, after the first part of the targets'; the order is that of earlier versions'
    checkpoints."""
    loss = training.loss.fingerprint()
    parts = loss if isinstance(loss, list) else [loss]
    if training.targets is None:
        return parts
    first, *others = training.targets.fingerprint()
    return [first, *parts, *others]


def check_resumable(model: nn.Module) -> None:
    """Raise ValueError for a module with state that a checkpoint cannot hold."""
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"checkpoint: {name or 'the model'} ({type(module).__name__}) keeps state that is no tensor "
                "(get_extra_state), "
                "which a checkpoint can't hold; make buffers of it, or train with checkpoint=None"
            )
