"""The state of a training on disk, so that a killed run goes on and ends with the same bits.

One ``.safetensors`` file: tensors ``model/*``, ``optimizer/<parameter>/<key>`` and ``generator/<name>``, and
one JSON string in its metadata with everything else. Tensors that are divided over processes lie in a folder
beside it (:mod:`ensdistill.common.divided`), which the file names. Nothing is pickled, so that reading a
checkpoint can't run code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ensdistill.common.divided import (
    check_shards,
    fill,
    folder_of,
    is_divided,
    like,
    read_shards,
    remove_folders,
    write_shards,
)
from ensdistill.common.files import write_bytes
from ensdistill.common.processes import Processes

KEY = "ensdistill_checkpoint"
SHOWN = 12  # fields that an error message names


class CheckpointMismatch(ValueError):
    """A checkpoint is of another training: other settings, data or code."""


@dataclass(frozen=True)
class Resumed:
    """A training's place: ``step`` steps are done; ``values`` holds the plain data saved beside the
    tensors."""

    step: int
    values: Any


def save_checkpoint(
    path: Path | str,
    *,
    step: int,
    fingerprint: str,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    values: Any = None,
    about: Mapping[str, Any] | None = None,
    group: Processes | None = None,
) -> None:
    """Atomically write the state of a training: a writer may be killed at any moment.

    Parameters
    ----------
    step : int
        Steps done.
    fingerprint : str
        Digest of everything that the training depends on (:func:`ensdistill.common.fingerprint.digest`); a
        checkpoint with another one is not resumed.
    tensors : dict of Tensor
        The trained tensors, for example ``module.state_dict()``.
    optimizer, scheduler
        Their ``state_dict()`` is saved.
    generators : dict of torch.Generator
        Their state is saved. ``torch.default_generator`` may be among them.
    values : JSON-able
        Anything else, for example a learning curve.
    about : JSON-able dict, optional
        The parts of the fingerprint, by which the error about another training names what differs.
    group : Processes, optional
        Processes that all call this: each writes its shares of divided tensors, and process 0 all else, once
        the shares are on the disk.
    """
    path, group = Path(path), group or Processes()
    arrays = {f"model/{name}": tensor for name, tensor in tensors.items()}
    header: dict[str, Any] = {"step": step, "fingerprint": fingerprint, "values": values}
    header |= {} if about is None else {"about": about}
    if optimizer is not None:
        state = optimizer.state_dict()
        header["optimizer"] = {"groups": state["param_groups"], "plain": {}}
        for index, entries in state["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    arrays[f"optimizer/{index}/{key}"] = value
                else:
                    header["optimizer"]["plain"].setdefault(str(index), {})[key] = value
    if scheduler is not None:
        header["scheduler"] = scheduler.state_dict()
    for name, generator in (generators or {}).items():
        arrays[f"generator/{name}"] = generator.get_state()
    divided = {name: arrays.pop(name).detach() for name in list(arrays) if is_divided(arrays[name])}
    folder = folder_of(path, step) if divided else None
    if folder is not None:
        header["shards"] = write_shards(folder, divided, group)
    if group.rank != 0:
        return
    # clone(): safetensors refuses tensors that share storage (tied weights), and the file should hold values,
    # not views.
    blob = save(
        {k: v.detach().cpu().contiguous().clone() for k, v in arrays.items()},
        metadata={KEY: _text(header)},
    )
    write_bytes(path, blob)
    remove_folders(path, keep=folder)


def read_about(path: Path | str) -> dict[str, Any]:
    """The ``about`` of a checkpoint; empty where the file is none, or not there. Reads no tensor."""
    try:
        with safe_open(path, "pt") as file:
            found = json.loads(file.metadata()[KEY]).get("about")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}  # load_checkpoint has the error
    return found if isinstance(found, dict) else {}


def load_checkpoint(
    path: Path | str,
    *,
    fingerprint: str,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    group: Processes | None = None,
    about: Mapping[str, Any] | None = None,
) -> Resumed | None:
    """Restore tensors, optimizer and scheduler to the saved state, in place.

    Parameters
    ----------
    group : Processes, optional
        Processes that all call this: the file of process 0 is the one that all take, so that all go on from
        the same step.
    about : dict, optional
        As for :func:`save_checkpoint`; then a checkpoint of another fingerprint is an error.

    Returns
    -------
    Resumed or None
        None, with nothing changed, where there is no checkpoint, or without ``about`` one of another
        fingerprint.

    Raises
    ------
    CheckpointMismatch
        The file has another fingerprint; names the fields of ``about`` that differ.
    ValueError
        The file is damaged, or its tensors do not fit (names, shapes or dtypes).
    """
    path, group = Path(path), group or Processes()
    blob = group.first(path.read_bytes() if group.rank == 0 and path.exists() else None)
    if blob is None:
        return None
    try:
        header = json.loads(_metadata(blob)[KEY])
        other = header["fingerprint"] != fingerprint
        if other and about is None:
            return None
        arrays = {} if other else load(blob)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a readable checkpoint ({error}); delete it to start this training again"
        ) from error

    if other:
        raise _mismatch(path, header.get("about"), about)
    # The forms of all tensors, and how each is read: from the file, or from the shards beside it.
    shards = header.get("shards") or {"files": {}, "tensors": {}}
    forms = {name: (list(value.shape), value.dtype) for name, value in arrays.items()}
    forms |= {n: (form["shape"], getattr(torch, form["dtype"])) for n, form in shards["tensors"].items()}
    saved = {name.removeprefix("model/"): form for name, form in forms.items() if name.startswith("model/")}
    if saved.keys() != tensors.keys():
        raise ValueError(f"{path}: expected tensors {sorted(tensors)}; the checkpoint has {sorted(saved)}")
    for name, target in tensors.items():
        shape, dtype = saved[name]
        if shape != list(target.shape) or dtype != target.dtype:
            raise ValueError(
                f"{path}: {name}: expected {target.dtype} {list(target.shape)}; the checkpoint has {dtype} "
                f"{shape}"
            )
    targets = {f"model/{name}": target.detach() for name, target in tensors.items()}
    state: dict[int, dict[str, Any]] = {}
    if optimizer is not None:
        state = {int(i): dict(plain) for i, plain in header["optimizer"]["plain"].items()}
        parameters = [p for part in optimizer.param_groups for p in part["params"]]
        for name, (shape, dtype) in forms.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/", 2)
                # A number, such as a count of steps, is never divided.
                parameter = parameters[int(index)] if shape else torch.zeros(())
                value = like(shape, dtype, parameter)
                state.setdefault(int(index), {})[key] = targets[name] = value
    with torch.no_grad():
        for name, target in targets.items():
            if name in arrays:
                fill(target, arrays[name])
        if shards["tensors"]:
            with group.together():
                folder = check_shards(path, shards)
            read_shards(folder, {name: targets[name] for name in shards["tensors"]}, group)
    if optimizer is not None:
        now = optimizer.state_dict()["param_groups"]
        groups = _as_before(header["optimizer"]["groups"], now)
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    if scheduler is not None:
        scheduler.load_state_dict(_as_before(header["scheduler"], scheduler.state_dict()))
    for name, generator in (generators or {}).items():
        generator.set_state(arrays[f"generator/{name}"])
    return Resumed(header["step"], header["values"])


def _mismatch(path: Path, before: Any, now: Any) -> CheckpointMismatch:
    lines = ["it was written by an earlier version, which noted no settings"]
    if before is not None:
        lines = differences(before, json.loads(json.dumps(now)))
        lines = lines or ["the code of the trainer"]
        more = len(lines) - SHOWN
        lines = [*lines[:SHOWN], f"and {more} more"] if more > 0 else lines
        if isinstance(before, dict) and before.get("threads") != now.get("threads"):
            count = before.get("threads")
            lines.append(
                f"(torch.set_num_threads({count}) gives as many threads, or OMP_NUM_THREADS={count} in the "
                "environment, which torchrun sets to 1)"
            )
    return CheckpointMismatch(
        f"checkpoint: {path} is of another training:\n  "
        + "\n  ".join(lines)
        + "\ngo on with the settings, data and code that it was made with, or delete it or pass another path "
        "to start anew"
    )


def differences(before: Any, now: Any, owners: tuple[str, str] = ("the checkpoint", "now")) -> list[str]:
    """One line for each field in which two JSON values differ, with its path and the values' owners.

    Examples
    --------
    >>> differences({"seed": 1, "rows": {"labels": "0" * 32}}, {"seed": 2, "rows": {"labels": "1" * 32}})
    ['seed: the checkpoint has 1, now 2', 'rows.labels differ']
    """
    found, wanted = dict(_leaves(before, "")), dict(_leaves(now, ""))
    names = [*wanted, *(name for name in found if name not in wanted)]
    return [
        _line(name, found.get(name, _NOTHING), wanted.get(name, _NOTHING), owners)
        for name in names
        if found.get(name, _NOTHING) != wanted.get(name, _NOTHING)
    ]


_NOTHING = object()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        for i, part in enumerate(value):
            yield from _leaves(part, f"{name}[{i}]")
    else:
        yield name, value


def _line(name: str, before: Any, now: Any, owners: tuple[str, str]) -> str:
    if _is_digest(before) and _is_digest(now):
        return f"{name} differ{'' if name.endswith('s') else 's'}"
    shown = ["nothing" if x is _NOTHING else repr(x) for x in (before, now)]
    one, other = (text if len(text) <= 100 else f"{text[:100]}..." for text in shown)
    return f"{name}: {owners[0]} has {one}, {owners[1]} {other}"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 32 and not set(value) - set("0123456789abcdef")


def _text(header: dict[str, Any]) -> str:
    try:
        return json.dumps(header)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint: the state of the optimiser or of the schedule is no plain data ({error}), which a "
            "checkpoint can't hold; train with checkpoint=None, or choose others"
        ) from error


def _as_before(saved: Any, now: Any) -> Any:
    """Saved plain data in the types of the present object's: JSON made lists of tuples, and strings of keys
    that are numbers."""
    if isinstance(saved, list) and isinstance(now, (list, tuple)):
        kept = [*now, *[None] * (len(saved) - len(now))]
        parts = [_as_before(part, old) for part, old in zip(saved, kept, strict=False)]
        return tuple(parts) if isinstance(now, tuple) else parts
    if isinstance(saved, dict) and isinstance(now, dict):
        names = {str(name): name for name in now}
        made = {}
        for text, part in saved.items():
            name = names.get(text, text)
            made[name] = _as_before(part, now.get(name))
        return Counter(made) if isinstance(now, Counter) else made
    return saved


def _metadata(blob: bytes) -> Any:
    """The strings beside a safetensors file's tensors: the header is JSON, after its length in 8 bytes."""
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length])["__metadata__"]
