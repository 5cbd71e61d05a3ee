"""The interface to one library's boosted trees: how a model predicts, and how it is written to a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ensdistill.common.tasks import Task
from ensdistill.data.batches import describe
from ensdistill.teachers.members.base import Blob, two_logits


class Library(ABC):
    """One model of a library.

    Attributes
    ----------
    name, file : str
        The library's package, and the name of a saved model's file.
    objectives, wrapper : dict of tuple of str
        By task: the losses that are of it, and names of the library's classes that can be members.
    pickled : tuple of str
        Class path and attribute that hold the trees where an estimator of scikit-learn contains a model of
        this library.
    model : Any
        The model as the user passed it.
    objective : str
        The loss that the trees were fitted to.
    classes : sequence, optional
        The model's ``classes_``.
    one_against_rest : bool
        Each probability is that of one class against all others, so a row does not sum to one.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    objectives: ClassVar[dict[Task, tuple[str, ...]]]
    wrapper: ClassVar[dict[Task, tuple[str, ...]]]
    pickled: ClassVar[tuple[str, str]]

    model: Any
    objective: str
    task: Task
    classes: Sequence[Any] | None = None
    one_against_rest = False

    @abstractmethod
    def __init__(self, model: Any, blob: Blob | None = None, task: Task = "classification") -> None: ...

    @property
    @abstractmethod
    def booster(self) -> Any:
        """The library's own booster, from which the file is written."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Number of columns that the model was fitted to."""

    @property
    def names(self) -> list[str] | None:
        """Names of the columns that the model was fitted to; None for columns of an array."""
        return None

    @property
    def words(self) -> set[str] | None:
        """Columns that may hold texts or categories; None where that is not known."""
        return None

    def table(self, frame: Any) -> Any:
        """A pandas frame of the columns ``names``, in the form in which the library takes it."""
        return frame

    @abstractmethod
    def probabilities(self, inputs: Any) -> np.ndarray:
        """The library's own probabilities for an array [N, F], or for a frame: [N, C], or [N] for the second
        of two classes."""

    @abstractmethod
    def scores(self, inputs: Any) -> np.ndarray:
        """Raw scores for [N, F]: [N, C], or a binary margin [N]."""

    def moments(self, inputs: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """A regressor's own predictions for [N, F], [N] or [N, D], and its variances, where it gives them."""
        return np.asarray(self.model.predict(inputs)), None

    @abstractmethod
    def written(self) -> Blob:
        """The booster in the library's own file format."""

    @classmethod
    @abstractmethod
    def load(cls, blob: Blob, options: dict[str, Any], classes: Sequence[Any] | None, task: Task) -> Library:
        """The model of a saved file, with its saved ``options()`` and ``classes``."""

    @classmethod
    def answering(cls, blob: Blob) -> Blob:
        """The part of a file on which predictions depend: without threads, verbosity, dates and ids."""
        return blob

    @classmethod
    def unpickled(cls, state: Blob) -> Blob:
        """`answering` for the bytes that the attribute ``pickled`` holds."""
        return cls.answering(state)

    @classmethod
    def keywords(cls) -> frozenset[str] | None:
        """Names of the training parameters; None if the library refuses unknown names itself."""
        return None

    @classmethod
    def of_several_labels(cls, model: Any) -> bool:
        """Whether a fitted model predicts several labels for each row."""
        return False

    def options(self) -> dict[str, Any]:
        """Settings that predictions need and the file lacks, as JSON."""
        return {}

    def came_from(self, blob: Blob | None) -> None:
        """Keep the file of a loaded model, because the library may write other bytes for the same trees."""
        self._first = self.written()
        self._file = self._first if blob is None else blob

    @property
    def blob(self) -> Blob:
        """The file as it was read, or as it is written now if the model was trained since."""
        now = self.written()
        return self._file if now == self._first else now

    def check(self, task: Task, argument: str = "objective") -> None:
        """Raise ValueError for a model of another task, or whose class overrides the prediction."""
        kind, self.task = type(self.model), task
        if self.objective not in self.objectives[task]:
            noun = {"multilabel": "multi-label classifier", "regression": "regressor"}.get(task, "classifier")
            if not self.objectives[task]:
                raise ValueError(f"task: expected classification or regression of {self.name}; got {task}")
            other = next((t for t, known in self.objectives.items() if self.objective in known), None)
            remedy = "" if other in (None, "classification") else f": state task={other!r}"
            expected = f"expected a {self.name} {noun}, {', '.join(self.objectives[task])}"
            raise ValueError(f"estimator: {expected}; got the {argument} {self.objective}{remedy}")
        if not {cls.__name__ for cls in kind.__mro__} & set(self.wrapper[task]):
            raise ValueError(
                f"estimator: expected {' or '.join(self.wrapper[task])}; got {kind.__name__}: pass the "
                "booster that it holds"
            )
        for method in ("predict", "predict_proba"):
            if not getattr(getattr(self.model, method, None), "__module__", self.name).startswith(self.name):
                raise ValueError(
                    f"estimator: {kind.__name__} has a {method} of its own, which would not be saved with "
                    "the booster; make it a member by CallableMember(estimator.predict_proba, "
                    "output='probabilities', ...)"
                )


def texts_as_categories(frame: Any) -> Any:
    """A pandas frame whose columns of texts are columns of categories, for libraries that find the values of
    the fit by name."""
    types = describe(frame)["columns"]
    texts = [name for name, kind in types.items() if kind == "text"]
    return frame.astype(dict.fromkeys(texts, "category")) if texts else frame


def two_columns(scores: np.ndarray) -> np.ndarray:
    """Raw scores as logits [N, C]; a binary margin, [N] or [N, 1], becomes two columns."""
    return two_logits(scores.reshape(-1)) if scores.ndim == 1 or scores.shape[1] == 1 else scores


def softmax_of_scores(scores: np.ndarray) -> np.ndarray:
    """Probabilities [N, C], float64, of raw scores."""
    from scipy.special import softmax

    p: np.ndarray = softmax(two_columns(scores).astype(np.float64), axis=1)
    return p
