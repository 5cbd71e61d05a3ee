"""The behaviour that all served students share, with every library that runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensdistill.common.errors import is_out_of_memory
from ensdistill.data import BadRows
from ensdistill.student.serving.samples import fitting
from ensdistill.teachers.members.inputs import as_batch, batches, lazy, read

BATCH = 8192  # rows in memory at once, beside the samples themselves


class Described:
    """Classes, labels and samples of a student.

    Parameters
    ----------
    classes : sequence of str
        Names by class index.
    labels : sequence
        The labels by class index as the data had them; those that are no string, number or boolean stand by
        their names.
    samples : dict
        The training samples' form; see :func:`ensdistill.data.samples.form`.
    temperature : float
        By which logits are divided.
    about : dict
        Plain JSON: name, data, members, figures, as far as they are known.

    Raises
    ------
    ValueError
        Labels and classes are of unlike number, or the temperature is not positive.
    """

    def __init__(
        self,
        classes: Sequence[str],
        labels: Sequence[Any],
        samples: Mapping[str, Any],
        temperature: float = 1.0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.classes = tuple(map(str, classes))
        self.labels = tuple(map(_plain, labels))
        if len(self.labels) != len(self.classes):
            raise ValueError(
                f"labels: expected {len(self.classes)}, one for each class; got {len(self.labels)}"
            )
        if not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature: expected a positive number; got {temperature}")
        self.samples, self.temperature = dict(samples), float(temperature)
        self.about = dict(about or {})


class Predictor(Described, ABC):
    """A student that predicts raw samples; its parameters are those of :class:`Described`."""

    parameters: int
    """Learned numbers; 0 where the runtime does not count them."""
    bytes: int
    """Of the student's numbers, or of its file."""

    @abstractmethod
    def _logits(self, batch: Any) -> np.ndarray:
        """Logits, divided by the temperature, float32 [n, C], of a batch that was compared with the
        training's samples."""

    def predict_logits(self, samples: Any) -> np.ndarray:
        """Logits divided by the temperature, float32 [N, C].

        Parameters
        ----------
        samples : frame, array, list of texts or images, mapping, or a data set of torch
            Raw, as the training data were. Lazy data sets are read batch by batch.

        Raises
        ------
        ValueError
            There is no sample, or the samples are unlike those of the training: names the column, what came
            and the nearest.
        """
        found, start = [], 0
        for batch, size in _parts(samples):
            try:
                found.append(self._logits(fitting(batch, self.samples)))
            except BadRows as error:
                if not start:
                    raise
                raise BadRows(f"{error}; rows are counted from {start}", error.rows + start) from error
            except Exception as error:
                if is_out_of_memory(error):
                    error.add_note(f"(while {size} rows were predicted)")
                raise
            start += size
        return np.concatenate(found).astype(np.float32, copy=False)

    def predict_proba(self, samples: Any) -> np.ndarray:
        """Probabilities of the classes in their order, float32 [N, C]; rows sum to 1."""
        return softmax(self.predict_logits(samples))

    def predict(self, samples: Any) -> np.ndarray:
        """The likeliest class's label of each sample, [N], as the data had it."""
        return self.named(self.predict_logits(samples).argmax(1))

    def entropy(self, samples: Any) -> np.ndarray:
        """Entropy of the student's own probabilities, float32 [N], in nats.

        The members' disagreement is not in it: one model has only its own.
        """
        return entropy_of(self.predict_logits(samples))

    def named(self, indices: np.ndarray) -> np.ndarray:
        """The labels of class indices [N]."""
        kinds = {type(label) for label in self.labels}
        labels = np.array(self.labels, None if len(kinds) == 1 else object)
        result: np.ndarray = labels[indices]
        return result

    def __repr__(self) -> str:
        shown = ", ".join(self.classes[:5]) + " ..." * (len(self.classes) > 5)
        return f"{type(self).__name__}({self.samples['kind']} -> {len(self.classes)} classes: {shown})"


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
