"""Members' logits, checked and in the ensemble's class order: in main memory, or left on the device where
they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.common.errors import is_out_of_memory
from ensdistill.common.tasks import task_of
from ensdistill.data import BadRows
from ensdistill.data.samples import as_samples, in_memory, stream, whole
from ensdistill.data.samples import positions as among
from ensdistill.teachers.members import Member, TorchMember
from ensdistill.teachers.members.base import Logits, arranged, positions
from ensdistill.teachers.members.inputs import advice, as_batch, count, lazy, read
from ensdistill.teachers.members.module import is_plain
from ensdistill.teachers.members.moments import Moments, check_moments, moments_of
from ensdistill.teachers.members.preprocessed import Preprocessed, inner, rows_for
from ensdistill.teachers.validation import check_logits

READ = 1024  # lazy samples in memory at once


def over_parts(inputs: Any, predict: Callable[[Any], Logits], axis: int = 0) -> Logits:
    """The results of ``predict`` for a batch, or for samples that are read batch by batch, joined along
    ``axis``.

    Raises
    ------
    ValueError
        There is no sample.
    """
    samples = lazy(inputs)
    if samples is None:
        return predict(as_batch(inputs))
    found: list[Logits] = []
    for part, batch in read(samples, READ):
        try:
            found.append(predict(batch))
        except BadRows as error:
            raise BadRows(
                f"{error}; rows are counted from sample {part[0]}", error.rows + int(part[0])
            ) from error
    joined: Any = torch.cat(found, axis) if isinstance(found[0], Tensor) else np.concatenate(found, axis)
    return joined


def outputs_of(member: Member, samples: Any) -> Any:
    """A member's logits [N, C], or the Moments [N, D] of a regressor, for samples of any kind; lazy ones are
    read batch by batch."""
    samples = as_samples(samples)
    parts = [whole(samples)] if in_memory(samples) else stream(samples, among(len(samples), READ))
    if task_of(member) == "regression":
        found = [moments_of(member, rows_for(member, part)) for part in parts]
        mean = np.concatenate([one.mean for one in found])
        variances = [one.variance for one in found if one.variance is not None]
        return Moments(mean, np.concatenate(variances) if variances else None)
    return np.concatenate([member.predict_logits(rows_for(member, part)) for part in parts])


def device_of(members: Sequence[Member]) -> torch.device:
    """Where the first torch member that predicts on a GPU does so; the CPU where there is none. Others than
    CUDA's know no float64."""
    found = (one.predicts_on for one in map(inner, members) if isinstance(one, TorchMember))
    return next((device for device in found if device.type == "cuda"), torch.device("cpu"))


def answer(
    member: Member,
    inputs: Any,
    classes: Sequence[str] | None,
    given: np.ndarray | None = None,
    made: dict[int, Any] | None = None,
) -> np.ndarray:
    """float32 [N, C]; ``given`` are the member's logits, where they are there already. ``made`` keeps what
    preprocessing made of these inputs.

    Raises
    ------
    ValueError
        It returns another number of classes, NaN, +inf, or rules out every class of a row; names the member
        and the rows.
    """
    rows = count(inputs)
    with named(member.name, rows):
        logits = _predicted(member, inputs, made) if given is None else given
    return _ordered(logits, member, rows, classes)


def _predicted(member: Member, inputs: Any, made: dict[int, Any] | None) -> np.ndarray:
    if type(member) is Preprocessed:
        return member.member.predict_logits(member.prepared(inputs, made))
    return member.predict_logits(rows_for(member, inputs))


def answer_moments(member: Member, inputs: Any, names: Sequence[str] | None, made: dict[int, Any]) -> Moments:
    """The means and variances of a regressor, checked and in the order of ``names``: float64 [N, D].

    Raises
    ------
    ValueError
        It returns another number of columns, NaN, infinity or a negative variance; names the member and the
        rows.
    """
    rows = count(inputs)
    with named(member.name, rows):
        if type(member) is Preprocessed:
            found = moments_of(member.member, member.prepared(inputs, made))
        else:
            found = moments_of(member, rows_for(member, inputs))
    check_moments(found, member.name, rows, names if member.classes is None else member.classes)
    if member.classes is None or names is None or (order := positions(member.classes, names)) is None:
        return found
    mean, variance = found
    return Moments(mean[:, order], None if variance is None else variance[:, order])


def predicted(member: Member, inputs: Any, names: Sequence[str]) -> np.ndarray:
    """A member's predictions as one array: logits, float32 [N, C]; of a regressor means and variances,
    float64 [N, 2, D], with NaN for variances that it does not give. Errors are those of :func:`answer`."""
    if task_of(member) != "regression":
        return np.asarray(answer(member, inputs, names), np.float32)
    mean, variance = answer_moments(member, inputs, names, {})
    return np.stack([mean, np.full_like(mean, np.nan) if variance is None else variance], axis=1)


def answer_on(device: torch.device, member: Member, inputs: Any, classes: Sequence[str] | None) -> Tensor:
    """The same as a tensor on ``device``; logits of a torch member there are not copied."""
    own, rows = inner(member), count(inputs)
    if not is_plain(own) or own.predicts_on != device:
        return torch.from_numpy(np.array(np.asarray(answer(member, inputs, classes)), np.float32)).to(device)
    with named(member.name, rows):
        batch = member.prepared(inputs) if isinstance(member, Preprocessed) else rows_for(member, inputs)
        logits = own.predict_tensor(batch)
    return _ordered(logits, member, rows, classes)


def check_same_classes(members: Sequence[Member], logits: Sequence[Logits]) -> None:
    """Raise ValueError for a member that has another number of classes than the first."""
    for member, z in zip(members, logits, strict=True):
        if z.shape != logits[0].shape:
            raise ValueError(
                f"members: {member.name} has {z.shape[1]} classes, {members[0].name} has {logits[0].shape[1]}"
            )


def _ordered(logits: Logits, member: Member, rows: int, classes: Sequence[str] | None) -> Logits:
    own = classes if member.classes is None else member.classes
    check_logits(logits, member.name, rows, own, task_of(member))
    return (
        logits
        if member.classes is None or classes is None
        else arranged(logits, positions(member.classes, classes))
    )


@contextmanager
def named(name: str, rows: int) -> Iterator[None]:
    """Errors get the member's name."""
    try:
        yield
    except BadRows as error:
        raise BadRows(f"{name}: {error}", error.rows) from error
    except Exception as error:
        if is_out_of_memory(error) and not str(error).startswith(f"{name}: "):
            raise MemoryError(
                f"{name}: out of memory with {rows} rows ({error}); give it fewer at once"
            ) from error
        remedy = advice(error, None) if isinstance(error, Exception) else ""
        more = "" if remedy in str(error) else remedy
        error.add_note(f"(while {name} predicted {rows} rows){more}")
        raise


def apply_scales(vectors: np.ndarray | None, raw: Logits, temperatures: np.ndarray) -> Logits:
    """Raw logits [K, N, C] with the members' vectors [2, K, C] and temperatures [K], on their device."""

    def here(values: np.ndarray) -> Any:
        return torch.from_numpy(values).to(raw.device) if isinstance(raw, Tensor) else values

    if vectors is not None:
        scale, bias = here(vectors)
        raw = raw * scale[:, None] + bias[:, None]
    return raw / here(temperatures)[:, None, None]
