"""The checkpoint of a student's training: its fingerprint, and the state that is saved and restored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ensdistill.common.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.common.fingerprint import digest
from ensdistill.common.processes import Processes
from ensdistill.common.source import source_digest
from ensdistill.data.samples import as_samples
from ensdistill.student.averaging import state_of
from ensdistill.student.curve import Curve
from ensdistill.student.engine import Engine
from ensdistill.student.selection import Selection

if TYPE_CHECKING:
    from ensdistill.student.trainer import StudentTrainer
    from ensdistill.student.training import Training


@dataclass
class Checkpoint:
    """The state of a training in a file, which process 0 writes and reads. With ``path=None`` all methods do
    nothing.

    Parameters
    ----------
    path : path or None
    every : int
        Steps between two writes, at least.
    fingerprint : str
        A file with another fingerprint is not resumed.
    engine : Engine
    scheduler : LRScheduler
    curve : Curve
    selection : Selection
    """

    path: Path | str | None
    every: int
    fingerprint: str
    engine: Engine
    scheduler: LRScheduler
    curve: Curve
    selection: Selection
    saved: int = 0

    def resume(self) -> int:
        """Restore the state that the file holds, and return the number of steps that are done.

        Raises
        ------
        ValueError
            The file is damaged, or belongs to another number of processes.
        """
        if self.path is None:
            return 0
        group = self.engine.group
        resumed = load_checkpoint(
            self.path,
            fingerprint=self.fingerprint,
            tensors=self._tensors(),
            optimizer=self.engine.optimizer,
            scheduler=self.scheduler,
            group=group,
        )
        if resumed is None:
            return 0
        if resumed.values["processes"] != group.count:
            raise ValueError(
                f"checkpoint: {self.path} is of a training by {resumed.values['processes']} processes, now "
                "there are "
                f"{group.count}, whose sums would round differently; start as many again, or delete it to "
                "start anew"
            )
        self.engine.load_scaler(resumed.values["scaler"])
        self.selection.restore(resumed.values)
        self.saved = resumed.step
        return resumed.step

    def save(self, step: int, steps: int) -> None:
        """Write the state after ``step`` of ``steps`` steps, unless the last one is recent or the training is
        complete."""
        if (
            self.path is None
            or self.engine.group.rank != 0
            or step - self.saved < self.every
            or step >= steps
        ):
            return
        save_checkpoint(
            self.path,
            step=step,
            fingerprint=self.fingerprint,
            tensors=self._tensors(),
            optimizer=self.engine.optimizer,
            scheduler=self.scheduler,
            values={
                "processes": self.engine.group.count,
                "scaler": self.engine.scaler,
                **self.selection.values,
            },
        )
        self.saved = step

    def _tensors(self) -> dict[str, Tensor]:
        return {**state_of(self.engine.model), **self.curve.state, **self.selection.tensors}


def training_fingerprint(
    trainer: StudentTrainer, training: Training, model: nn.Module, group: Processes
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
    code = [source_digest(type(model)), None if augment is None else source_digest(type(augment))]
    about = [*_method_and_targets(training), training.checkpoint is not None]
    settings = [trainer.optimization, trainer.mixed_precision, trainer.impl, trainer.sync_batch_norm, about]
    watch = None if training.watch is None else as_samples(training.watch, "watch")
    parts = [repr(model), training.rows, repr(augment), code, training.seed, watch, settings]
    parts += [] if training.preprocess is None else [training.preprocess.fingerprint()]
    # What is set adds a part, so that checkpoints from before the setting existed keep their fingerprint.
    parts += [] if trainer.ema is None else [["ema", trainer.ema]]
    parts += [] if training.validation is None else [["validation", *training.validation.fingerprint()]]
    same = digest([*parts, *trainer.fingerprint()])
    if not group.agree(same.encode()):
        raise ValueError(
            f"rows: the {group.count} processes were called with different rows, models or settings; pass "
            "all "
            "of them the same, whole transfer set: each process takes its share of every batch by itself"
        )
    # Weights drawn without torch's generator differ between processes, and all processes get those of process
    # 0.
    start = group.first(digest([state_of(model), torch.__version__, torch.get_num_threads()]).encode())
    return digest([same, start])


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
