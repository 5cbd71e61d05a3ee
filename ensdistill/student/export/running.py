"""A student's ONNX file run by onnxruntime. This module and its imports load no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.data import BadRows
from ensdistill.data.batches.tables import is_gap

FORMATS = {"classification": 1, "multilabel": 2, "regression": 2}  # earlier versions read 1 alone
FORMAT = max(FORMATS.values())
OUTPUTS = {"classification": ("label", "probabilities"), "multilabel": ("labels", "probabilities")}
MOMENTS = ("mean", "variance")  # of a regression; the second where the student has one
KEY = "ensdistill"
BATCH = 8192


class OnnxStudent:
    """A file that :func:`ensdistill.student.export.to_onnx` made.

    Parameters
    ----------
    source : path or bytes
        The file, or its content.
    files : dict of str to bytes, optional
        Files that stand beside it, such as ``tokenizer.json``; of a path they are read from its folder.
    threads : int
        Threads of onnxruntime; its own choice where 0.

    Raises
    ------
    ValueError
        No such file, no ONNX file, or one that ensdistill did not write or a newer version wrote.
    ImportError
        onnxruntime is not installed.
    """

    def __init__(
        self, source: Path | str | bytes, files: Mapping[str, bytes] | None = None, *, threads: int = 0
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("onnx: a student's file needs onnxruntime: pip install onnxruntime") from error
        name = "the model" if isinstance(source, bytes) else str(source)
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise ValueError(f"path: there is no file {name!r}")
        blob = source if isinstance(source, bytes) else Path(source).read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings concern the export
        try:
            self._session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds, without the file's name
            raise ValueError(f"path: {name}: onnxruntime can't run it ({error})") from error
        about = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if about is None:
            raise ValueError(
                f"path: {name}: expected a student that ensdistill exported; its metadata has no {KEY!r}. "
                "Other ONNX files are members: ensdistill.OnnxMember(path)"
            )
        self.about: dict[str, Any] = json.loads(about)
        if self.about["format"] > FORMAT:
            raise ValueError(
                f"path: {name} was written by ensdistill {self.about['version']} (format "
                f"{self.about['format']}); this version reads format {FORMAT}: pip install --upgrade "
                "ensdistill"
            )
        self.classes, self.task = tuple(self.about["classes"]), self.about.get("task", "classification")
        own = {output.name for output in self._session.get_outputs()}
        self.outputs = OUTPUTS.get(self.task, tuple(name for name in MOMENTS if name in own))
        self.bytes = len(blob)
        folder = None if isinstance(source, bytes) else Path(source).parent
        self.tensors = feed_of(self.about, files, folder)

    def run(self, samples: Any) -> tuple[Any, Any]:
        """Labels [N] as the data had them, and probabilities float32 [N, C].

        Of several labels int64 [N, C], 1 for those at their thresholds, and the probability of each. Of a
        regression means, float64 [N, D], and variances, or None where the file has none.

        Raises
        ------
        ValueError
            Samples unlike those of the training, or a row that the student's preprocess refuses.
        """
        if _count(samples) == 0:
            empty = np.zeros((0, len(self.classes)), np.float32)
            if self.task == "classification":
                return np.array(self.about["labels"])[:0], empty
            return (
                (empty.astype(np.int64), empty) if self.task == "multilabel" else (empty.astype(float), None)
            )
        if self.about["kind"] == "images":
            found = self._of_images(samples)
        else:
            found = self._in_parts(self.tensors(samples))
        wrong = np.flatnonzero(np.isnan(found[-1]).any(1))
        if len(wrong):
            raise BadRows(
                f"samples: the student's preprocess refuses row {wrong[0]} ({len(wrong)} such rows): it has "
                "an infinite number, a gap in a column whose gaps are not filled, or a category that was "
                "never seen",
                wrong,
            )
        if self.task == "regression":
            return found[0], found[1] if len(found) > 1 else None
        return (self._own(found[0]) if self.task == "classification" else found[0]), found[1]

    def _of_images(self, samples: Any) -> tuple[np.ndarray, ...]:
        """Images of one size together."""
        arrays = [np.asarray(image) for image in samples]
        shapes = [array.shape for array in arrays]
        found = []
        order = [[i for i, own in enumerate(shapes) if own == shape] for shape in dict.fromkeys(shapes)]
        for places in order:
            try:
                found.append(self._in_parts(self.tensors([arrays[i] for i in places])))
            except ValueError as error:
                error.add_note(f"(images {places[:5]})")
                raise
        back = np.argsort(np.concatenate([np.array(places) for places in order]), kind="stable")
        return tuple(np.concatenate(parts)[back] for parts in zip(*found, strict=True))

    def _in_parts(self, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        count = len(next(iter(tensors.values())))
        parts = [self.call({n: x[i : i + BATCH] for n, x in tensors.items()}) for i in range(0, count, BATCH)]
        return tuple(np.concatenate(one) for one in zip(*parts, strict=True))

    def alike(self, samples: Any) -> Any:
        """The samples that make one batch: of images those of the first one's size."""
        if self.about["kind"] != "images":
            return samples
        shapes = [np.asarray(image).shape for image in samples]
        return [image for image, shape in zip(samples, shapes, strict=True) if shape == shapes[0]]

    def call(self, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The graph's own outputs for its inputs: labels and probabilities, or means and variances."""
        return tuple(self._session.run(list(self.outputs), tensors))

    def _own(self, labels: np.ndarray) -> np.ndarray:
        """The data's own labels for those of the graph, which are integers or texts."""
        own = self.about["labels"]
        by_label = {(label if isinstance(labels[0], str) else int(label)): label for label in own}
        if isinstance(labels[0], str):
            by_label = {str(label): label for label in own}
        values = [by_label[label] for label in labels.tolist()]
        return np.array(values, None if len({type(label) for label in own}) == 1 else object)


def values_of(found: tuple[Any, Any], task: str) -> np.ndarray:
    """The result of :meth:`OnnxStudent.run` as numbers side by side: probabilities [N, C], or means [N, D]
    and the variances after them."""
    if task != "regression":
        return np.asarray(found[1])
    return found[0] if found[1] is None else np.concatenate(found, axis=1)


def run_onnx(
    source: Path | str | bytes, samples: Any, files: Mapping[str, bytes] | None = None
) -> tuple[Any, Any]:
    """Labels [N] as the data had them, and probabilities float32 [N, C], of a student's ONNX file; see
    :meth:`OnnxStudent.run` for other tasks.

    Parameters
    ----------
    source, files
        See :class:`OnnxStudent`.
    samples : frame, array, list of texts or images, or mapping
        Raw, as the student was trained on.
    """
    return OnnxStudent(source, files).run(samples)


def feed_of(about: dict[str, Any], files: Mapping[str, bytes] | None, folder: Path | None) -> Any:
    """A function from raw samples to the graph's inputs."""
    kind = about["kind"]
    if kind == "table":
        return lambda samples: _table(about["columns"], samples)
    if kind == "array":
        return lambda samples: {"inputs": _array("samples", about, samples)}
    if kind == "mapping":
        fields = about["fields"]
        return lambda samples: {name: _array(name, fields[name], samples[name]) for name in fields}
    if kind == "images":
        return lambda samples: {"images": _images(about["shape"], samples)}
    tokenize = _tokenizer(about["text"], files, folder)

    def texts(samples: Any) -> dict[str, np.ndarray]:
        if not isinstance(samples, (list, tuple)) or not all(isinstance(text, str) for text in samples):
            raise ValueError(f"samples: expected a list of strings; got {type(samples).__name__}")
        made: dict[str, np.ndarray] = tokenize(samples)
        return made

    return texts


def _tokenizer(settings: dict[str, Any], files: Mapping[str, bytes] | None, folder: Path | None) -> Any:
    from ensdistill.data.preprocess.texts import HashedNgrams, Tokens

    if settings["kind"] == "hashed_ngrams":
        given = {name: value for name, value in settings.items() if name != "kind"}
        given["characters"] = None if given["characters"] is None else tuple(given["characters"])
        ngrams = HashedNgrams(**given)
        return lambda texts: {"ids": ngrams(texts)}
    from tokenizers import Tokenizer

    name = settings["file"]
    if files is not None and name in files:
        blob = files[name]
    elif folder is not None and (folder / name).is_file():
        blob = (folder / name).read_bytes()
    else:
        raise ValueError(f"files: expected {name} beside the model; there is none: copy it there")
    return Tokens(Tokenizer.from_str(blob.decode()), settings["length"], settings["padding"])


def _count(samples: Any) -> int:
    """Number of samples; of a mapping that of its first field."""
    return _count(next(iter(samples.values()))) if isinstance(samples, Mapping) else len(samples)


def _table(columns: list[dict[str, Any]], samples: Any) -> dict[str, np.ndarray]:
    import narwhals.stable.v2 as nw

    frame = nw.from_native(samples, eager_only=True)
    missing = [column["name"] for column in columns if column["name"] not in frame.columns]
    if missing:
        raise ValueError(
            f"samples: expected the columns {[c['name'] for c in columns]}; missing: {missing}; got "
            f"{frame.columns}"
        )
    made = {}
    for column in columns:
        texts = column["type"] in ("text", "category")
        made[column.get("input", column["name"])] = (_texts if texts else _numbers)(
            frame[column["name"]], column
        )[:, None]
    return made


def _texts(series: Any, column: dict[str, Any]) -> np.ndarray:
    """The texts, "" for a gap: objects [N]."""
    import narwhals.stable.v2 as nw

    values, empty = series.to_list(), column["empty"]
    made = np.empty(len(values), object)
    if series.dtype in (nw.Categorical, nw.Enum):
        values = [value if is_gap(value) else str(value) for value in values]
    for row, value in enumerate(values):
        if isinstance(value, str):
            made[row] = value or empty
        elif is_gap(value):
            made[row] = ""
        else:
            raise BadRows(
                f"samples: column {column['name']!r}: expected texts; row {row} has {value!r}",
                np.array([row]),
            )
    return made


def _numbers(series: Any, column: dict[str, Any]) -> np.ndarray:
    """The numbers, NaN for a gap: float64 [N]."""
    import narwhals.stable.v2 as nw

    name = column["name"]
    if series.dtype.is_numeric() or series.dtype == nw.Boolean:
        numbers = np.asarray(series.cast(nw.Float64).to_numpy(), np.float64)
    else:
        values = series.to_list()
        gaps = [is_gap(value) for value in values]
        wrong = [
            row for row, (v, gap) in enumerate(zip(values, gaps, strict=True)) if not gap and _no_number(v)
        ]
        if wrong:
            raise BadRows(
                f"samples: column {name!r}: expected numbers; row {wrong[0]} has {values[wrong[0]]!r}",
                np.array(wrong),
            )
        numbers = np.array([np.nan if g else float(v) for v, g in zip(values, gaps, strict=True)], np.float64)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise BadRows(
            f"samples: column {name!r}: expected finite numbers; row {infinite[0]} has "
            f"{numbers[infinite[0]]} ({len(infinite)} such rows)",
            infinite,
        )
    return numbers


def _no_number(value: Any) -> bool:
    return not isinstance(value, (bool, int, float, np.bool_, np.number))


def _array(name: str, about: dict[str, Any], samples: Any) -> np.ndarray:
    array = np.asarray(samples)
    if list(array.shape[1:]) != about["shape"] or array.dtype.kind != np.dtype(about["dtype"]).kind:
        raise ValueError(
            f"{name}: expected {about['dtype']} [N, {', '.join(map(str, about['shape']))}]; got "
            f"{array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array, about["dtype"])


def _images(shape: list[int | None], samples: Any) -> np.ndarray:
    """Images of one size, uint8 [N, ...]."""
    made = []
    for image in samples:
        array = np.asarray(image)
        if array.ndim == 2 and len(shape) == 3 and shape[2] == 1:
            array = array[:, :, None]
        fits = array.ndim == len(shape) and all(
            length in (None, own) for length, own in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.uint8:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise ValueError(
                f"samples: expected uint8 images [{wanted}]; got {array.dtype} {list(array.shape)}"
            )
        made.append(array)
    return np.stack(made)
