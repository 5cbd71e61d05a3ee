"""Functions, and stored outputs, as members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.common.files import write_arrays
from ensdistill.common.fingerprint import digest
from ensdistill.teachers.members.base import (
    Blob,
    Member,
    as_classes,
    check_width,
    not_distributions,
    own_source,
    write_description,
)
from ensdistill.teachers.members.inputs import check_array, count
from ensdistill.teachers.members.outputs import Output, Reading, as_logits, check_output, reading_of


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
        column, the logit of the second of two classes.
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
        self.function, self.name, self.version, self.output = (
            function,
            name,
            version,
            check_output(name, output),
        )
        self.classes = as_classes(name, classes)
        self._reading: Reading | None = None if output == "auto" else output

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Logits, float32 [N, C], for a batch of N samples, which the function gets as it is."""
        values = as_array(self.function(inputs))
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

    def fingerprint(self) -> str:
        """Digest of the name, the version and the output."""
        if self.version is None:
            raise ValueError(
                f"version: {self.name}: a function has no fingerprint of its own; expected a version that "
                f"stands for it: CallableMember(function, name={self.name!r}, version='1')"
            )
        classes = [] if self.classes is None else [self.classes]
        return digest(
            ["callable", self.name, self.version, self.output, *classes, *own_source(self).values()]
        )

    def fingerprint_parts(self) -> dict[str, str]:
        """The fingerprint's parts: name, version and output as they are, and digests."""
        stated = {"name": self.name, "version": str(self.version), "output": self.output}
        return {**stated, "classes": digest(self.classes), **own_source(self)}

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
        and 1e8 + 1) are shifted by their row's largest first.
    name : str
    classes : sequence of str, optional
    uids : ndarray [N], integer, optional
        Instead of ``inputs``: the uid of the sample that each row belongs to. ``cache_targets`` has the uids
        of its rows and passes them on; elsewhere ``ensemble.for_uids(uids).predict_proba(inputs)`` does.

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
    ) -> None:
        if (logits is None) == (probabilities is None):
            raise ValueError("logits, probabilities: expected one of the two")
        if inputs is not None and uids is not None:
            raise ValueError(
                "inputs, uids: expected at most one of the two, by which the outputs are found; got both"
            )
        self.name, self.classes = name, as_classes(name, classes)
        values, kind = (logits, "logits") if probabilities is None else (probabilities, "probabilities")
        array = as_array(values)
        if array.dtype.kind not in "fiu":
            raise TypeError(
                f"{kind}: {name}: expected floating-point numbers [N, C]; got {array.dtype} "
                f"{list(array.shape)}"
            )
        stored = as_logits(name, array, kind)  # type: ignore[arg-type]
        self.inputs = None if inputs is None else np.asarray(inputs)
        self.uids = None if uids is None else _checked_uids(name, uids)
        given = next((array for array in (self.inputs, self.uids) if array is not None), stored)
        self.logits = check_width(name, stored, len(given), self.classes)
        self._rows: dict[Blob, int] = {}
        for row, key in enumerate([] if self.inputs is None else self._keys(self.inputs)):
            first = self._rows.setdefault(key, row)
            if not np.array_equal(stored[first], stored[row], equal_nan=True):
                raise ValueError(
                    f"inputs: {name}: rows {first} and {row} are equal but have different outputs"
                )

    @staticmethod
    def _keys(inputs: np.ndarray) -> list[Blob]:
        return [np.ascontiguousarray(row).tobytes() for row in inputs]

    @property
    def bytes(self) -> int:
        """Bytes of the logits."""
        return self.logits.nbytes

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """The stored logits, float32 [N, C], of N samples; only those of an array are found by content."""
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
        return ArrayMember(name=self.name, logits=self.logits[where], classes=self.classes)

    def fingerprint(self) -> str:
        """Digest of the arrays and the classes."""
        more = [
            *([] if self.classes is None else [self.classes]),
            *self._named_by_uids(),
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
        return {**parts, **({} if self.uids is None else {"uids": digest(self.uids)}), **own_source(self)}

    def saved_content(self) -> str:
        """Digest of the arrays alone."""
        return digest(["array", self.inputs, self.logits, *self._named_by_uids()])

    def _named_by_uids(self) -> list[Any]:
        return [] if self.uids is None else ["uids", self.uids]

    def save(self, folder: Path | str) -> None:
        """Write ``arrays.safetensors`` and ``member.json``."""
        found_by = {"inputs": self.inputs, "uids": self.uids}
        arrays = {"logits": self.logits} | {
            name: array for name, array in found_by.items() if array is not None
        }
        write_arrays(Path(folder) / "arrays.safetensors", arrays)
        write_description(folder, self, "array")

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> ArrayMember:
        """A saved member."""
        from safetensors.numpy import load

        arrays = load((folder / "arrays.safetensors").read_bytes())
        found_by = {name: arrays.get(name) for name in ("inputs", "uids")}
        return cls(
            logits=arrays["logits"], name=description["name"], classes=description["classes"], **found_by
        )


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
