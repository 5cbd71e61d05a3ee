"""The checkpoint of a training of several data sets, from which the same call goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ensdistill.common.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.common.source import source_digest
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.student.checkpoint_files import CheckpointFiles
from ensdistill.student.resume import as_leaves, check_resumable, named_cache, named_loss
from ensdistill.student.shared.sets import SetTargets


@dataclass
class SetsCheckpoint:
    """The state of a training in one file; with ``files=None`` all methods do nothing.

    Parameters
    ----------
    files : CheckpointFiles or None
        Of one file.
    every : int
        Steps between two writes, at least.
    about : dict
        The parts of the training's fingerprint; see :func:`describe_sets`.
    models : Module
        The heads and the trunk, on the training's device.
    optimizer : Optimizer
    scheduler : LRScheduler
    """

    files: CheckpointFiles | None
    every: int
    about: dict[str, Any]
    models: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    saved: int = 0

    def resume(self, losses: list[list[float]]) -> int:
        """Restore the state that the file holds, with the losses of each set, and return the number of steps
        that are done.

        Raises
        ------
        CheckpointMismatch
            The file is of another training.
        ValueError
            The file is damaged, or a module has state that no checkpoint can hold.
        """
        if self.files is None:
            return 0
        check_resumable(self.models)
        resumed = load_checkpoint(
            self._file,
            fingerprint=digest(self.about),
            tensors=self._tensors,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            generators=self._generators,
            about=self.about,
        )
        if resumed is None:
            return 0
        losses[:] = resumed.values["losses"]
        self.saved = resumed.step
        return resumed.step

    def save(self, step: int, steps: int, losses: Sequence[Sequence[float]]) -> None:
        """Write the state after ``step`` of ``steps`` steps, unless the last one is recent or the training is
        complete."""
        if self.files is None or step - self.saved < self.every or step >= steps:
            return
        self.saved = step
        save_checkpoint(
            self._file,
            step=step,
            fingerprint=digest(self.about),
            tensors=self._tensors,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            generators=self._generators,
            values={"losses": [list(one) for one in losses]},
            about=self.about,
        )

    @property
    def _file(self) -> Any:
        assert self.files is not None
        return self.files.at(0)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """Each tensor once: the heads share the trunk's."""
        return {**dict(self.models.named_parameters()), **dict(self.models.named_buffers())}

    @property
    def _generators(self) -> dict[str, torch.Generator]:
        """The generators of dropout, which draws from one step to the next."""
        found = {"cpu": torch.default_generator}
        device = next(self.models.parameters()).device
        if device.type == "cuda":
            found["cuda"] = torch.cuda.default_generators[device.index or 0]
        return found


def describe_sets(
    students: Sequence[Any],
    targets: Sequence[SetTargets],
    settings: StudentOptimization,
    preprocess: Preprocess | None,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """All that the training depends on, by name, as JSON: plain values, and digests of everything else.

    Parameters
    ----------
    students : sequence of Headed
        With their first weights.
    targets : sequence of SetTargets
        Of the same sets.
    settings : StudentOptimization
    preprocess : Preprocess or None
    seed : int
    device : device
    """
    models = nn.ModuleList(students)
    code = [[source_digest(type(part)) for part in (one.trunk, one.head)] for one in students]
    parts: dict[str, Any] = {
        "student": {"layers": digest(repr(models)), "code": digest(code)},
        "first weights": {**dict(models.named_parameters()), **dict(models.named_buffers())},
        "sets": {one.name: _described(one) for one in targets},
        "optimization": {f.name: getattr(settings, f.name) for f in fields(settings)},
        "preprocess": None if preprocess is None else preprocess.fingerprint(),
        "seed": seed,
        "device": str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return {name: as_leaves(part) for name, part in parts.items()}


def _described(targets: SetTargets) -> Mapping[str, Any]:
    own = targets.own
    return {
        "rows": own.rows.__fingerprint__(),
        "targets": named_cache(own.cache),
        "loss": named_loss(targets.loss),
        "weight": own.weight,
        "class_dim": own.class_dim,
        "labels": None if own.labels is None else digest(own.labels),
        "held_out": own.held_out,
    }
