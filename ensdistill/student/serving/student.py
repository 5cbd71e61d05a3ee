"""A trained student as the member that it is, in a folder with ``student.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ensdistill
from ensdistill.common.files import read_json, write_json
from ensdistill.common.tasks import Task, task_of
from ensdistill.data import BadRows
from ensdistill.student.serving.base import Described, Predictor
from ensdistill.student.serving.heads import Uncertainties, heads_of, uncertainties_of
from ensdistill.teachers.members import Member, load_member
from ensdistill.teachers.members.base import align, arranged
from ensdistill.teachers.members.moments import Moments, moments_of
from ensdistill.teachers.members.preprocessed import rows_for

# Earlier versions read format 1 alone, and refuse the students of other tasks.
FORMATS: dict[Task, int] = {"classification": 1, "multilabel": 2, "regression": 2}
FILE = "student.json"
KEYS = ("classes", "labels", "samples", "temperature", "about")


class Student(Predictor):
    """A trained student for serving: raw samples in, the data's own labels out.

    Parameters
    ----------
    member : Member
        Takes raw samples, as that of :meth:`ensdistill.student.training.Trained.member` does.
    classes, labels, samples, temperature, about, **settings
        See :class:`ensdistill.student.serving.base.Described`.

    Raises
    ------
    ValueError
        The member has other classes or another task, or one of the arguments is not as described.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from ensdistill.data.samples import form
    >>> from ensdistill.teachers.members import SklearnMember
    >>> x, y = np.array([[0.0], [1.0], [2.0]]), np.array([0, 0, 1])
    >>> member = SklearnMember(LogisticRegression().fit(x, y), classes=("no", "yes"))
    >>> student = Student(member, ("no", "yes"), (False, True), form(x))
    >>> student.predict(np.array([[0.0], [9.0]])).tolist()
    [False, True]
    """

    def __init__(
        self,
        member: Member,
        classes: Sequence[str],
        labels: Sequence[Any],
        samples: Mapping[str, Any],
        temperature: float = 1.0,
        about: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        task = task_of(member)
        if settings.setdefault("task", task) != task:
            raise ValueError(f"task: expected {task}, that of the member; got {settings['task']}")
        super().__init__(classes, labels, samples, temperature, about, **settings)
        self.member = member
        # A member that names its classes may have them in another order.
        self._columns = None if member.classes is None else align("student", member.classes, self.classes)[1]

    @property
    def parameters(self) -> int:  # type: ignore[override]
        """Learned numbers."""
        return self.member.parameters

    @property
    def bytes(self) -> int:  # type: ignore[override]
        """Their storage."""
        return self.member.bytes

    def _logits(self, batch: Any) -> np.ndarray:
        logits = arranged(self.member.predict_logits(rows_for(self.member, batch)), self._columns)
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise ValueError(f"student: expected logits [N, {len(self.classes)}]; got {list(logits.shape)}")
        if np.isnan(logits).any():
            rows = np.flatnonzero(np.isnan(logits).any(1))
            raise BadRows(
                f"student: expected numbers; row {rows[0]} has NaN among its logits ({len(rows)} such rows)",
                rows,
            )
        return self.scaling.logits(logits).astype(np.float32)

    def _moments(self, batch: Any) -> Moments:
        mean, variance = moments_of(self.member, rows_for(self.member, batch))
        if self._columns is not None:
            mean, variance = (
                mean[:, self._columns],
                None if variance is None else variance[:, self._columns],
            )
        if mean.shape[1] != len(self.classes):
            raise ValueError(f"student: expected means [N, {len(self.classes)}]; got {list(mean.shape)}")
        return self.scaling.moments(Moments(mean, variance))

    def predict_uncertainty(self, samples: Any) -> Uncertainties:
        """The total, data and knowledge uncertainty [N] of a student that has a head for each member.

        Knowledge uncertainty is large on rows that the members know too little of, so that they differ; data
        uncertainty on rows that all of them find hard. They are of the heads as trained: a temperature has no
        part in them.

        Raises
        ------
        ValueError
            The student was not trained by ``method: hydra``, so it predicts one distribution.
        """

        def of_batch(batch: Any) -> Uncertainties:
            return uncertainties_of(*heads_of(self.member, rows_for(self.member, batch)))

        parts = self._in_parts(samples, of_batch)
        return Uncertainties(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def save(self, folder: Path | str) -> None:
        """Write the member's files and, last, ``student.json``. Nothing is pickled.

        Raises
        ------
        ValueError
            The member can't be saved; its own message.
        """
        folder = Path(folder)
        (folder / FILE).unlink(missing_ok=True)
        self.member.save(folder)
        write_json(folder / FILE, description(self))

    @classmethod
    def load(cls, folder: Path | str, trusted: Sequence[str] = ()) -> Student:
        """A saved student.

        Parameters
        ----------
        folder : path
        trusted : sequence of str
            Class paths that may be built beside torch's, this package's and scikit-learn's own.

        Raises
        ------
        ValueError
            The folder holds no student, one of a newer version (names it), or one that needs a class that is
            not trusted.
        ImportError
            A library that it needs is not installed; names it.
        """
        folder = Path(folder)
        try:
            content = read_json(folder / FILE)
        except ValueError:
            raise ValueError(
                f"path: {folder / FILE} is damaged: it is not JSON. In a run's folder delete it, and "
                "`ensdistill run` writes it again; otherwise export or save the student again"
            ) from None
        about = check_format(content, folder / FILE)
        return cls(load_member(folder, trusted), **settings_of(about))

    def save_pretrained(self, folder: Path | str, name: str | None = None) -> None:
        """Write the files of :meth:`save`, a model card (``README.md``, unless there is one) and the Hub's
        ``config.json``.

        Parameters
        ----------
        folder : path
        name : str, optional
            The repository's, for the card; by default the folder's own name.
        """
        from ensdistill.student.serving.hub import OnHub

        card = {"name": name or Path(folder).resolve().name}
        OnHub(self).save_pretrained(folder, model_card_kwargs=card)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the student to the Hugging Face Hub: safetensors, JSON, and a model card.

        Parameters
        ----------
        repo_id : str
            Such as ``"me/penguins"``; the repository is made if there is none.
        **options
            ``private``, ``token``, ``branch``, ``commit_message``, ``create_pr`` and the others of
            :meth:`huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns
        -------
        str
            The address of the commit.

        Raises
        ------
        ValueError
            The member can't be saved without pickle; its own message.
        """
        from ensdistill.student.serving.hub import OnHub

        return str(OnHub(self).push_to_hub(repo_id, model_card_kwargs={"name": repo_id}, **options))

    @classmethod
    def from_pretrained(cls, name: Path | str, *, trusted: Sequence[str] = (), **options: Any) -> Student:
        """A student from the Hugging Face Hub, or from a folder. Nothing is unpickled.

        Parameters
        ----------
        name : str or path
            Such as ``"me/penguins"``, or a folder that :meth:`save_pretrained` or :meth:`save` wrote.
        trusted : sequence of str
            As for :meth:`load`.
        **options
            ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and the others of
            :meth:`huggingface_hub.ModelHubMixin.from_pretrained`.

        Raises
        ------
        ValueError
            As by :meth:`load`.
        huggingface_hub.errors.RepositoryNotFoundError
            There is no such repository, or it needs a token.
        """
        from ensdistill.student.serving.hub import OnHub

        load = partial(cls.load, trusted=trusted)
        return OnHub.from_pretrained(name, load=load, **options).student


def description(student: Described) -> dict[str, Any]:
    """The content of ``student.json``, by which any version finds out whether it can read the rest."""
    return {
        "format": FORMATS[student.task],
        "version": ensdistill.__version__,
        "classes": list(student.classes),
        "labels": list(student.labels),
        "samples": student.samples,
        "temperature": student.temperature,
        "about": student.about,
        **student.settings(),
    }


def settings_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :class:`Described` from a student's description."""
    more = ("task", "thresholds", "variance_factor", "noise")
    return {key: about[key] for key in (*KEYS, *more) if key in about}


def check_format(about: Any, file: Path) -> dict[str, Any]:
    """The content of a student's description; ValueError where it is none, or a newer version's."""
    if about is None:
        raise ValueError(f"{file.parent}: expected a saved student; there is no {file.name}")
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise ValueError(f"{file}: expected the description of a student; got something else")
    if about["format"] > max(FORMATS.values()):
        raise ValueError(
            f"{file}: was written by ensdistill {about.get('version')} (format {about['format']}); this is "
            f"version {ensdistill.__version__}, which reads format {max(FORMATS.values())}: pip install "
            "--upgrade ensdistill"
        )
    if missing := [key for key in KEYS if key not in about]:
        raise ValueError(f"{file}: expected {', '.join(KEYS)}; {missing[0]} is missing")
    return about
