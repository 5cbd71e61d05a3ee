"""ONNX files as members, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import Task, check_task
from ensdistill.teachers.members.base import (
    Blob,
    as_classes,
    check_smoothing,
    check_width,
    own_source,
    task_parts,
    write_description,
    wrong_task,
)
from ensdistill.teachers.members.inputs import batches, check_array
from ensdistill.teachers.members.moments import Moments, check_moments, split_moments
from ensdistill.teachers.members.needs import needed
from ensdistill.teachers.members.outputs import Output, Reading, as_logits, check_output
from ensdistill.teachers.members.sigmoids import as_log_odds, of_applying

# Names that exporters (skl2onnx, torch, Hugging Face) give to outputs of a kind.
NAMES: dict[str, Reading] = {
    "logits": "logits",
    "logit": "logits",
    "probabilities": "probabilities",
    "probs": "probabilities",
}
# The bytes before the path of a file of weights: key (field 1, 8 bytes) "location", then its value (field 2).
_LOCATION = b"\n\x08location\x12"
DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
}
DTYPES |= {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxMember:
    """An ONNX file whose first input takes a batch [N, ...] and of which one output is [N, C].

    Parameters
    ----------
    path : path
        The file is read once and kept, so the saved file is the one that predicts. Weights in files beside it
        (external data, as torch.onnx writes them) are read and saved too; finding them needs the package
        onnx.
    name : str, optional
        The file's name by default.
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        The kind of the output; ``auto`` goes by its name (``logits``, ``probabilities``). ``margin`` is one
        column, the logit of the second of two classes. Other tasks' kinds are those of ``TorchMember``;
        of a regression ``auto`` is the mean.
    output_name : str, optional
        The output; by default the one with the name ``logits`` or ``probabilities``, or the only one.
    classes : sequence of str, optional
    smoothing : float
        Added to probabilities before the logarithm.
    batch_size : int
        Rows predicted at once. A file that was exported for a fixed number of rows gets that many; the last
        batch is filled up.
    task : {"classification", "multilabel", "regression"}
        Of ``multilabel`` an output may also have one array [N, 2] for each label, as a list or [C, N, 2].

    Raises
    ------
    ValueError
        No ONNX model that onnxruntime can run, a file of weights is missing, or the output or its kind is
        ambiguous.
    ImportError
        onnxruntime is not installed, or onnx where the weights lie in other files.
    """

    parameters = 0  # onnxruntime does not count them

    def __init__(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        output: Output = "auto",
        output_name: str | None = None,
        classes: Sequence[str] | None = None,
        smoothing: float = 1e-6,
        batch_size: int = 1024,
        task: Task = "classification",
    ) -> None:
        import onnxruntime

        path = Path(path)
        self.name = name or path.stem
        if not path.is_file():
            raise ValueError(f"path: {self.name}: there is no file {str(path)!r}")
        self.task = check_task(task)
        check_output(self.name, output, task)
        self.blob: Blob = path.read_bytes()
        self.files = _external_files(self.name, path, self.blob)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings concern the export
        if self.files:  # by name, because onnxruntime looks for files in the process's own folder
            names, blobs = [*self.files], [*self.files.values()]
            options.add_external_initializers_from_files_in_memory(
                names, blobs, [len(blob) for blob in blobs]
            )
        try:
            self._session = onnxruntime.InferenceSession(
                self.blob, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises many kinds, without the file's name
            raise ValueError(f"path: {path}: onnxruntime can't run it ({error})") from error
        inputs, outputs = self._session.get_inputs(), {o.name: o for o in self._session.get_outputs()}
        if len(inputs) != 1 or inputs[0].type not in DTYPES:
            found = ", ".join(f"{i.name} {i.type}" for i in inputs)
            remedy = "A function can prepare them: CallableMember"
            raise ValueError(f"path: {self.name}: expected one input, of numbers; got {found}. {remedy}")
        self._input, self._dtype = inputs[0].name, DTYPES[inputs[0].type]
        first = inputs[0].shape[0] if inputs[0].shape else None
        self._fixed = first if isinstance(first, int) and first > 0 else None
        named = next((o for o in outputs if o in NAMES), None)
        chosen = output_name or named or (next(iter(outputs)) if len(outputs) == 1 else None)
        if chosen is None or chosen not in outputs:
            raise ValueError(
                f"output_name: {self.name}: expected one of {list(outputs)}; got {output_name!r}"
            )
        if output == "auto" and chosen not in NAMES and task != "regression":
            expected = "expected output='logits' or output='probabilities' for an output of another name"
            raise ValueError(f"output: {self.name}: {expected}; got 'auto' and the name {chosen!r}")
        # skl2onnx writes the outputs of MultiOutputClassifier as a list, with a tensor [N, 2] for each label.
        listed = task == "multilabel" and outputs[chosen].type.startswith("seq(tensor(")
        if not listed and not outputs[chosen].type.startswith("tensor("):
            raise ValueError(
                f"output_name: {self.name}: expected a tensor; {chosen!r} is {outputs[chosen].type}. "
                "skl2onnx writes one "
                "with options={'zipmap': False}"
            )
        # Its decisions [N, C], by which probabilities that are listed by label are checked.
        self._decisions = ["label"] if task == "multilabel" and "label" in outputs else []
        kind: Output = "mean" if task == "regression" else NAMES.get(chosen, "logits")
        self.output_name, self.output = chosen, kind if output == "auto" else output
        self.smoothing, self.batch_size = check_smoothing(smoothing), batch_size
        self.classes = as_classes(self.name, classes)

    @property
    def bytes(self) -> int:
        """Bytes of the file, and of its files of weights."""
        return len(self.blob) + sum(map(len, self.files.values()))

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        """Logits, float32 [N, C], for inputs [N, ...]."""
        if self.task == "regression":
            raise wrong_task(self.name, self.task, "predict_logits")
        outputs, output = self._outputs(inputs), self.output
        if self.task == "multilabel":
            logits = as_log_odds(self.name, outputs, output, self.smoothing)
        else:
            logits = as_logits(self.name, outputs, output, self.smoothing)
        return check_width(self.name, logits, len(inputs), self.classes)

    def predict_moments(self, inputs: np.ndarray) -> Moments:
        """Means and variances, float64 [N, D], of a regressor for inputs [N, ...]."""
        if self.task != "regression":
            raise wrong_task(self.name, self.task, "predict_moments")
        found = split_moments(self.name, self._outputs(inputs), self.output)
        return check_moments(found, self.name, len(inputs), self.classes)

    def _outputs(self, inputs: np.ndarray) -> np.ndarray:
        check_array(self.name, inputs)
        if inputs.dtype.kind != np.dtype(self._dtype).kind:
            raise ValueError(f"inputs: {self.name} expects {np.dtype(self._dtype)}; got {inputs.dtype}")
        return np.concatenate([self._run(x) for x in batches(inputs, self._fixed or self.batch_size)])

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        """The outputs of one batch, without those of rows that fill it up."""
        rows = len(inputs)
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(inputs, self._dtype)
        lost = ~np.isfinite(x) & np.isfinite(inputs) if x.dtype.kind == "f" else x != inputs
        if lost.any():
            raise ValueError(f"inputs: {self.name} expects {x.dtype}, which can't hold {inputs[lost][0]}")
        if self._fixed is not None and rows < self._fixed:
            filling = x[-1:] if rows else np.zeros((1, *x.shape[1:]), x.dtype)
            x = np.concatenate([x, np.repeat(filling, self._fixed - rows, axis=0)])
        try:
            given, *decisions = self._session.run([self.output_name, *self._decisions], {self._input: x})
        except Exception as error:  # onnxruntime raises many kinds
            fixed = (
                "" if self._fixed is None else f" (it was exported for a fixed number of rows, {self._fixed})"
            )
            batch = f"{x.dtype} {list(x.shape)}{fixed}"
            raise ValueError(f"inputs: {self.name}: onnxruntime can't run it on {batch}: {error}") from error
        if self.task == "multilabel" and (isinstance(given, list) or given.ndim == 3):
            given = of_applying(self.name, [*given], None)  # labels come first, as in scikit-learn's lists
            _check_decisions(self.name, given, *decisions)
        outputs = np.asarray(given)
        if outputs.ndim == 0 or len(outputs) != len(x):
            raise ValueError(
                f"batch_size: {self.name}: expected outputs [{len(x)}, C] for {len(x)} rows; got "
                f"{list(outputs.shape)}. A file exported for one row may take batch_size=1"
            )
        return outputs[:rows]

    def fingerprint(self) -> str:
        """Digest of the files, of how the output is read, and of the classes."""
        more = [*([] if self.classes is None else [self.classes]), *own_source(self).values()]
        return digest([self.saved_content(), *more]) if more else self.saved_content()

    def fingerprint_parts(self) -> dict[str, str]:
        """Digests of the fingerprint's parts, by name."""
        weights = {f"weights in {name}": digest(blob) for name, blob in self.files.items()}
        settings = digest([self.output_name, self.output, self.smoothing])
        parts = {"file": digest(self.blob), **weights, "output": settings, "classes": digest(self.classes)}
        return {**parts, **task_parts(self.task), **own_source(self)}

    def saved_content(self) -> str:
        """Digest of the files, and of how the output is read."""
        more: list[Any] = [self.files] if self.files else []
        more += task_parts(self.task).values()
        return digest(["onnx", self.blob, self.output_name, self.output, self.smoothing, *more])

    def save(self, folder: Path | str) -> None:
        """Write the file, its files of weights, and ``member.json``."""
        write_bytes(Path(folder) / "model.onnx", self.blob)
        for name, blob in self.files.items():
            write_bytes(Path(folder) / name, blob)
        more: dict[str, Any] = {"output": self.output, "output_name": self.output_name}
        more["needs"] = needed(["onnxruntime", *(["onnx"] if self.files else [])])
        write_description(folder, self, "onnx", **more, smoothing=self.smoothing, batch_size=self.batch_size)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> OnnxMember:
        """A saved member."""
        options = {key: description[key] for key in ("name", "classes", "output", "output_name")}
        more = {key: description[key] for key in ("smoothing", "batch_size")}
        more["task"] = description.get("task", "classification")
        return cls(folder / "model.onnx", **options, **more)


def _check_decisions(name: str, probabilities: np.ndarray, decisions: np.ndarray | None = None) -> None:
    """Raise ValueError where a file's own decisions [N, C] contradict its probabilities [N, C].

    skl2onnx writes the columns of a label that was always 1 in another order, and a single tree's shares
    wrongly.
    """
    if decisions is None or decisions.shape != probabilities.shape:
        return
    unlike = (probabilities > 0.5) != (decisions > 0)
    if len(labels := np.flatnonzero((unlike & (np.abs(probabilities - 0.5) > 1e-3)).any(0))):
        raise ValueError(
            f"output_name: {name}: its output 'label' contradicts its probabilities of label {labels[0]}; "
            "its converter wrote them wrongly. Pass the fitted estimator itself, or fit it to rows with both "
            "values of each label"
        )


def _external_files(name: str, path: Path, blob: Blob) -> dict[str, Blob]:
    """Files with an ONNX file's weights, by their paths relative to its own folder."""
    if _LOCATION not in blob:
        return {}
    try:
        import onnx
    except ImportError as error:
        remedy = "to find them, pip install onnx"
        raise ImportError(f"path: {name}: {path} has its weights in other files; {remedy}") from error
    try:
        model = onnx.load_model_from_string(blob)
    except Exception as error:  # of protobuf
        raise ValueError(f"path: {path}: is no ONNX file ({error})") from error
    files: dict[str, Blob] = {}
    for location in sorted({location for graph in _graphs(model) for location in _locations(graph)}):
        place = PurePosixPath(location)
        if (
            place.is_absolute()
            or ".." in place.parts
            or "\\" in location
            or location in ("", "model.onnx", "member.json")
        ):
            expected = "expected a file in the same folder"
            raise ValueError(f"path: {path}: its weights are external data in {location!r}; {expected}")
        if not (path.parent / place).is_file():
            raise ValueError(
                f"path: {path}: its external data {location!r}, a file of weights, is not beside it; copy it "
                f"to {path.parent}, or save the model with its weights inside: onnx.save(onnx.load(path), "
                "other_path)"
            )
        files[location] = (path.parent / place).read_bytes()
    return files


def _graphs(model: Any) -> Iterator[Any]:
    """The model's graph and functions, and the graphs within their nodes."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _locations(graph: Any) -> Iterator[str]:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    inner = (t for a in attributes for t in ([a.t] if a.HasField("t") else []) + [*a.tensors])
    tensors = [*getattr(graph, "initializer", []), *inner]
    sparse_inner = (a.sparse_tensor for a in attributes if a.HasField("sparse_tensor"))
    sparse = [*getattr(graph, "sparse_initializer", []), *sparse_inner]
    tensors += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    for tensor in tensors:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
