"""Functions, and answers that are known already, as members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.files import write_arrays
from ensdistill.fingerprint import digest
from ensdistill.members.base import Blob, as_classes, check_width, not_distributions, write_about
from ensdistill.members.outputs import Output, Reading, as_logits, check_output, reading_of


class CallableMember:
    """Any function from inputs [N, ...] to logits or probabilities [N, C].

    Parameters
    ----------
    function : callable
    name : str
    version : str, optional
        Stands for the function in fingerprints: change it whenever the function's answers change. Needed to cache its targets.
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        ``auto`` goes by the first answer: probabilities if every row is a distribution, logits if it can't be read as any kind of
        probabilities. A later answer that contradicts is an error. ``margin`` is one column, the logit of the second of two classes.
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
        version: str | None = None,
        output: Output = "auto",
        classes: Sequence[str] | None = None,
    ) -> None:
        self.function, self.name, self.version, self.output = function, name, version, check_output(name, output)
        self.classes = as_classes(name, classes)
        self._reading: Reading | None = None if output == "auto" else output

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        values = as_array(self.function(inputs))
        if self._reading is None and values.ndim == 2 and values.shape[1] > 1 and not np.isnan(values).any():
            self._reading = reading_of(self.name, values)  # nothing can be concluded from a NaN
        elif self.output == "auto" and self._reading == "probabilities" and len(bad := not_distributions(values)):
            raise ValueError(
                f"{self.name}: its first answer looked like probabilities, but row {bad[0]} of this one is {values[bad[0]].tolist()}; "
                f"say what it answers with: CallableMember(function, name={self.name!r}, output='logits' or 'probabilities')"
            )
        logits = as_logits(self.name, values, self._reading or "logits")
        return check_width(self.name, logits, len(inputs), self.classes)

    def fingerprint(self) -> str:
        if self.version is None:
            raise ValueError(
                f"{self.name}: a function has no fingerprint: CallableMember(function, name={self.name!r}, version='1') says which it is"
            )
        return digest(["callable", self.name, self.version, self.output, *([] if self.classes is None else [self.classes])])

    def fingerprint_parts(self) -> dict[str, str]:
        """What the fingerprint is made of."""
        return {"name": self.name, "version": str(self.version), "output": self.output, "classes": digest(self.classes)}

    def save(self, folder: Path | str) -> None:
        raise TypeError(f"{self.name}: a function cannot be saved without pickle; cache its targets, or give its outputs to ArrayMember")


def as_array(values: Any) -> np.ndarray:
    """A function's answer as an array; tensors of bfloat16, which NumPy does not have, as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


class ArrayMember:
    """Answers that are known already, found again by the bytes of their inputs, or by their place.

    Parameters
    ----------
    inputs : ndarray [N, ...], optional
        What the answers belong to. Without them, answers are only given for N inputs at once, which the caller has in their order.
    logits, probabilities : ndarray [N, C]
        One of the two. Rows of probabilities sum to one within 0.05, as rounded ones do; one column [N, 1] is the probability of the
        second of two classes.
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
        inputs: np.ndarray | None = None,
        *,
        name: str,
        logits: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if (logits is None) == (probabilities is None):
            raise ValueError("logits, probabilities: expected one of the two")
        self.name, self.classes = name, as_classes(name, classes)
        values, kind = (logits, "logits") if probabilities is None else (probabilities, "probabilities")
        answers = as_logits(name, np.asarray(values), kind)  # type: ignore[arg-type]
        self.inputs = None if inputs is None else np.asarray(inputs)
        self.logits = check_width(name, answers, len(answers if self.inputs is None else self.inputs), self.classes)
        self._rows: dict[Blob, int] = {}
        for row, key in enumerate([] if self.inputs is None else self._keys(self.inputs)):
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
        if self.inputs is None:
            if len(inputs) != len(self.logits):
                raise ValueError(
                    f"inputs: {self.name} has answers for {len(self.logits)} rows and does not know which; got {len(inputs)} rows. "
                    f"ArrayMember(inputs, logits=..., name={self.name!r}) finds them by their inputs"
                )
            return self.logits
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
        return digest(["array", self.inputs, self.logits, *([] if self.classes is None else [self.classes])])

    def fingerprint_parts(self) -> dict[str, str]:
        """What the fingerprint is made of."""
        return {"inputs": digest(self.inputs), "answers": digest(self.logits), "classes": digest(self.classes)}

    def saved_content(self) -> str:
        """Of the arrays alone."""
        return digest(["array", self.inputs, self.logits])

    def save(self, folder: Path | str) -> None:
        arrays = {"logits": self.logits} if self.inputs is None else {"inputs": self.inputs, "logits": self.logits}
        write_arrays(Path(folder) / "arrays.safetensors", arrays)
        write_about(folder, self, "array")


def load_array(folder: Path, about: dict[str, Any], trusted: tuple[str, ...]) -> ArrayMember:
    """Saved answers."""
    from safetensors.numpy import load

    arrays = load((folder / "arrays.safetensors").read_bytes())
    return ArrayMember(arrays.get("inputs"), logits=arrays["logits"], name=about["name"], classes=about["classes"])
