"""Tensors that are divided over processes, in a folder of safetensors files: each process writes its own.

The files are those of torch's distributed checkpoints with safetensors
(:mod:`torch.distributed.checkpoint.hf_storage`), so that torch's own tools read them, too. torch's usual
distributed checkpoints hold a pickled file, and are not used here.

A folder has no meaning by itself: the checkpoint beside it names the folder, its files and its tensors, and
is written after all of them. A folder that no checkpoint names is left over by a process that died.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensdistill.common.files import fsync
from ensdistill.common.processes import Processes


def is_divided(tensor: Any) -> bool:
    """Whether the tensor is a DTensor, of which this process holds a share."""
    # The class is loaded in half a second, which a training without such tensors doesn't need.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_share(tensor: Tensor) -> Tensor:
    """The share of a divided tensor that this process holds, in the same memory; another tensor as it is."""
    share: Tensor = tensor.detach().to_local() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
    return share


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a divided tensor, for which all processes call this; another tensor as it is."""
    whole: Tensor = tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
    return whole.detach()


def like(shape: Any, dtype: torch.dtype, other: Tensor) -> Tensor:
    """A tensor of zeros that is divided as ``other`` is: each process has the rows that belong to its rows of
    ``other``. Where their numbers of rows differ, each process has all."""
    if not is_divided(other):
        return torch.zeros(shape, dtype=dtype)
    from torch.distributed.tensor import Replicate, zeros

    placements = list(other.placements)  # type: ignore[attr-defined]
    if list(shape[:1]) != list(other.shape[:1]):
        placements = [Replicate()] * len(placements)
    return zeros(*shape, dtype=dtype, device_mesh=other.device_mesh, placements=placements)  # type: ignore[attr-defined]


def fill(target: Tensor, whole: Tensor) -> None:
    """Overwrite a tensor, divided or not, by a whole one."""
    if is_divided(target):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
        # Each process takes its part of its own copy.
        whole = distribute_tensor(whole.to(target.device), mesh, placements, src_data_rank=None)
    target.copy_(whole)


def folder_of(path: Path, step: int) -> Path:
    """The folder of the shards of the checkpoint ``path`` after ``step`` steps."""
    return path.with_name(f"{path.name}.shards-{step:09d}")


def remove_folders(path: Path, keep: Path | None = None) -> None:
    """Delete all folders of shards of the checkpoint ``path`` but one."""
    for folder in path.parent.glob(f"{glob.escape(path.name)}.shards-*"):
        if folder != keep:
            shutil.rmtree(folder)


def write_shards(folder: Path, tensors: Mapping[str, Tensor], group: Processes) -> dict[str, Any]:
    """Write divided tensors into a new folder; all processes call this, and see the same disk.

    Returns
    -------
    dict
        The record by which :func:`read_shards` finds them: complete and on the disk.

    Raises
    ------
    ValueError
        A tensor that is a sum over processes which was not taken yet.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    for name, tensor in tensors.items():
        if any(placement.is_partial() for placement in tensor.placements):  # type: ignore[attr-defined]
            raise ValueError(
                f"checkpoint: {name} is kept by the optimiser as parts of a sum, which a checkpoint can't "
                "hold; train with checkpoint=None, or choose another optimiser"
            )
    if group.rank == 0:
        # Files of other processes than now would be read, too.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    _check_seen(folder, group)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _no_warnings():
        checkpoint.save(dict(tensors), storage_writer=writer)
    group.wait()
    if group.rank == 0:
        fsync(folder)
    return {
        "folder": folder.name,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "tensors": {
            name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for name, t in tensors.items()
        },
    }


def _check_seen(folder: Path, group: Processes) -> None:
    """Raise ValueError in all processes unless all see the folder that process 0 has made: it could not be
    read again from several disks."""
    seen, mark = folder / "seen", group.first(os.urandom(16))
    if group.rank == 0 and mark is not None:
        seen.write_bytes(mark)
    group.wait()
    with group.together():
        if not seen.is_file() or seen.read_bytes() != mark:
            raise ValueError(
                f"checkpoint: process {group.rank} does not see {folder.absolute()} of process 0, and the "
                "shards of a divided student have to be in one folder; name a folder on a disk that all "
                "processes see, by its whole path"
            )
    if group.rank == 0:
        seen.unlink()
    group.wait()


def check_shards(path: Path, record: Mapping[str, Any]) -> Path:
    """The folder of the shards of the checkpoint ``path``.

    Raises
    ------
    ValueError
        A file is missing, or of another length than when it was written.
    """
    folder = path.parent / record["folder"]
    for name, size in record["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(
                f"checkpoint: {path} needs {file} of {size} bytes, and "
                + (f"it has {file.stat().st_size}" if file.is_file() else "there is none")
                + "; copy checkpoints with their folder of shards, to a disk that all processes see, or "
                f"delete {path.name} to start anew"
            )
    return folder


def read_shards(folder: Path, tensors: Mapping[str, Tensor], group: Processes) -> None:
    """Overwrite tensors, divided in any way or whole, by those in the folder; all processes call this."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    with _no_warnings():
        checkpoint.load(dict(tensors), storage_reader=reader, no_dist=group.count == 1)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """torch warns of a single process without a group, which is no mistake here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
