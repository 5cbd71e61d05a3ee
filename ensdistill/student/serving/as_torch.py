"""A student as a program of ``torch.export``, with its preprocess and description in one ``.pt2`` file."""

from __future__ import annotations

import base64
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.files import atomic_path
from ensdistill.common.tasks import Task
from ensdistill.data.samples import as_samples, whole
from ensdistill.student.export.exporting import outputs_of
from ensdistill.student.export.networks import Logits
from ensdistill.student.serving.base import sigmoid, softmax
from ensdistill.student.serving.student import Student, description
from ensdistill.teachers.members import Preprocessed, TorchMember
from ensdistill.teachers.members.preprocessed import rows_for

CONTENT = "ensdistill.json"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class TorchExported:
    """The result of :func:`to_torch`.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        From the preprocessed batch (its first axis is free) to logits [N, C], divided by the temperature. Of
        a regression to means [N, D] in the data's units, or to [N, 2 D], with the calibrated variances.
    largest_difference : float
        The largest absolute difference of a probability from the student's own, on the given rows; of a
        regression see :class:`ensdistill.student.export.Exported`.
    rows : int
        These rows.
    content : dict
        The student's description, and the files of its preprocess.
    """

    program: Any
    largest_difference: float
    rows: int
    content: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path | str) -> list[Path]:
        """Write the ``.pt2`` file; returns its path."""
        with atomic_path(path) as part:
            # torch refuses a file that does not end in .pt2.
            whole_file = part.with_suffix(".pt2")
            torch.export.save(self.program, whole_file, extra_files={CONTENT: json.dumps(self.content)})
            whole_file.replace(part)
        return [Path(path)]


class Scaled(nn.Module):
    """Logits divided by a temperature; or means, and variances that are calibrated."""

    noise: Tensor

    def __init__(self, logits: Logits, student: Student) -> None:
        super().__init__()
        self.logits, self.scaling, self.count = logits, student.scaling, len(student.classes)
        self.regression = student.task == "regression"
        noise = [] if student.scaling.noise is None else student.scaling.noise
        self.register_buffer("noise", torch.tensor(noise, dtype=torch.float64))

    def forward(self, inputs: Any) -> Tensor:
        outputs: Tensor = self.logits(inputs)
        if not self.regression:
            return outputs / self.scaling.temperature
        mean, variance = outputs[:, : self.count], outputs[:, self.count :]
        if outputs.shape[1] > self.count:
            return torch.cat([mean, variance * self.scaling.variance_factor], 1)
        if self.scaling.noise is None:
            return mean
        return torch.cat([mean, torch.zeros_like(mean) + self.noise], 1)


def to_torch(student: Student, samples: Any) -> TorchExported:
    """A student's network as a program that torch alone runs; its preprocess travels beside it.

    Parameters
    ----------
    student : Student
        Of a torch module.
    samples : frame, array, list of texts or images, or mapping
        Real rows, two at least, by which the program is traced and compared with the student.

    Raises
    ------
    ValueError
        The student is no torch module, torch can't trace it, or the program's probabilities differ by more
        than 1e-4.
    """
    batch = whole(as_samples(samples, "samples"))
    member: Any = student.member
    own = member.member if isinstance(member, Preprocessed) else member
    if not isinstance(own, TorchMember):
        raise ValueError(
            f"student: torch.export takes a torch module; the student is a {type(own).__name__}: export with "
            "--to safetensors, which keeps its own format"
        )
    expected, unit = outputs_of(student, batch)  # also shows how the module's outputs are to be read
    prepared = member.prepared(batch) if isinstance(member, Preprocessed) else rows_for(member, batch)
    tensors = as_tensors(prepared)
    rows = torch.export.Dim("rows", min=1)
    few = _map(tensors, lambda part: part[:2])
    shapes: Any = {name: {0: rows} for name in tensors} if isinstance(tensors, dict) else {0: rows}
    module = Scaled(Logits(own), student).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(module, (few,), dynamic_shapes=(shapes,))
    except Exception as error:  # torch raises many kinds
        raise ValueError(
            f"student: torch.export can't trace {type(own.module).__name__} ({str(error).splitlines()[0]}): "
            "export with --to safetensors, which keeps the module as it is"
        ) from error
    difference = _difference(program, tensors, expected, unit, student.task)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"export: the program's predictions differ from the student's by {difference:.2g}, beyond "
            f"{TOLERANCE:g}: export with --to safetensors"
        )
    content = {
        "student": description(student),
        "dtypes": _map(few, lambda part: str(part.dtype).removeprefix("torch.")),
        "preprocess": files_of(member.preprocess) if isinstance(member, Preprocessed) else None,
    }
    return TorchExported(program, difference, len(expected), content)


def files_of(preprocess: Any) -> dict[str, str]:
    """The files of a saved preprocess, in base64, by name."""
    with tempfile.TemporaryDirectory() as folder:
        preprocess.save(Path(folder))
        return {
            str(file.relative_to(folder)): base64.b64encode(file.read_bytes()).decode()
            for file in sorted(Path(folder).rglob("*"))
            if file.is_file()
        }


def as_tensors(batch: Any) -> Any:
    """A preprocessed batch as a tensor, or a dict of these."""
    if isinstance(batch, dict):
        return {name: as_tensors(part) for name, part in batch.items()}
    return batch if isinstance(batch, Tensor) else torch.from_numpy(np.array(batch))


def _map(tensors: Any, change: Any) -> Any:
    if isinstance(tensors, dict):
        return {name: change(part) for name, part in tensors.items()}
    return change(tensors)


def _difference(program: Any, tensors: Any, expected: np.ndarray, unit: Any, task: Task) -> float:
    """Of all rows at once, and of one row by itself."""
    read: Any = {"classification": softmax, "multilabel": sigmoid, "regression": np.asarray}[task]
    run = program.module()
    differences = []
    for part in (slice(None), slice(0, 1)):
        with torch.no_grad():
            logits = run(_map(tensors, lambda values, part=part: values[part])).numpy()
        differences.append((np.abs(read(logits) - expected[part]) / unit).max())
    return float(max(differences))
