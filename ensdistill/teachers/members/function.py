"""Functions, and stored outputs, as members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.common.files import write_arrays
from ensdistill.common.fingerprint import digest
from ensdistill.common.tasks import Task, check_task
from ensdistill.teachers.members import sigmoids
from ensdistill.teachers.members.base import (
    Blob,
    Member,
    as_classes,
    check_width,
    not_distributions,
    own_source,
    task_parts,
    write_description,
    wrong_task,
)
from ensdistill.teachers.members.inputs import check_array, count
from ensdistill.teachers.members.moments import (
    Moments,
    as_moments,
    check_moments,
    joined_moments,
    split_moments,
)
from ensdistill.teachers.members.outputs import Output, as_logits, check_output, reading_of


class CallableMember:
    """Any function from inputs [N, ...] to logits or probabilities [N, C].

    Parameters
    ----------
    function : callable
    name : str
    version : str, optional
        Stands for the function in fingerprints: change it whenever the function's outputs change. Needed to
        cache its targets.
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        ``auto`` goes by the first outputs: probabilities if every row is a distribution, logits if they can't
        be read as any kind of probabilities. Later outputs that contradict are an error. ``margin`` is one
        column, the logit of the second of two classes. Of the task multilabel: log-odds or probabilities [N,
        C]; of regression: see :class:`ensdistill.teachers.members.TorchMember`.
    classes : sequence of str, optional
    task : {"classification", "multilabel", "regression"}

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
        task: Task = "classification",
    ) -> None:
        self.task = check_task(task)
        self.function, self.name, self.version = function, name, version
        self.output = check_output(name, output, task)
        self.classes = as_classes(name, classes)
        self._reading: Any = None if output == "auto" else output

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Logits, float32 [N, C], for a batch of N samples, which the function gets as it is."""
        if self.task == "regression":
            raise wrong_task(self.name, self.task, "predict_logits")
        values = as_array(self.function(inputs))
        if self.task == "multilabel":
            return check_width(self.name, self._log_odds(values), count(inputs), self.classes)
        if self._reading is None and values.ndim == 2 and values.shape[1] > 1 and not np.isnan(values).any():
            self._reading = reading_of(self.name, values)  # nothing can be concluded from a NaN
        elif (
            self.output == "auto"
            and self._reading == "probabilities"
            and len(bad := not_distributions(values))
        ):
            raise ValueError(
                f"output: {self.name}: the first outputs looked like probabilities, but now row {bad[0]} is "
                f"{values[bad[0]].tolist()}; state which they are: CallableMember(function, "
                f"name={self.name!r}, output='logits' or 'probabilities')"
            )
        logits = as_logits(self.name, values, self._reading or "logits")
        return check_width(self.name, logits, count(inputs), self.classes)

    def _log_odds(self, values: np.ndarray) -> np.ndarray:
        if self._reading is None:
            self._reading = sigmoids.reading_of(self.name, values)
        return sigmoids.as_log_odds(self.name, values, self._reading or "logits")

    def predict_moments(self, inputs: Any) -> Moments:
        """Means and variances, float64 [N, D], of a regressor, for a batch of N samples."""
        if self.task != "regression":
            raise wrong_task(self.name, self.task, "predict_moments")
        outputs = self.function(inputs)
        parts = (
            [as_array(part) for part in outputs] if isinstance(outputs, (tuple, list)) else as_array(outputs)
        )
        values = joined_moments(self.name, parts, self.output)
        found = split_moments(self.name, values, self.output)
        return check_moments(found, self.name, count(inputs), self.classes)

    def fingerprint(self) -> str:
        """Digest of the name, the version and the output."""
        if self.version is None:
            raise ValueError(
                f"version: {self.name}: a function has no fingerprint of its own; expected a version that "
                f"stands for it: CallableMember(function, name={self.name!r}, version='1')"
            )
        classes = [] if self.classes is None else [self.classes]
        more = [*classes, *task_parts(self.task).values(), *own_source(self).values()]
        return digest(["callable", self.name, self.version, self.output, *more])

    def fingerprint_parts(self) -> dict[str, str]:
        """The fingerprint's parts: name, version and output as they are, and digests."""
        stated = {"name": self.name, "version": str(self.version), "output": self.output}
        return {**stated, "classes": digest(self.classes), **task_parts(self.task), **own_source(self)}

    def save(self, folder: Path | str) -> None:
        """Raise TypeError: a function can't be saved."""
        raise TypeError(
            f"{self.name}: a function cannot be saved without pickle; cache its targets, or pass its "
            "outputs to ArrayMember"
        )


def as_array(values: Any) -> np.ndarray:
    """A function's outputs as an array; bfloat16, which NumPy lacks, becomes float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


class ArrayMember:
    """Stored outputs, found by the bytes of their inputs, by the uids of their samples, or by their place.

    Parameters
    ----------
    inputs : ndarray [N, ...], optional
        The inputs that the outputs belong to.
    logits, probabilities : ndarray [N, C]
        One of the two. Rows of probabilities sum to one within 0.05, as rounded ones do; one column [N, 1] is
        the probability of the second of two classes. float64 logits that float32 rounds to one number (1e8
        and 1e8 + 1) are shifted by their row's largest first. Of the task multilabel: log-odds, or the
        probability of each label.
    means, variances : ndarray [N, D]
        Of the task regression, in their place; variances may be left out.
    name : str
    classes : sequence of str, optional
    uids : ndarray [N], integer, optional
        In place of ``inputs``: the uid of the sample that each row belongs to. ``cache_targets`` has the uids
        of its rows and passes them on; elsewhere ``ensemble.for_uids(uids).predict_proba(inputs)`` does.
    task : {"classification", "multilabel", "regression"}, optional
        Regression where there are means, classification otherwise.

    Notes
    -----
    With neither ``inputs`` nor ``uids``, ``predict_logits`` takes exactly N inputs in the order of the stored
    rows. For a transfer set such a member is used only if the uids are 0..N-1 in order; in any other order
    the rows could be meant by place or by uid.

    Raises
    ------
    ValueError
        The shapes do not fit, a uid stands twice, or equal inputs have different outputs. ``predict_logits``
        raises it for an input that is not among ``inputs``.

    Examples
    --------
    >>> p = np.array([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]])
    >>> member = ArrayMember(np.arange(3.0), probabilities=p, name="lookup")
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
        uids: np.ndarray | None = None,
        means: np.ndarray | None = None,
        variances: np.ndarray | None = None,
        task: Task | None = None,
    ) -> None:
        if sum(values is not None for values in (logits, probabilities, means)) != 1:
            raise ValueError("logits, probabilities: expected one of the two (or means, of a regression)")
        if (means is None) != (task in (None, "classification", "multilabel")) and task is not None:
            raise ValueError(f"task: {name}: expected regression for means, and for them alone; got {task}")
        if variances is not None and means is None:
            raise ValueError(f"variances: {name}: expected means beside them; got none")
        self.task: Task = "regression" if means is not None else check_task(task or "classification")
        if inputs is not None and uids is not None:
            raise ValueError(
                "inputs, uids: expected at most one of the two, by which the outputs are found; got both"
            )
        self.name, self.classes = name, as_classes(name, classes)
        stored = self._stored(logits, probabilities, means, variances)
        self.inputs = None if inputs is None else np.asarray(inputs)
        self.uids = None if uids is None else _checked_uids(name, uids)
        given = next((array for array in (self.inputs, self.uids) if array is not None), stored)
        # Logits [N, C]; of a regression means [N, D], and variances after them, [N, 2 D].
        width = None if self.gives_variances else self.classes
        self.logits = check_width(name, stored, len(given), width)
        if self.task == "regression":
            check_moments(self._moments(self.logits), name, len(given), self.classes)
        self._rows: dict[Blob, int] = {}
        for row, key in enumerate([] if self.inputs is None else self._keys(self.inputs)):
            first = self._rows.setdefault(key, row)
            if not np.array_equal(stored[first], stored[row], equal_nan=True):
                raise ValueError(
                    f"inputs: {name}: rows {first} and {row} are equal but have different outputs"
                )

    def _stored(self, logits: Any, probabilities: Any, means: Any, variances: Any) -> np.ndarray:
        """The given arrays as the one that is kept."""
        self.gives_variances = variances is not None
        if means is not None:
            found = as_moments(self.name, as_array(means), None if variances is None else as_array(variances))
            return np.concatenate([part for part in found if part is not None], axis=1)
        values, kind = (logits, "logits") if probabilities is None else (probabilities, "probabilities")
        array = as_array(values)
        if array.dtype.kind not in "fiu":
            raise TypeError(
                f"{kind}: {self.name}: expected floating-point numbers [N, C]; got {array.dtype} "
                f"{list(array.shape)}"
            )
        if self.task == "multilabel":
            return sigmoids.as_log_odds(self.name, array, kind)
        return as_logits(self.name, array, kind)

    def _moments(self, values: np.ndarray) -> Moments:
        return split_moments(self.name, values, "mean_and_variance" if self.gives_variances else "mean")

    @staticmethod
    def _keys(inputs: np.ndarray) -> list[Blob]:
        return [np.ascontiguousarray(row).tobytes() for row in inputs]

    @property
    def bytes(self) -> int:
        """Bytes of the logits."""
        return self.logits.nbytes

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """The stored logits, float32 [N, C], of N samples; only those of an array are found by content."""
        if self.task == "regression":
            raise wrong_task(self.name, self.task, "predict_logits")
        return self._found(inputs)

    def predict_moments(self, inputs: Any) -> Moments:
        """The stored means and variances, float64 [N, D], of N samples."""
        if self.task != "regression":
            raise wrong_task(self.name, self.task, "predict_moments")
        return self._moments(self._found(inputs))

    def _found(self, inputs: Any) -> np.ndarray:
        if self.uids is not None:
            raise ValueError(
                f"inputs: {self.name} finds its outputs by uid, which inputs lack: "
                "ensemble.for_uids(uids).predict_proba(inputs) passes them"
            )
        if self.inputs is None:
            if (rows := count(inputs)) != len(self.logits):
                raise ValueError(
                    f"inputs: {self.name} holds outputs for {len(self.logits)} rows by their place; got "
                    f"{rows} rows. ArrayMember(inputs, logits=..., name={self.name!r}) finds them by "
                    "their inputs, ArrayMember(uids=...) by their uids"
                )
            return self.logits
        check_array(self.name, inputs)
        if inputs.dtype != self.inputs.dtype or inputs.shape[1:] != self.inputs.shape[1:]:
            raise ValueError(
                f"inputs: {self.name} expects {self.inputs.dtype} rows of shape "
                f"{list(self.inputs.shape[1:])}; got {inputs.dtype} {list(inputs.shape)}"
            )
        found = [self._rows.get(key, -1) for key in self._keys(inputs)]
        if -1 in found:
            raise ValueError(
                f"inputs: {self.name} has no output for row {found.index(-1)} ({found.count(-1)} such rows)"
            )
        return self.logits[np.array(found, np.int64)]

    def for_uids(self, uids: np.ndarray, among: np.ndarray) -> ArrayMember:
        """A member with the outputs for these samples, in this order; itself, if it finds them by their
        inputs.

        Parameters
        ----------
        uids : ndarray [M], integer
        among : ndarray [N], integer
            The uids of the set that the samples are from, in its order.

        Raises
        ------
        ValueError
            A uid has no output. Or the outputs are held by place and the uids of the set are not 0..N-1 in
            order.

        Examples
        --------
        >>> member = ArrayMember(uids=np.array([7, 5, 6]), logits=np.eye(3), name="stored")
        >>> member.for_uids(np.array([5, 7]), np.array([5, 6, 7])).predict_logits(np.zeros((2, 4))).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
        """
        if self.inputs is not None:
            return self
        if self.uids is None:
            if not np.array_equal(among, np.arange(len(self.logits))):
                raise ValueError(
                    f"uids: {self.name} holds outputs for {len(self.logits)} rows by their place, which is "
                    f"also their uid only if the uids are 0..{len(self.logits) - 1} in order; got "
                    f"{len(among)} uids that are not. ArrayMember(uids=..., name={self.name!r}) gives each "
                    "row the uid of its sample"
                )
            where = np.asarray(uids)
            if len(where) and not 0 <= where.min() <= where.max() < len(self.logits):
                held = f"outputs for uids 0..{len(self.logits) - 1}"
                raise ValueError(f"uids: {self.name} has {held}; got {where.min()} to {where.max()}")
        else:
            order = np.argsort(self.uids)
            place = np.minimum(np.searchsorted(self.uids, uids, sorter=order), len(order) - 1)
            where = order[place]
            missing = np.flatnonzero(self.uids[where] != uids)
            if len(missing):
                lacking = f"{len(missing)} of {len(uids)} uids have none"
                raise ValueError(f"uids: {self.name} has no output for uid {uids[missing[0]]} ({lacking})")
        return ArrayMember(name=self.name, classes=self.classes, **self._arrays(self.logits[where]))

    def _arrays(self, values: np.ndarray) -> dict[str, Any]:
        """The arguments that hold stored values, and the task."""
        if self.task != "regression":
            return {"logits": values, "task": self.task}
        mean, variance = self._moments(values)
        return {"means": mean, "variances": variance}

    def fingerprint(self) -> str:
        """Digest of the arrays and the classes."""
        more = [
            *([] if self.classes is None else [self.classes]),
            *self._named_by_uids(),
            *task_parts(self.task).values(),
            *own_source(self).values(),
        ]
        return digest(["array", self.inputs, self.logits, *more])

    def fingerprint_parts(self) -> dict[str, str]:
        """Digests of the fingerprint's parts, by name."""
        parts = {
            "inputs": digest(self.inputs),
            "outputs": digest(self.logits),
            "classes": digest(self.classes),
        }
        parts |= task_parts(self.task) | ({} if self.uids is None else {"uids": digest(self.uids)})
        return {**parts, **own_source(self)}

    def saved_content(self) -> str:
        """Digest of the arrays alone."""
        more = [*self._named_by_uids(), *task_parts(self.task).values()]
        return digest(["array", self.inputs, self.logits, *more])

    def _named_by_uids(self) -> list[Any]:
        return [] if self.uids is None else ["uids", self.uids]

    def save(self, folder: Path | str) -> None:
        """Write ``arrays.safetensors`` and ``member.json``."""
        found_by = {"inputs": self.inputs, "uids": self.uids}
        held = {name: one for name, one in self._arrays(self.logits).items() if name != "task"}
        arrays = {name: array for name, array in (held | found_by).items() if array is not None}
        write_arrays(Path(folder) / "arrays.safetensors", arrays)
        write_description(folder, self, "array")

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> ArrayMember:
        """A saved member."""
        from safetensors.numpy import load

        arrays: dict[str, Any] = load((folder / "arrays.safetensors").read_bytes())
        arrays["task"] = description.get("task")
        return cls(name=description["name"], classes=description["classes"], **arrays)


def members_for(members: tuple[Member, ...], uids: np.ndarray, among: np.ndarray) -> tuple[Member, ...]:
    """The members; those with stored outputs are replaced by the result of `ArrayMember.for_uids`."""
    return tuple(
        member.for_uids(uids, among) if isinstance(member, ArrayMember) else member for member in members
    )


def _checked_uids(name: str, uids: Any) -> np.ndarray:
    values = np.asarray(uids)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise ValueError(
            f"uids: {name}: expected integers [N], at least one; got {values.dtype} {list(values.shape)}"
        )
    found, counts = np.unique(values, return_counts=True)
    if counts.max() > 1:
        raise ValueError(
            f"uids: {name}: expected different uids; {found[counts > 1][0]} stands {counts.max()} times"
        )
    return values.astype(np.int64)
