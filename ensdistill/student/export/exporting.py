"""A student as one ONNX graph, from raw inputs to probabilities and labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto

import ensdistill
from ensdistill.common.files import write_bytes
from ensdistill.common.tasks import Task
from ensdistill.data.samples import as_samples, form, whole
from ensdistill.student.export import networks, several
from ensdistill.student.export.estimators import logits as logits_of_estimator
from ensdistill.student.export.estimators import numbers as numbers_of_estimator
from ensdistill.student.export.graph import (
    DOUBLE,
    FLOAT,
    INT64,
    NEWEST_OPSET,
    OF_ESTIMATORS,
    OPSET,
    OTHERWISE,
    Graph,
)
from ensdistill.student.export.inputs import Prepared, prepare
from ensdistill.student.export.parity import compared
from ensdistill.student.export.running import FORMATS, MOMENTS, OUTPUTS
from ensdistill.student.shrink.compact import has_codes
from ensdistill.teachers.fitting.scaling import Scaling
from ensdistill.teachers.members import (
    ColumnsMember,
    Member,
    Moments,
    Preprocessed,
    SklearnMember,
    TorchMember,
    inner,
)
from ensdistill.teachers.members.base import SMOOTHING, align
from ensdistill.teachers.members.boosted import BoostedMember
from ensdistill.teachers.members.moments import MEAN_AND
from ensdistill.teachers.members.preprocessed import rows_for

KEY, KNOWLEDGE = "ensdistill", "knowledge"
TOLERANCE = 1e-4
# A runtime that computes in eight bits rounds each layer's outputs for the next one, ties among them.
CODED = 0.05
LARGEST = 2_000_000_000


class Exportable(Protocol):
    """A student for serving; see :class:`ensdistill.student.serving.Student`."""

    member: Member
    classes: tuple[str, ...]
    labels: tuple[Any, ...]
    samples: dict[str, Any]
    about: dict[str, Any]
    task: Task
    scaling: Scaling

    @property
    def temperature(self) -> float: ...
    @property
    def cuts(self) -> np.ndarray: ...
    def predict_proba(self, samples: Any) -> np.ndarray: ...
    def predict_distribution(self, samples: Any) -> Moments: ...
    def settings(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Exported:
    """The result of :func:`to_onnx`.

    Parameters
    ----------
    model : ModelProto
    largest_difference : float
        The largest absolute difference of a probability from the student's own, on the given rows. Of a
        regression that of a mean in units of the means' deviation, or of a variance in units of their mean.
    rows : int
        These rows.
    int8 : ModelProto or None
        The model with weights of eight bits.
    int8_difference : float or None
        The largest absolute difference of its probabilities.
    files : dict of str to bytes
        Files that have to stand beside the model's, such as a tokenizer's.
    """

    model: onnx.ModelProto
    largest_difference: float
    rows: int
    int8: onnx.ModelProto | None = None
    int8_difference: float | None = None
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the model's file."""
        return self.model.ByteSize()

    @property
    def opset(self) -> int:
        """The opset of ONNX's own operators."""
        return next(int(entry.version) for entry in self.model.opset_import if entry.domain == "")

    def save(self, path: Path | str) -> list[Path]:
        """Write ``path``, the int8 model as ``<stem>.int8.onnx``, and the other files; returns all paths."""
        path = Path(path)
        blobs = {path: self.model.SerializeToString()}
        if self.int8 is not None:
            blobs[path.with_name(f"{path.stem}.int8.onnx")] = self.int8.SerializeToString()
        blobs |= {path.parent / name: blob for name, blob in self.files.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, blob in blobs.items():
            write_bytes(place, blob)
        return list(blobs)


def to_onnx(student: Exportable, samples: Any, *, int8: bool = False, opset: int | None = None) -> Exported:
    """A student as one graph: raw inputs, preprocessing, model, temperature, probabilities and labels.

    The outputs are ``probabilities``, float32 [N, C], and ``label``, int64 or string [N]. Labels that are
    integers, booleans (0 and 1) or whole floats are int64, all others are texts. Any number of rows can be
    predicted at once. A row that the preprocess refuses (an infinite number, say) has probabilities NaN.

    A student with a head for each member (``method: hydra``) has a third output ``knowledge``, float32 [N]:
    the mutual information of class and head in nats, large where the members differed.

    Of several labels the outputs are ``probabilities`` and ``labels``, int64 [N, C], 1 for those at their
    thresholds; of a regression ``mean`` and, where the student has one, ``variance``, float64 [N, D].

    Parameters
    ----------
    student : Student
    samples : frame, array, list of texts or images, or mapping
        Real rows, as the student was trained on. Their form decides the inputs; the graph's probabilities of
        these rows are compared with the student's own.
    int8 : bool
        Also make a model whose weights have eight bits.
    opset : int, optional
        From 18, the default, to 21.

    Raises
    ------
    ValueError
        ONNX can't express a part of the student (names it), or the graph's probabilities differ by more than
        1e-4; by more than 0.05 for a student that was trained with inputs of eight bits.
    ImportError
        onnxruntime, onnxscript or skl2onnx is not installed.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from ensdistill.student.serving import Student
    >>> from ensdistill.teachers.members import SklearnMember
    >>> x, y = np.array([[0.0], [1.0], [2.0]]), np.array([0, 0, 1])
    >>> member = SklearnMember(LogisticRegression().fit(x, y))
    >>> exported = to_onnx(Student(member, ("0", "1"), (0, 1), form(x)), x)
    >>> exported.largest_difference < 1e-6, [output.name for output in exported.model.graph.output]
    (True, ['label', 'probabilities'])
    """
    opset = OPSET if opset is None else opset
    if not OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(f"opset: expected {OPSET} to {NEWEST_OPSET}; got {opset}")
    batch = whole(as_samples(samples, "samples"))
    member: Any = student.member
    preprocess: Any = None
    if isinstance(member, Preprocessed):
        member, preprocess = member.member, member.preprocess
    if isinstance(member, BoostedMember):
        raise ValueError(
            f"student: {type(member).__name__} {member.name} keeps its own format, XGBoost's, LightGBM's or "
            f"CatBoost's: {OF_ESTIMATORS}"
        )
    if member.bytes > LARGEST:
        raise ValueError(
            f"student: expected at most {LARGEST:,} bytes of parameters, which one ONNX file can hold; got "
            f"{member.bytes:,}: {OTHERWISE}"
        )
    expected, unit = outputs_of(student, batch)  # also shows how the module's outputs are to be read
    described = student.samples if student.samples["kind"] == "table" else form(as_samples(batch))
    graph, knowledge = Graph(opset, (*OUTPUTS.get(student.task, MOMENTS), KNOWLEDGE)), ""
    if isinstance(member, TorchMember):
        prepared, logits, knowledge = _of_module(graph, student, member, preprocess, batch, described)
    elif isinstance(member, SklearnMember | ColumnsMember):
        prepared = prepare(graph, preprocess, batch, described)
        if prepared.values is None:
            kind = type(getattr(member, "estimator", member)).__name__
            raise ValueError(
                f"student: {kind} takes samples that ONNX can't express "
                f"({prepared.about['kind']}); export a student that takes a table or an array"
            )
        if isinstance(member, ColumnsMember):
            logits = several.columns(graph, member, prepared.values)
        elif student.task == "regression":
            logits = numbers_of_estimator(graph, member, prepared.values)
        elif student.task == "multilabel":
            logits = several.log_odds(graph, member, prepared.values)
        else:
            logits = logits_of_estimator(graph, member, prepared.values)
            logits = _arranged(graph, logits, member._columns, member.smoothing)
        logits = logits if student.task == "regression" else graph.cast(logits, FLOAT)
    else:
        raise ValueError(
            f"student: ONNX can't express {type(member).__name__}, which is Python code: only torch "
            "modules and estimators of scikit-learn"
        )
    if student.task == "regression":
        _check_order(member, student)
    elif member.classes is not None:
        logits = _arranged(graph, logits, align("student", member.classes, student.classes)[1], SMOOTHING)
    model = _finished(graph, logits, prepared, student, knowledge)
    tolerance = CODED if isinstance(member, TorchMember) and has_codes(member.module) else TOLERANCE
    difference = compared(model, batch, expected, prepared.files, tolerance, unit)
    small: dict[str, Any] = {}
    if int8:
        from ensdistill.student.export.quantised import quantised

        made = quantised(model, batch, expected, prepared.files, unit)
        small = {"int8": made, "int8_difference": compared(made, batch, expected, prepared.files, None, unit)}
    return Exported(model, difference, len(expected), files=prepared.files, **small)


def outputs_of(student: Exportable, batch: Any) -> tuple[np.ndarray, np.ndarray | float]:
    """The student's probabilities [N, C]; of a regression means and variances side by side, and the units of
    their differences: the means' deviation, and the mean variance."""
    if student.task != "regression":
        return student.predict_proba(batch), 1.0
    mean, variance = student.predict_distribution(batch)
    spread = mean.std(0)
    spread = np.where(spread > 0, spread, np.maximum(np.abs(mean).max(0), 1.0))
    if variance is None:
        return mean, spread
    width = np.maximum(variance.mean(0), np.finfo(np.float32).tiny)
    return np.concatenate([mean, variance], 1), np.concatenate([spread, width])


def _check_order(member: Any, student: Exportable) -> None:
    """Raise ValueError for a regressor whose numbers stand in another order than the student's."""
    if member.classes is not None and tuple(member.classes) != student.classes:
        raise ValueError(
            f"student: expected a member with the numbers {list(student.classes)} in this order; it has "
            f"{list(member.classes)}"
        )


def _of_module(
    graph: Graph,
    student: Exportable,
    member: TorchMember,
    preprocess: Any,
    batch: Any,
    described: Mapping[str, Any],
) -> tuple[Prepared, str, str]:
    networks.check_plain(member)
    prepared = prepare(graph, preprocess, batch, described)
    module = networks.Logits(member, prepared.before, prepared.pixels)
    few = as_samples(batch)[slice(2)]
    if prepared.pixels:
        given: Any = np.stack([np.asarray(i)[:, :, None] if np.ndim(i) == 2 else np.asarray(i) for i in few])
    elif prepared.before is not None:
        given = few
    else:
        own = student.member
        given = own.prepared(few) if isinstance(own, Preprocessed) else rows_for(member, few)
    if prepared.before is None and not prepared.tensors:
        raise ValueError(
            "preprocess: expected one that makes numbers of a table; the student has none, and its "
            "module takes no columns"
        )
    part = networks.exported(module, networks.example_of(given), graph.opset)
    tensors = dict(prepared.tensors)
    if prepared.before is None:
        for value in part.graph.input:
            wanted = value.type.tensor_type.elem_type
            if value.name in tensors:
                tensors[value.name] = graph.cast(tensors[value.name], wanted)
    used = {value.name for value in part.graph.input}
    outputs = graph.append(part, {name: tensors[name] for name in used})[0]
    if not module.keeps_heads:
        return prepared, outputs, ""
    count = len(student.classes)
    logits = graph.op("Gather", outputs, graph.constant(np.arange(count)), axis=1)
    knowledge = graph.op("Gather", outputs, graph.constant([count]), axis=1)
    return prepared, logits, graph.op("Squeeze", knowledge, graph.constant([1]))


def _arranged(graph: Graph, logits: str, columns: np.ndarray | None, smoothing: float) -> str:
    """See :func:`ensdistill.teachers.members.base.arranged`: -1 is a class that the model never saw."""
    if columns is None:
        return logits
    picked = graph.op("Gather", logits, graph.constant(np.maximum(columns, 0)), axis=1)
    if (columns >= 0).all():
        return picked
    total = graph.op("ReduceLogSumExp", logits, graph.constant([1]), keepdims=1)
    shift = graph.op("CastLike", graph.constant(np.float64(np.log(smoothing))), logits)
    unseen = graph.op("Add", total, shift)
    return graph.op("Where", graph.constant((columns < 0)[None]), unseen, picked)


def _finished(
    graph: Graph, logits: str, prepared: Prepared, student: Exportable, knowledge: str
) -> onnx.ModelProto:
    """The task's outputs, and metadata for the program that feeds the graph."""
    made = {"classification": _classes, "multilabel": _labels, "regression": _numbers}[student.task]
    outputs = made(graph, logits, prepared, student)
    if knowledge:
        outputs[KNOWLEDGE] = (knowledge, FLOAT, [])
    model = graph.model(outputs)
    about = {"format": FORMATS[student.task], "version": ensdistill.__version__}
    about |= {"classes": list(student.classes), "labels": list(student.labels), **prepared.about}
    about |= {"temperature": student.temperature, "samples": student.samples, "about": student.about}
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(about | student.settings(), ensure_ascii=False)
    return model


Outputs = dict[str, tuple[str, int, Sequence[int]]]
"""By name the tensor, its type, and its shape without the batch."""


def _probabilities(kind: str, graph: Graph, logits: str, prepared: Prepared, student: Exportable) -> str:
    """The softmax or the sigmoids of logits that are divided by the temperature."""
    if student.temperature != 1:
        logits = graph.op("Div", logits, graph.constant(np.float32(student.temperature)))
    probabilities = graph.op(kind, logits, axis=1) if kind == "Softmax" else graph.op(kind, logits)
    return probabilities if prepared.refused is None else graph.op("Add", probabilities, prepared.refused)


def _labels(graph: Graph, logits: str, prepared: Prepared, student: Exportable) -> Outputs:
    probabilities = _probabilities("Sigmoid", graph, logits, prepared, student)
    cuts = graph.constant(student.cuts.astype(np.float32)[None])
    present = graph.cast(graph.op("GreaterOrEqual", probabilities, cuts), INT64)
    count = [len(student.classes)]
    return {"labels": (present, INT64, count), "probabilities": (probabilities, FLOAT, count)}


def _numbers(graph: Graph, moments: str, prepared: Prepared, student: Exportable) -> Outputs:
    """Means, and variances by the model's own or by the fitted noise."""
    count, scaling = len(student.classes), student.scaling
    columns = graph.constant(np.arange(count))
    mean = graph.op("Gather", moments, columns, axis=1)
    if prepared.refused is not None:
        mean = graph.op("Add", mean, graph.cast(prepared.refused, DOUBLE))
    outputs: Outputs = {"mean": (mean, DOUBLE, [count])}
    if _has_variances(student):
        variance = graph.op("Gather", moments, graph.constant(count + np.arange(count)), axis=1)
        factor = graph.constant(np.float64(scaling.variance_factor))
        outputs["variance"] = (graph.op("Mul", variance, factor), DOUBLE, [count])
    elif scaling.noise is not None:
        # A constant of as many rows; a row that is refused has a mean of NaN.
        zero = graph.op("Mul", mean, graph.constant(np.float64(0)))
        noise = graph.constant(np.array(scaling.noise, np.float64)[None])
        outputs["variance"] = (graph.op("Add", zero, noise), DOUBLE, [count])
    return outputs


def _has_variances(student: Exportable) -> bool:
    return getattr(inner(student.member), "output", "mean") in MEAN_AND


def _classes(graph: Graph, logits: str, prepared: Prepared, student: Exportable) -> Outputs:
    probabilities = _probabilities("Softmax", graph, logits, prepared, student)
    names, kind = labels_of(student.labels)
    best = graph.op("ArgMax", logits, axis=1, keepdims=0)
    label = graph.op("Gather", graph.constant(names, np.int64 if kind == INT64 else object), best, axis=0)
    return {
        "label": (label, kind, []),
        "probabilities": (probabilities, FLOAT, [len(student.classes)]),
    }


def labels_of(labels: Sequence[Any]) -> tuple[list[Any], int]:
    """The labels as the graph has them, and their type: int64, or texts.

    Examples
    --------
    >>> labels_of([False, True])[0], labels_of([1.0, 2.0])[0], labels_of([0.5, 1])[0]
    ([0, 1], [1, 2], ['0.5', '1'])
    """
    whole_numbers = all(
        isinstance(label, (bool, int, float)) and float(label).is_integer() and abs(int(label)) < 2**63
        for label in labels
    )
    if whole_numbers:
        return [int(label) for label in labels], INT64
    return [str(label) for label in labels], TensorProto.STRING
