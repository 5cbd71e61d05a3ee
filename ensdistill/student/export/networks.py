"""Torch modules as parts of a graph, by torch's own exporter."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ensdistill.common.describe import class_path
from ensdistill.student.export.faults import layer_at_fault
from ensdistill.student.export.graph import OTHERWISE
from ensdistill.student.shrink.compact import Compact
from ensdistill.teachers.members import TorchMember
from ensdistill.teachers.members.base import SMOOTHING
from ensdistill.teachers.members.dtypes import floating_type, tables
from ensdistill.teachers.members.heads import MultiHead
from ensdistill.teachers.members.module import is_plain

Example = Tensor | dict[str, Tensor]


class MeanOfEmbeddings(nn.Module):
    """An ``EmbeddingBag`` on ids [N, L], as a plain lookup: the exporter writes a loop over bags."""

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.weight, self.padding, self.mode = bag.weight, bag.padding_idx, bag.mode

    def forward(self, ids: Tensor) -> Tensor:
        rows = nn.functional.embedding(ids, self.weight)
        if self.padding is None:
            return rows.sum(1) if self.mode == "sum" else rows.mean(1)
        there = (ids != self.padding).unsqueeze(2).to(rows.dtype)
        total = (rows * there).sum(1)
        return total if self.mode == "sum" else total / there.sum(1).clamp(min=1)


class WithKnowledge(nn.Module):
    """A network of several heads, whose outputs [N, C + 1] are its logits and, last, the mutual information
    of class and head in nats."""

    def __init__(self, network: MultiHead) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        log_p = torch.log_softmax(self.network.heads(*inputs, **named).float(), -1)
        weights = self.network.weights[:, None]
        mean = torch.logsumexp(log_p + weights.log()[..., None], 0)
        data = (weights * (log_p.exp() * log_p).sum(-1)).sum(0)
        knowledge = (data - (mean.exp() * mean).sum(-1)).clamp(min=0)
        return torch.cat([mean, knowledge[:, None]], 1)


class Logits(nn.Module):
    """A member's logits [N, C], in its own order of classes, of the batch that its preprocess returned; of a
    regressor means and variances side by side, in float64. Of a network with several heads their mutual
    information with the class is one column more, the last.

    Parameters
    ----------
    member : TorchMember
        Has predicted, so that the kind of its outputs is known.
    before : Module, optional
        A module that makes the member's input of the raw samples.
    pixels : bool
        The raw samples are images [N, H, W, C], which ``before`` takes as [N, C, H, W].
    """

    def __init__(self, member: TorchMember, before: nn.Module | None = None, pixels: bool = False) -> None:
        super().__init__()
        self.module = without_bags(member.module)
        self.before, self.pixels = None if before is None else copy.deepcopy(before).cpu(), pixels
        self._call = copy.copy(member)
        self.keeps_heads = isinstance(self.module, MultiHead)
        if isinstance(self.module, MultiHead):
            self.module = WithKnowledge(self.module)
        self._call.module = self.module
        self._reading, self._task = member._reading or "logits", member.task
        self._columns = None if member._columns is None else member._columns.tolist()
        if self._columns is not None and self.keeps_heads:
            self._columns = [*self._columns, len(self._columns)]
        self._dtype, self._ids = floating_type(member.module), bool(tables(member.module))
        self.eval()

    def forward(self, inputs: Any) -> Tensor:
        if self.before is not None:
            x = inputs.permute(0, 3, 1, 2) if self.pixels else inputs
            inputs = self.before(**x) if isinstance(x, dict) else self.before(x)
        fields = {"": inputs} if isinstance(inputs, Tensor) else inputs
        given = {name: self._cast(part, name != "") for name, part in fields.items()}
        outputs = self._call._forward(given if isinstance(inputs, dict) else given[""])
        if self._task == "regression":
            return self._moments(outputs.double())
        outputs = outputs.float()
        if self._task == "multilabel" and self._reading == "probabilities":
            p = outputs.double()
            outputs = (torch.log(p + SMOOTHING) - torch.log1p(SMOOTHING - p)).float()
        elif self._reading == "margin":
            margin = outputs.reshape(len(outputs), 1)
            outputs = torch.cat([-margin / 2, margin / 2], 1)
        elif self._reading == "probabilities":
            if outputs.ndim == 1 or outputs.shape[1] == 1:
                second = outputs.reshape(len(outputs), 1)
                outputs = torch.cat([1 - second, second], 1)
            outputs = torch.log(outputs.double() + SMOOTHING).float()
        return outputs if self._columns is None else outputs[:, self._columns]

    def _moments(self, outputs: Tensor) -> Tensor:
        """Means [N, D] in the data's units, and where there are any the variances after them."""
        outputs = outputs.unsqueeze(1) if outputs.ndim == 1 else outputs
        if self._reading != "mean_and_log_variance":
            return outputs
        mean, log_variance = outputs.chunk(2, dim=1)
        return torch.cat([mean, log_variance.exp()], 1)

    def _cast(self, x: Tensor, named: bool) -> Tensor:
        """In the dtype that the member gives to its module: see `ensdistill.teachers.members.dtypes`."""
        if x.is_floating_point():
            return x.to(self._dtype or torch.float32)
        if self._ids and x.dtype != torch.bool:
            return x.long()
        return x if named else x.to(self._dtype or torch.float32)


def without_bags(module: nn.Module) -> nn.Module:
    """A copy on the CPU in eval mode, whose embedding bags are lookups."""
    copied = copy.deepcopy(module).cpu().eval()

    def replaced(part: nn.Module) -> nn.Module:
        plain = isinstance(part, nn.EmbeddingBag) and part.mode in ("mean", "sum") and part.max_norm is None
        return MeanOfEmbeddings(part) if plain else part  # type: ignore[arg-type]

    for part in list(copied.modules()):
        for name, child in part.named_children():
            setattr(part, name, replaced(child))
    return replaced(copied)


def check_plain(member: Any) -> None:
    """Raise ValueError for a member whose class computes logits by Python code of its own."""
    if not is_plain(member):
        raise ValueError(
            f"student: ONNX can't express {class_path(type(member))}, which overrides TorchMember's "
            "prediction: put its computation into the module's forward"
        )
    if (dtype := floating_type(member.module)) in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"student: expected float32 parameters; got {str(dtype)[6:]}, which onnxruntime can't run on a "
            "CPU: module.float() gives them that dtype"
        )


def exported(module: Logits, example: Example, opset: int) -> onnx.ModelProto:
    """The model of a module, with the output ``logits``; its inputs are the fields, or ``inputs``.

    Parameters
    ----------
    module : Logits
    example : Tensor [N, ...] or dict of these
        Real samples; two at least.
    opset : int

    Raises
    ------
    ImportError
        onnxscript is not installed.
    ValueError
        ONNX can't express one of its layers; names the layer.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "export: a torch module needs onnxscript: pip install 'ensdistill[export]'"
        ) from error
    names = list(example) if isinstance(example, dict) else ["inputs"]
    for part in list(module.modules()):
        if isinstance(part, Compact):
            part.for_onnx()
    try:
        return _export(module, (example,), {}, opset, names=names)
    except Exception as error:  # of many kinds
        found = layer_at_fault(
            module, example, lambda part, call, named, free: _export(part, call, named, opset, free=free)
        )
        reason = _reason(error)
        raise ValueError(
            f"export: ONNX can't express {found} ({reason}): replace it, or {OTHERWISE}"
        ) from error


def _export(
    module: nn.Module,
    inputs: tuple[Any, ...],
    named: Mapping[str, Any],
    opset: int,
    *,
    free: bool = True,
    names: Sequence[str] = (),
) -> onnx.ModelProto:
    """torch's export for the arguments of a call; ``free`` rows are any number of them."""
    shapes = {name: _free_rows(value) for name, value in named.items()} or tuple(map(_free_rows, inputs))
    with _quiet():
        program = torch.onnx.export(
            module,
            inputs if named else (*inputs, {}),  # a mapping at the end would be keyword arguments
            kwargs=dict(named) or None,
            dynamo=True,
            dynamic_shapes=shapes if free and not (inputs and named) else None,
            input_names=list(names) or None,
            output_names=["logits"] if names else None,
            opset_version=opset,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch returned no program")
        return program.model_proto


def _free_rows(value: Any) -> Any:
    """The dynamic shapes of an argument: the first axis of each tensor."""
    if isinstance(value, Tensor):
        return {0: torch.export.Dim.DYNAMIC} if value.ndim else {}
    if isinstance(value, Mapping):
        return {name: _free_rows(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_free_rows(part) for part in value)
    return None


def _reason(error: BaseException) -> str:
    """The sentence of torch's message that names the cause; the messages are pages long."""
    while error.__cause__ is not None and error.__cause__ is not error:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "No ONNX function found" in line or "not support" in line), None)
    return (told or (lines[0] if lines else type(error).__name__))[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's reports of its progress and of packages that it does not need."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def example_of(batch: Any) -> Example:
    """Two samples or more as tensors: with one alone the exporter would fix the number of rows."""
    if isinstance(batch, Mapping):
        return {name: one for name, part in batch.items() if isinstance(one := example_of(part), Tensor)}
    tensor = batch if isinstance(batch, Tensor) else torch.from_numpy(np.array(batch))
    return tensor if len(tensor) > 1 else torch.cat([tensor, tensor])
