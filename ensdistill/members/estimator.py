"""Fitted scikit-learn estimators as members."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensdistill.files import write_bytes
from ensdistill.fingerprint import digest
from ensdistill.members.base import SMOOTHING, Blob, align, batches, check_smoothing, check_width, flat, to_logits, two_logits, write_about
from ensdistill.skops_files import load_skops, skops_content, untrusted_types

Output = Literal["auto", "probability", "decision"]


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
        if output not in ("auto", "probability", "decision"):
            raise ValueError(f"output: expected auto, probability or decision; got {output!r}")
        self.estimator, self.smoothing, self.batch_size = estimator, check_smoothing(smoothing), batch_size
        scores = "predict" if is_regressor(estimator) else "decision_function"
        methods = {"auto": ("predict_proba", scores), "probability": ("predict_proba",), "decision": (scores,)}[output]
        self.method = next((m for m in methods if hasattr(estimator, m)), None)
        if self.method is None:
            raise ValueError(f"output: {self.name} has no {' or '.join(methods)}")
        self.output: Output = "probability" if self.method == "predict_proba" else "decision"
        self.classes, self._columns = align(self.name, getattr(estimator, "classes_", None), classes)
        # Digests of what it is written as just after it was read from a file, and of that file: other versions of the libraries write
        # something else of the same estimator.
        self._came_from: tuple[str, str] | None = None

    @property
    def parameters(self) -> int:
        """Numbers in the fitted arrays of the saved estimator."""
        return self._size[0]

    @property
    def bytes(self) -> int:
        """Bytes of those arrays."""
        return self._size[1]

    @cached_property
    def _size(self) -> tuple[int, int]:
        # Asked for often, and writing a forest takes half a second.
        return self._archive()[2:]

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        features = flat(inputs)
        if len(features) == 0:
            if self.classes is None:
                raise ValueError(f"inputs: {self.name} cannot tell the number of classes without a row")
            return np.zeros((0, len(self.classes)), np.float32)
        method = getattr(self.estimator, str(self.method))
        scores = np.concatenate([np.asarray(method(x.astype(np.float64))) for x in batches(features, self.batch_size)])
        if scores.ndim == 1 and self.method == "predict":
            raise ValueError(
                f"{self.name}: expected a regressor that was fitted to one column for each class; it answers with one number a row, "
                "which is no logit: fit a classifier, or the regressor to np.eye(C)[labels]"
            )
        if scores.ndim == 1 and self.output == "decision":
            scores = two_logits(scores)
        check_width(self.name, scores, len(inputs), self.classes)
        if self._columns is not None:
            scores = scores[:, self._columns]
        return to_logits(scores, self.smoothing) if self.output == "probability" else scores.astype(np.float32)

    def fingerprint(self) -> str:
        return self._print(self._archive()[1])

    def _print(self, now: str) -> str:
        """The fingerprint, of the digest of what it is written as: the file's that it was read from, if it was not refitted since."""
        first, file = self._came_from or (now, now)
        return digest(["sklearn", file if now == first else now, self.output, self.smoothing, self.classes])

    def _archive(self) -> tuple[Blob, str, int, int]:
        """The .skops file, the digest of its content, and the count and bytes of its numbers; anew, because it may have been refitted."""
        import skops.io

        blob = skops.io.dumps(self.estimator)
        return (blob, *skops_content(blob))

    def untrusted(self, trusted: Sequence[str] = ()) -> list[str]:
        """The types beside ``trusted`` that whoever loads it has to trust."""
        return untrusted_types(self._archive()[0], trusted)

    def save(self, folder: Path | str) -> None:
        blob, now, *_ = self._archive()
        write_bytes(Path(folder) / "estimator.skops", blob)
        more = {"output": self.output, "smoothing": self.smoothing, "batch_size": self.batch_size}
        write_about(folder, self, "sklearn", self._print(now), **more)


def load_sklearn(folder: Path, about: dict[str, Any], trusted: tuple[str, ...]) -> SklearnMember:
    """A saved estimator, built of trusted types only."""
    blob = (folder / "estimator.skops").read_bytes()
    estimator = load_skops(blob, trusted, folder)
    options = {key: about[key] for key in ("output", "smoothing", "batch_size")}
    member = SklearnMember(estimator, name=about["name"], classes=about["classes"], **options)
    member._came_from = member._archive()[1], skops_content(blob)[0]
    return member
