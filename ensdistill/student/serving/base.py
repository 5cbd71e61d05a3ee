"""The behaviour that all served students share, with every library that runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from ensdistill.common.errors import is_out_of_memory
from ensdistill.common.tasks import Task, check_task
from ensdistill.data import BadRows
from ensdistill.student.serving.samples import fitting
from ensdistill.teachers.fitting.scaling import Scaling
from ensdistill.teachers.members.inputs import as_batch, batches, lazy, read
from ensdistill.teachers.members.moments import Moments

SETTINGS: dict[Task, tuple[str, ...]] = {
    "classification": ("temperature",),
    "multilabel": ("temperature", "thresholds"),
    "regression": ("variance_factor", "noise"),
}
BATCH = 8192  # rows in memory at once, beside the samples themselves


class Described:
    """Classes, labels and samples of a student.

    Parameters
    ----------
    classes : sequence of str
        Names by class index; of the labels or the numbers, of other tasks.
    labels : sequence
        The labels by class index as the data had them; those that are no string, number or boolean stand by
        their names. Of other tasks they are the names.
    samples : dict
        The training samples' form; see :func:`ensdistill.data.samples.form`.
    temperature : float
        By which logits are divided.
    about : dict
        Plain JSON: name, data, members, figures, as far as they are known.
    task : {"classification", "multilabel", "regression"}
    thresholds : sequence of float [C], optional
        Of the task multilabel: the probabilities from which on a label is predicted; 1/2 by default.
    variance_factor, noise
        Of the task regression; see :class:`ensdistill.teachers.fitting.scaling.Scaling`.

    Raises
    ------
    ValueError
        Labels and classes are of unlike number, a number is out of its range, or of another task.
    """

    def __init__(
        self,
        classes: Sequence[str],
        labels: Sequence[Any],
        samples: Mapping[str, Any],
        temperature: float = 1.0,
        about: Mapping[str, Any] | None = None,
        *,
        task: Task = "classification",
        thresholds: Sequence[float] | None = None,
        variance_factor: float = 1.0,
        noise: Sequence[float] | None = None,
    ) -> None:
        self.task = check_task(task)
        self.classes = tuple(map(str, classes))
        self.labels = tuple(map(_plain, labels)) if task == "classification" else self.classes
        if len(self.labels) != len(self.classes):
            raise ValueError(
                f"labels: expected {len(self.classes)}, one for each class; got {len(self.labels)}"
            )
        own = {"temperature": temperature != 1, "thresholds": thresholds is not None}
        own |= {"variance_factor": variance_factor != 1, "noise": noise is not None}
        for name, given in own.items():
            if given and name not in SETTINGS[task]:
                raise ValueError(f"{name}: expected none for the task {task}, which does not have it")
        self.scaling = Scaling(
            float(temperature), float(variance_factor), None if noise is None else tuple(noise)
        )
        self.thresholds = None if thresholds is None else as_thresholds(thresholds, len(self.classes))
        if noise is not None and len(noise) != len(self.classes):
            raise ValueError(f"noise: expected {len(self.classes)}, one for each number; got {len(noise)}")
        self.samples, self.about = dict(samples), dict(about or {})

    @property
    def temperature(self) -> float:
        """By which logits are divided."""
        return self.scaling.temperature

    @property
    def cuts(self) -> np.ndarray:
        """The thresholds of the task multilabel, float64 [C]."""
        return np.full(len(self.classes), 0.5) if self.thresholds is None else np.array(self.thresholds)

    def settings(self) -> dict[str, Any]:
        """The settings of the task that are no classification's, as plain JSON."""
        if self.task == "classification":
            return {}
        found: dict[str, Any] = {"task": self.task}
        if self.task == "multilabel":
            return {**found, "thresholds": self.thresholds and list(self.thresholds)}
        noise = self.scaling.noise
        return {**found, "variance_factor": self.scaling.variance_factor, "noise": noise and list(noise)}


class Predictor(Described, ABC):
    """A student that predicts raw samples; its parameters are those of :class:`Described`."""

    parameters: int
    """Learned numbers; 0 where the runtime does not count them."""
    bytes: int
    """Of the student's numbers, or of its file."""

    @abstractmethod
    def _logits(self, batch: Any) -> np.ndarray:
        """Logits, or log-odds, divided by the temperature, float32 [n, C], of a batch that was compared with
        the training's samples."""

    @abstractmethod
    def _moments(self, batch: Any) -> Moments:
        """Calibrated means and variances, float64 [n, D], of such a batch."""

    def predict_logits(self, samples: Any) -> np.ndarray:
        """Logits, or log-odds of several labels, divided by the temperature: float32 [N, C].

        Parameters
        ----------
        samples : frame, array, list of texts or images, mapping, or a data set of torch
            Raw, as the training data were. Lazy data sets are read batch by batch.

        Raises
        ------
        ValueError
            There is no sample, or the samples are unlike those of the training: names the column, what came
            and the nearest.
        TypeError
            The student predicts numbers.
        """
        if self.task == "regression":
            raise TypeError(
                "predict_logits: expected predict or predict_distribution, because the student predicts "
                "numbers"
            )
        found = self._in_parts(samples, self._logits)
        return np.concatenate(found).astype(np.float32, copy=False)

    def predict_distribution(self, samples: Any) -> Moments:
        """Means and variances of the numbers that a student of the task regression predicts, float64 [N, D].

        The variances are None where the student predicts means alone and no noise was fitted. Samples as for
        ``predict_logits``.
        """
        if self.task != "regression":
            raise TypeError(
                "predict_distribution: expected predict_proba, because the student's task is "
                f"{self.task}, not regression"
            )
        parts = self._in_parts(samples, self._moments)
        variances = [variance for _, variance in parts if variance is not None]
        return Moments(
            np.concatenate([mean for mean, _ in parts]), np.concatenate(variances) if variances else None
        )

    def _in_parts(self, samples: Any, predict: Callable[[Any], Any]) -> list[Any]:
        """The predictions of batches of samples, which are compared with those of the training."""
        found, start = [], 0
        for batch, size in _parts(samples):
            try:
                found.append(predict(fitting(batch, self.samples)))
            except BadRows as error:
                if not start:
                    raise
                raise BadRows(f"{error}; rows are counted from {start}", error.rows + start) from error
            except Exception as error:
                if is_out_of_memory(error):
                    error.add_note(f"(while {size} rows were predicted)")
                raise
            start += size
        return found

    def predict_proba(self, samples: Any) -> np.ndarray:
        """Probabilities of the classes in their order, float32 [N, C]; rows sum to 1. Of several labels the
        probability of each by itself."""
        logits = self.predict_logits(samples)
        return softmax(logits) if self.task == "classification" else sigmoid(logits)

    def predict(self, samples: Any) -> np.ndarray:
        """The likeliest class's label of each sample, [N], as the data had it.

        Of several labels int8 [N, C]: 1 for those whose probability is at least their threshold;
        :meth:`names_of` names them. Of a regression the numbers, float64 [N, D].
        """
        if self.task == "regression":
            return self.predict_distribution(samples).mean
        if self.task == "multilabel":
            return at_thresholds(self.predict_proba(samples), self.cuts)
        return self.named(self.predict_logits(samples).argmax(1))

    def names_of(self, present: np.ndarray) -> list[tuple[str, ...]]:
        """The names of the labels that ``predict`` returned as int8 [N, C], for each sample."""
        return [tuple(self.classes[c] for c in np.flatnonzero(row)) for row in present]

    def entropy(self, samples: Any) -> np.ndarray:
        """Entropy of the student's own probabilities, float32 [N], in nats; of several labels the sum of
        theirs.

        The members' disagreement is not in it: one model has only its own.
        """
        logits = self.predict_logits(samples)
        if self.task == "multilabel":
            half = logits.astype(np.float64).reshape(-1, 1) / 2
            return entropy_of(np.concatenate([-half, half], 1)).reshape(logits.shape).sum(1)
        return entropy_of(logits)

    def named(self, indices: np.ndarray) -> np.ndarray:
        """The labels of class indices [N]."""
        kinds = {type(label) for label in self.labels}
        labels = np.array(self.labels, None if len(kinds) == 1 else object)
        result: np.ndarray = labels[indices]
        return result

    def __repr__(self) -> str:
        shown = ", ".join(self.classes[:5]) + " ..." * (len(self.classes) > 5)
        noun = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}[self.task]
        return f"{type(self).__name__}({self.samples['kind']} -> {len(self.classes)} {noun}: {shown})"


def as_thresholds(thresholds: Sequence[float], count: int) -> tuple[float, ...]:
    """The thresholds of ``count`` labels; ValueError unless all are in 0..1."""
    found = tuple(map(float, thresholds))
    if len(found) != count or not all(0 <= one <= 1 for one in found):
        raise ValueError(f"thresholds: expected {count} numbers in 0..1, one for each label; got {found}")
    return found


def at_thresholds(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """int8 [N, C]: 1 for the labels whose probability is at least their threshold, in float32."""
    return (probabilities >= thresholds.astype(np.float32)).astype(np.int8)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float32 [N, C], of log-odds; computed in float64."""
    found: np.ndarray = expit(logits.astype(np.float64)).astype(np.float32)
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float32 [N, C]; computed in float64."""
    return np.exp(_log_softmax(logits)).astype(np.float32)


def entropy_of(logits: np.ndarray) -> np.ndarray:
    """Entropy in nats, float32 [N], of the softmax of logits [N, C].

    Examples
    --------
    >>> [round(h, 4) for h in entropy_of(np.array([[0.0, 0.0], [100.0, 0.0]])).tolist()]
    [0.6931, 0.0]
    """
    log_p = _log_softmax(logits)
    # A class that is ruled out has p log p = 0, not 0 * -inf.
    terms = np.where(np.isfinite(log_p), np.exp(log_p) * np.where(np.isfinite(log_p), log_p, 0.0), 0.0)
    return np.abs(terms.sum(1)).astype(np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    shifted: np.ndarray = z - np.log(np.exp(z).sum(1, keepdims=True))
    return shifted


def _parts(samples: Any) -> Iterator[tuple[Any, int]]:
    """Batches with their numbers of rows."""
    from ensdistill.teachers.members.inputs import count

    found = lazy(samples)
    if found is not None:
        yield from ((batch, len(part)) for part, batch in read(found, 1024))
        return
    if isinstance(samples, (list, tuple)) and not samples:
        raise ValueError("samples: expected at least one; got none")
    batch = as_batch(samples)
    if count(batch) == 0:
        raise ValueError("samples: expected at least one; got none")
    yield from ((part, count(part)) for part in batches(batch, BATCH))


def _plain(label: Any) -> Any:
    label = label.item() if isinstance(label, np.generic) else label
    return label if isinstance(label, (str, bool, int, float)) else str(label)
