"""A student's inputs: raw samples, changed and preprocessed, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.data import batches as b
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.preprocess.base import Preprocess
from ensdistill.data.samples import in_memory, positions, whole
from ensdistill.data.versions import view_inputs
from ensdistill.teachers.members.dtypes import tables
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.stack.validation import as_float32

Inputs = Tensor | dict[str, Tensor]
"""Inputs [B, ...] of a module; several by name are its keyword arguments."""

HELD_BYTES = 2**31  # prepared inputs beyond this are made batch by batch
READ_BYTES = 2**23
_PREDICTED = 1024  # samples that a student predicts at once


def takes_ids(model: nn.Module) -> bool:
    """Whether integers are ids for this module: it has embeddings."""
    return bool(tables(model))


def as_inputs(argument: str, batch: Any, ids: bool) -> Inputs:
    """A preprocessed batch as tensors in main memory.

    Parameters
    ----------
    argument : str
        The argument that an error message names.
    batch : array, tensor or mapping of these, [B, ...]
        Numbers become float32. Integers become int64 in a mapping, and for a module with embeddings.
    ids : bool
        See :func:`takes_ids`.

    Raises
    ------
    TypeError
        Another kind of batch, such as a frame or strings: a preprocess has to make numbers of it.
    """
    if isinstance(batch, Mapping):
        return {name: _one(f"{argument}[{name!r}]", part, True) for name, part in batch.items()}
    return _one(argument, batch, ids)


def _one(argument: str, batch: Any, ids: bool) -> Tensor:
    if isinstance(batch, Tensor):
        batch = batch.float() if batch.dtype in (torch.bfloat16, torch.float16) else batch
        batch = batch.detach().cpu().numpy()
    if not isinstance(batch, np.ndarray) or batch.dtype.kind not in "fiub":
        found = b.kind_of(batch, argument).name
        got = f"an array of {batch.dtype}" if isinstance(batch, np.ndarray) else f"samples of kind {found!r}"
        raise TypeError(
            f"{argument}: expected numbers for a student; got {got}: name a preprocess, which makes numbers "
            "of them"
        )
    if ids and batch.dtype.kind in "iu":
        return tensor_of(batch.astype(np.int64, copy=False))
    return tensor_of(as_float32(argument, batch))


def tensor_of(array: np.ndarray) -> Tensor:
    """The array as a tensor, in a copy where it is read-only (a mapped file, a column of pandas) or not
    contiguous."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def rows_of(inputs: Inputs, index: Any) -> Inputs:
    """The inputs at some positions."""
    return {k: part[index] for k, part in inputs.items()} if isinstance(inputs, dict) else inputs[index]


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on a device."""
    return (
        {k: part.to(device) for k, part in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
    )


def call(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """The module's outputs [B, C]; of several, those that :func:`logits_of` finds."""
    outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return outputs if isinstance(outputs, Tensor) else logits_of(outputs)


@dataclass(frozen=True)
class Preparation:
    """From raw samples to a student's inputs.

    Parameters
    ----------
    preprocess : Preprocess or None
    ids : bool
        See :func:`takes_ids`.
    argument : str
        The argument that an error message names.
    """

    preprocess: Preprocess | None
    ids: bool
    argument: str = "rows.inputs"

    def __call__(self, batch: Any) -> Inputs:
        """The inputs of a batch of raw samples."""
        prepared = batch if self.preprocess is None else self.preprocess(batch)
        return as_inputs(self.argument, prepared, self.ids)

    def held(self, samples: Any) -> Inputs | None:
        """The inputs of all samples; None for lazy ones, and where they need more than ``HELD_BYTES``."""
        if not in_memory(samples):
            return None
        if self.preprocess is None:
            return self(whole(samples))
        return None if self.size(samples) * len(samples) > HELD_BYTES else self(whole(samples))

    def size(self, samples: Any) -> int:
        """Bytes of one sample's inputs."""
        first = self(samples[:1])
        return sum(part.nbytes for part in (first.values() if isinstance(first, dict) else [first]))

    def batches(self, samples: Any) -> Callable[[], Iterator[Inputs]]:
        """A function that goes through the inputs of all samples in order, a batch at a time."""
        parts, held = positions(len(samples), _PREDICTED), self.held(samples)
        if held is not None:
            return lambda: (rows_of(held, slice(int(part[0]), int(part[-1]) + 1)) for part in parts)
        return lambda: (self(samples[part]) for part in parts)


def steps_together(prepare: Preparation, samples: Any, size: int) -> int:
    """Steps of ``size`` samples that are read at once: 1, 2, 4, ... 32, with at most ``READ_BYTES``."""
    bound = READ_BYTES // max(1, prepare.size(samples) * size)
    return 1 << min(5, max(1, bound).bit_length() - 1)


@dataclass(frozen=True)
class StepReader:
    """The inputs of some steps: samples are read, changed and preprocessed, by a worker process where they
    are lazy.

    Parameters
    ----------
    samples : Samples
    uids : ndarray [N], int64
    prepare : Preparation
    augment : Augmentation or None
    views : int or None
        In epoch e a sample has version e mod ``views``; version e itself where None.
    seed : int
        Of the versions.
    every : int
        Each so many-th sample is hashed, to be compared with a cache; none where 0.
    keep : bool
        Whether the samples are returned, too, from which members predict.
    """

    samples: Any
    uids: np.ndarray
    prepare: Preparation
    augment: Augmentation | None
    views: int | None
    seed: int
    every: int
    keep: bool = False

    def __call__(
        self, steps: tuple[np.ndarray, np.ndarray]
    ) -> tuple[Inputs, np.ndarray, dict[str, Any], Any]:
        """The inputs, hashes of samples, the samples' form, and the samples or None; ``steps`` has the
        samples' positions and epochs, both int64 [M]."""
        where, epochs = steps
        batch = self.samples[where]
        if self.augment is not None:
            versions = epochs if self.views is None else epochs % self.views
            batch = _changed(batch, self.augment, self.uids[where], versions, self.seed)
        kind = b.kind_of(batch)  # of the whole batch, because an empty list has none
        hashes = kind.hashes(kind.take(batch, self.hashed))
        return self.prepare(batch), hashes, b.describe(batch), batch if self.keep else None

    @property
    def hashed(self) -> slice:
        """Which of the samples of a call are hashed."""
        return slice(None, None, self.every) if self.every else slice(0)


def _changed(batch: Any, augment: Augmentation, uids: np.ndarray, versions: np.ndarray, seed: int) -> Any:
    """The samples' versions, a number for each."""
    order = [np.flatnonzero(versions == version) for version in np.unique(versions)]
    parts = [view_inputs(augment, b.take(batch, at), uids[at], int(versions[at[0]]), seed) for at in order]
    if len(parts) == 1:
        return parts[0]
    return b.take(b.join(parts), np.argsort(np.concatenate(order), kind="stable"))
