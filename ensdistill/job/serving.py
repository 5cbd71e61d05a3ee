"""The student of a run, found in its folder."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from ensdistill.common.errors import WrongArgument
from ensdistill.job.contents import contents, is_run
from ensdistill.student.serving import Predictor
from ensdistill.student.serving import load_student as load_saved
from ensdistill.student.serving.student import FILE

SETTINGS = "run.yaml"


def load_student(
    path: Path | str, *, student: str | None = None, seed: int | None = None, trusted: Sequence[str] = ()
) -> Predictor:
    """A student, ready to predict raw samples.

    Parameters
    ----------
    path : path
        A run's folder, the folder of a saved or exported student, or an exported file (``.onnx``, which
        onnxruntime runs, or ``.pt2``).
    student : str, optional
        Of a run: which one; the first by default.
    seed : int, optional
        Of a run: that of the student; 0 by default.
    trusted : sequence of str
        Class paths that may be built beside torch's, this package's and scikit-learn's own.

    Returns
    -------
    Predictor
        With ``predict``, ``predict_proba``, ``predict_logits``, ``entropy``, ``classes`` and ``labels``.

    Raises
    ------
    ValueError
        The run has not finished (names the missing part and the command that goes on), has no such student or
        seed, or ``path`` is none of these.
    """
    path = Path(path)
    if is_run(path):
        return load_saved(student_folder(path, student, seed), trusted)
    for name, value in (("student", student), ("seed", seed)):
        if value is not None:
            raise WrongArgument(f"{name}: expected none, because {path} is no run's folder; got {value!r}")
    return load_saved(path, trusted)


def student_folder(run: Path, student: str | None = None, seed: int | None = None) -> Path:
    """The folder of one student of a run.

    Raises
    ------
    ValueError
        There is no such student or seed, or it is not finished.
    """
    seed = 0 if seed is None else seed
    found = contents(run)
    planned, students = found.seeds, found.students
    if not 0 <= seed < max(planned, 1):
        known = "0, the only one" if planned == 1 else f"one of 0 to {planned - 1}, those"
        raise WrongArgument(f"seed: expected {known} of {run}; got {seed}")
    if student is not None and students and student not in students:
        near = difflib.get_close_matches(student, students, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise WrongArgument(f"student: expected one of {', '.join(students)}; got {student!r}{hint}")
    chosen = student or (students[0] if students else "")
    folder = run / f"seed-{seed}" / "distill" / chosen / "student"
    if missing := _unfinished(run, seed, chosen):
        raise ValueError(
            f"path: {run} has not finished: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"missing. `{command_for(run)}` goes on from there"
        )
    if not (folder / FILE).is_file():
        raise ValueError(
            f"path: {run} is of an earlier version, which wrote no {FILE}: `{command_for(run)}` adds it, "
            "and trains nothing again"
        )
    return folder


def _unfinished(run: Path, seed: int, student: str) -> list[str]:
    """The units before a student, and its own, that have no record."""
    units = {"teachers": "teachers", "cache": "cache", f"distill/{student}": f"distill {student}"}
    return [
        f"seed {seed} · {name.strip()}"
        for place, name in units.items()
        if not (run / f"seed-{seed}" / place / "stage.json").is_file()
    ]


def command_for(run: Path) -> str:
    """The command that continues a run."""
    file = run / SETTINGS
    return f"ensdistill run {shlex.quote(str(file)) if file.is_file() else 'CONFIG'}"
