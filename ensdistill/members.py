"""Members: one small interface over torch modules, scikit-learn estimators, callables and arrays.

A saved member is a folder with ``member.json`` (written last) and its arrays: ``.safetensors``, or ``.skops`` for scikit-learn.
Loading builds only classes that are trusted and never unpickles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from ensdistill.data import BadRows
from ensdistill.describe import build_module, class_path, module_recipe
from ensdistill.files import read_json, write_arrays, write_bytes, write_json
from ensdistill.fingerprint import digest
from ensdistill.skops_files import load_skops, skops_content

FORMAT = 1
# Probabilities p become the logits log(p + SMOOTHING): after softmax that is (p + SMOOTHING) / (1 + C * SMOOTHING), so that an exact
# zero, which a forest says of every class that none of its leaves holds, does not rule the class out.
SMOOTHING = 1e-6

Output = Literal["auto", "probability", "decision"]
Blob = bytes  # the members below have a property of that name


@runtime_checkable
class Member(Protocol):
    """One teacher.

    ``classes`` are the names of its outputs in their order, or None where it knows no names; ``parameters`` and ``bytes`` count the
    learned numbers and their storage.
    """

    name: str
    classes: tuple[str, ...] | None

    @property
    def parameters(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        """float32 [N, C] for inputs [N, ...]."""
        ...

    def fingerprint(self) -> str:
        """Digest of everything its predictions depend on."""
        ...

    def save(self, folder: Path | str) -> None: ...


def to_logits(probabilities: np.ndarray, smoothing: float = SMOOTHING) -> np.ndarray:
    """log(p + smoothing) as float32.

    Raises
    ------
    ValueError
        A row is not a distribution: a negative or NaN value, or a sum other than one (within 1e-3, which float16 sums keep).

    Examples
    --------
    >>> to_logits(np.array([[1.0, 0.0]])).round(2).tolist()
    [[0.0, -13.819999694824219]]
    """
    p = np.asarray(probabilities, np.float64)
    bad = np.flatnonzero(~((p >= 0).all(-1) & (np.abs(p.sum(-1) - 1) <= 1e-3)))
    if len(bad):
        raise BadRows(
            f"probabilities: expected rows that are at least 0 and sum to 1; row {bad[0]} is {p[bad[0]].round(4).tolist()} "
            f"({len(bad)} such rows). If they are logits, say so",
            bad,
        )
    return np.log(p + smoothing).astype(np.float32)


def _batches(inputs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, max(len(inputs), 1), size):  # one empty batch for no rows, so that the result knows C
        yield inputs[start : start + size]


def _check_width(name: str, logits: np.ndarray, rows: int, classes: tuple[str, ...] | None) -> np.ndarray:
    if logits.ndim != 2 or len(logits) != rows or (classes is not None and logits.shape[1] != len(classes)):
        expected = "C" if classes is None else len(classes)
        raise ValueError(f"{name}: expected outputs [{rows}, {expected}], one for each class; got {list(logits.shape)}")
    return logits


class TorchMember:
    """A torch module that maps float32 [N, ...] to logits [N, C].

    Parameters
    ----------
    module : Module
        Predicts in eval mode, without gradients; every submodule's mode is given back as it was.
    name : str
    classes : sequence of str, optional
    factory : callable, optional
        The module's class, or ``functools.partial(Class, **plain_arguments)``: how it is built again when it is loaded.
        Needed to save it.
    batch_size : int
        Rows predicted at once.

    Examples
    --------
    >>> TorchMember(nn.Linear(3, 2)).predict_logits(np.zeros((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str = "module",
        classes: Sequence[str] | None = None,
        factory: Callable[[], nn.Module] | None = None,
        batch_size: int = 1024,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module; got {class_path(type(module))}")
        self.module, self.name, self.batch_size = module, name, batch_size
        self.classes = None if classes is None else tuple(classes)
        self.recipe = None if factory is None else module_recipe(factory)
        if factory is not None and self.recipe is None:
            raise ValueError(f"factory: {name}: expected a module class, or functools.partial of one with plain arguments; got {factory!r}")

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self.module.state_dict().values())

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        if inputs.dtype != np.float32:
            raise ValueError(f"inputs: {self.name} expects float32; got {inputs.dtype}")
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.no_grad():
                parts = [self.module(torch.from_numpy(np.ascontiguousarray(x)).to(device)) for x in _batches(inputs, self.batch_size)]
        finally:
            for module, training in modes.items():
                module.training = training
        return _check_width(self.name, torch.cat(parts).float().cpu().numpy(), len(inputs), self.classes)

    def fingerprint(self) -> str:
        return digest(["torch", self.recipe or repr(self.module), dict(self.module.state_dict())])

    def save(self, folder: Path | str) -> None:
        from safetensors.torch import save

        if self.recipe is None:
            kind = type(self.module).__name__
            raise ValueError(
                f"{self.name}: cannot be saved without knowing how it is built; make it a member by "
                f"TorchMember(module, name={self.name!r}, factory=functools.partial({kind}, argument=value, ...))"
            )
        # clone(): tied weights share storage, which safetensors refuses.
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.module.state_dict().items()}
        write_bytes(Path(folder) / "model.safetensors", save(state))
        _write(folder, self, "torch", recipe=self.recipe, batch_size=self.batch_size)


class SklearnMember:
    """A fitted scikit-learn classifier, or a regressor that was fitted to one column per class.

    Inputs are flattened to float64 [N, features].

    Parameters
    ----------
    estimator : fitted estimator
    name : str, optional
        The estimator's class name in lower case by default.
    classes : sequence of str, optional
        Names of the outputs. The estimator's ``classes_`` are aligned to them: by name, or as indices where they are integers.
        By default its ``classes_`` as strings.
    output : {"auto", "probability", "decision"}
        ``predict_proba`` (as log(p + smoothing)), or ``decision_function`` (``predict`` of a regressor); auto takes the first it has.
    smoothing : float
        Added to probabilities before the logarithm.
    batch_size : int
        Rows predicted at once.

    Raises
    ------
    ValueError
        The estimator is not fitted, cannot give that output, or knows other classes.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> x, y = np.array([[-1.0], [1.0]]), np.array(["no", "yes"])
    >>> member = SklearnMember(LogisticRegression().fit(x, y), classes=["yes", "no"])
    >>> bool(np.diff(member.predict_logits(x)[0])[0] > 0)
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        output: Output = "auto",
        smoothing: float = SMOOTHING,
        batch_size: int = 2048,
    ) -> None:
        from sklearn.base import is_regressor
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        self.name = name or type(estimator).__name__.lower()
        try:
            check_is_fitted(estimator)
        except NotFittedError as error:
            raise ValueError(f"estimator: {self.name} is not fitted; call its fit first") from error
        if not (0 < smoothing < 1):
            raise ValueError(f"smoothing: expected a number in (0, 1); got {smoothing}")
        if output not in ("auto", "probability", "decision"):
            raise ValueError(f"output: expected auto, probability or decision; got {output!r}")
        self.estimator, self.smoothing, self.batch_size = estimator, smoothing, batch_size
        scores = "predict" if is_regressor(estimator) else "decision_function"
        methods = {"auto": ("predict_proba", scores), "probability": ("predict_proba",), "decision": (scores,)}[output]
        self.method = next((m for m in methods if hasattr(estimator, m)), None)
        if self.method is None:
            raise ValueError(f"output: {self.name} has no {' or '.join(methods)}")
        self.output: Output = "probability" if self.method == "predict_proba" else "decision"
        self.classes, self._columns = self._align(None if classes is None else tuple(classes))

    def _align(self, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
        known = getattr(self.estimator, "classes_", None)
        if known is None:
            return classes, None
        known = list(np.asarray(known).tolist())
        if classes is None:
            return tuple(str(c) for c in known), None
        if all(isinstance(c, int) for c in known) and sorted(known) == list(range(len(classes))):
            position = {index: column for column, index in enumerate(known)}
            return classes, np.array([position[i] for i in range(len(classes))])
        position = {str(c): column for column, c in enumerate(known)}
        if set(position) != set(classes):
            raise ValueError(f"classes: {self.name} knows {known}; expected {list(classes)}")
        return classes, np.array([position[c] for c in classes])

    @property
    def parameters(self) -> int:
        """Numbers in the fitted arrays of the saved estimator."""
        return self._archive[2]

    @property
    def bytes(self) -> int:
        """Bytes of those arrays."""
        return self._archive[3]

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        flat = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))
        if len(flat) == 0:
            if self.classes is None:
                raise ValueError(f"inputs: {self.name} cannot tell the number of classes without a row")
            return np.zeros((0, len(self.classes)), np.float32)
        method = getattr(self.estimator, str(self.method))
        scores = np.concatenate([np.asarray(method(x.astype(np.float64))) for x in _batches(flat, self.batch_size)])
        if scores.ndim == 1 and self.output == "decision":
            scores = np.stack([-scores / 2, scores / 2], axis=1)  # a binary margin: its sigmoid is their softmax
        _check_width(self.name, scores, len(inputs), self.classes)
        if self._columns is not None:
            scores = scores[:, self._columns]
        return to_logits(scores, self.smoothing) if self.output == "probability" else scores.astype(np.float32)

    def fingerprint(self) -> str:
        return digest(["sklearn", self._archive[1], self.output, self.smoothing, self.classes])

    @cached_property
    def _archive(self) -> tuple[Blob, str, int, int]:
        """The .skops file, the digest of its content, and the count and bytes of its numbers."""
        import skops.io

        blob = skops.io.dumps(self.estimator)
        return (blob, *skops_content(blob))

    def save(self, folder: Path | str) -> None:
        write_bytes(Path(folder) / "estimator.skops", self._archive[0])
        _write(folder, self, "sklearn", output=self.output, smoothing=self.smoothing, batch_size=self.batch_size)


class CallableMember:
    """Any function from inputs [N, ...] to logits or probabilities [N, C].

    Parameters
    ----------
    function : callable
    name : str
    version : str
        Stands for the function in fingerprints: change it whenever the function's answers change.
    output : {"logits", "probabilities"}
    classes : sequence of str, optional

    Examples
    --------
    >>> member = CallableMember(lambda x: np.stack([x, -x], 1), name="sign", version="1", output="logits")
    >>> member.predict_logits(np.array([2.0])).tolist()
    [[2.0, -2.0]]
    """

    parameters = 0
    bytes = 0

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        *,
        name: str,
        version: str,
        output: Literal["logits", "probabilities"],
        classes: Sequence[str] | None = None,
    ) -> None:
        if output not in ("logits", "probabilities"):
            raise ValueError(f"output: expected logits or probabilities; got {output!r}")
        self.function, self.name, self.version, self.output = function, name, version, output
        self.classes = None if classes is None else tuple(classes)

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        values = self.function(inputs)
        values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        _check_width(self.name, values, len(inputs), self.classes)
        return to_logits(values) if self.output == "probabilities" else values.astype(np.float32)

    def fingerprint(self) -> str:
        return digest(["callable", self.name, self.version, self.output])

    def save(self, folder: Path | str) -> None:
        raise TypeError(f"{self.name}: a function cannot be saved without pickle; cache its targets, or give its outputs to ArrayMember")


class ArrayMember:
    """Answers that are known already, found again by the bytes of their inputs.

    Parameters
    ----------
    inputs : ndarray [N, ...]
        What the answers belong to.
    logits, probabilities : ndarray [N, C]
        One of the two.
    name : str
    classes : sequence of str, optional

    Raises
    ------
    ValueError
        The shapes do not fit, equal inputs have different answers, or (by ``predict_logits``) an input is not among ``inputs``.

    Examples
    --------
    >>> member = ArrayMember(np.arange(3.0), probabilities=np.array([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]]), name="lookup")
    >>> np.exp(member.predict_logits(np.array([1.0]))).round(3).tolist()[0][1] > 0.89
    True
    """

    parameters = 0

    def __init__(
        self,
        inputs: np.ndarray,
        *,
        name: str,
        logits: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if (logits is None) == (probabilities is None):
            raise ValueError("logits, probabilities: expected one of the two")
        self.name, self.classes = name, None if classes is None else tuple(classes)
        answers = np.asarray(logits, np.float32) if probabilities is None else to_logits(probabilities)
        self.inputs, self.logits = np.asarray(inputs), _check_width(name, answers, len(inputs), self.classes)
        self._rows: dict[Blob, int] = {}
        for row, key in enumerate(self._keys(self.inputs)):
            first = self._rows.setdefault(key, row)
            if not np.array_equal(answers[first], answers[row], equal_nan=True):
                raise ValueError(f"inputs: {name}: rows {first} and {row} are equal but have different answers")

    @staticmethod
    def _keys(inputs: np.ndarray) -> list[Blob]:
        return [np.ascontiguousarray(row).tobytes() for row in inputs]

    @property
    def bytes(self) -> int:
        return self.logits.nbytes

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        if inputs.dtype != self.inputs.dtype or inputs.shape[1:] != self.inputs.shape[1:]:
            raise ValueError(
                f"inputs: {self.name} expects {self.inputs.dtype} rows of shape {list(self.inputs.shape[1:])}; "
                f"got {inputs.dtype} {list(inputs.shape)}"
            )
        rows = [self._rows.get(key, -1) for key in self._keys(inputs)]
        if -1 in rows:
            raise ValueError(f"inputs: {self.name} has no answer for row {rows.index(-1)} ({rows.count(-1)} such rows)")
        return self.logits[np.array(rows, np.int64)]

    def fingerprint(self) -> str:
        return digest(["array", self.inputs, self.logits])

    def save(self, folder: Path | str) -> None:
        write_arrays(Path(folder) / "arrays.safetensors", {"inputs": self.inputs, "logits": self.logits})
        _write(folder, self, "array")


def _write(folder: Path | str, member: Member, kind: str, **more: Any) -> None:
    classes = None if member.classes is None else list(member.classes)
    content = {"format": FORMAT, "kind": kind, "name": member.name, "classes": classes, "fingerprint": member.fingerprint(), **more}
    write_json(Path(folder) / "member.json", content)


def load_member(folder: Path | str, trusted: Sequence[str] = ()) -> Member:
    """A saved member, checked against its fingerprint.

    Parameters
    ----------
    folder : path
    trusted : sequence of str
        Class paths that may be built beside torch's, this package's and scikit-learn's own.

    Raises
    ------
    ValueError
        Nothing complete is there, it needs a class that is not trusted, it is damaged, or a newer version wrote it.
    """
    folder = Path(folder)
    about = read_json(folder / "member.json")
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise ValueError(f"{folder}: no saved member (member.json is missing or is none)")
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder}: format {about.get('format')!r}; this version reads {FORMAT}")
    name, classes = about["name"], about.get("classes")
    member: Member | None = None
    try:
        if about["kind"] == "torch":
            from safetensors.torch import load

            module = build_module(about["recipe"], trusted)
            module.load_state_dict(load((folder / "model.safetensors").read_bytes()))
            torch_member = TorchMember(module.eval(), name=name, classes=classes, batch_size=int(about["batch_size"]))
            torch_member.recipe = about["recipe"]
            member = torch_member
        elif about["kind"] == "sklearn":
            estimator = load_skops((folder / "estimator.skops").read_bytes(), trusted, folder)
            options = {key: about[key] for key in ("output", "smoothing", "batch_size")}
            member = SklearnMember(estimator, name=name, classes=classes, **options)
        elif about["kind"] == "array":
            from safetensors.numpy import load as load_arrays

            arrays = load_arrays((folder / "arrays.safetensors").read_bytes())
            member = ArrayMember(arrays["inputs"], logits=arrays["logits"], name=name, classes=classes)
    except ValueError:
        raise
    except Exception as error:  # the libraries raise many kinds for a damaged file; none of them names it
        raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    if member is None:
        raise ValueError(f"{folder}: unknown kind {about['kind']!r}; expected torch, sklearn or array")
    if member.fingerprint() != about.get("fingerprint"):
        raise ValueError(f"{folder}: the files are not those that were saved (the fingerprint differs)")
    return member


def as_member(value: Any, name: str | None = None) -> Member:
    """A member as it is; a torch module or a scikit-learn estimator in its adapter.

    Raises
    ------
    TypeError
        Anything else: the message names the adapter that needs to be told more.
    """
    if isinstance(value, Member):
        return value
    if isinstance(value, nn.Module):
        return TorchMember(value, name=name or type(value).__name__.lower())
    if hasattr(value, "get_params") and hasattr(value, "fit"):
        return SklearnMember(value, name=name)
    raise TypeError(
        f"members: expected a member, a torch module or a scikit-learn estimator; got {class_path(type(value))}. "
        "A function goes into CallableMember, arrays into ArrayMember"
    )
