"""Uncertainties of a run's models on the test rows, and on rows out of distribution."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ensdistill.common.errors import WrongArgument
from ensdistill.common.random import derive_seed
from ensdistill.data import Split
from ensdistill.data.samples import form, joined, subset
from ensdistill.data.strange import shuffled_columns
from ensdistill.job.config import Config, DistillConfig
from ensdistill.job.method_config import loss_of
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.student_config import StudentConfig
from ensdistill.job.unit import Unit
from ensdistill.report.row_scores import entropy
from ensdistill.report.spread import Spread
from ensdistill.student.methods import Mix
from ensdistill.student.methods.dirichlet import uncertainties
from ensdistill.student.methods.distribution import DistributionDistillation
from ensdistill.student.methods.heads import Heads
from ensdistill.student.methods.proxy_dirichlet import LARGEST, ProxyDirichlet
from ensdistill.student.serving.heads import heads_of, uncertainties_of
from ensdistill.teachers.fitting.calibration import probabilities
from ensdistill.teachers.members import ArrayMember, Member, load_member
from ensdistill.teachers.predict import outputs_of

MOST = 5000  # rows out of distribution
KEEPS = (Heads, ProxyDirichlet, DistributionDistillation)
SHUFFLED = (
    "the test rows with each column's values exchanged among the rows, independently of the other columns "
    "(name a data set of your own under ood)"
)


class Spreads:
    """The rows out of distribution of each seed, and the models' uncertainties on them.

    None is computed but for classification, where a student's method keeps the members' spread or the
    settings name rows under ``ood``.

    Parameters
    ----------
    run : RunFolder

    Attributes
    ----------
    rows : list of samples
        One for each seed; empty where nothing is computed.
    about : str
        A description of the rows out of distribution.
    """

    def __init__(self, run: RunFolder) -> None:
        config = run.config
        self.run, self.about, self.rows = run, "", list[Any]()
        wanted = config.ood is not None or any(map(self._method, config.distill.students))
        if config.split(0).task != "classification" or not wanted:
            return
        rows = [strange_rows(config, seed) for seed in range(config.seeds)]
        if any(one is None for one in rows):
            warnings.warn(
                "ood: the samples have no columns to shuffle, so the report can't show how well the members' "
                "disagreement tells rows out of distribution: name a data set of such rows under ood",
                stacklevel=2,
            )
            return
        self.rows = rows
        self.about = SHUFFLED if config.ood is None else f"{type(config.ood).__name__} under ood"

    def of_ensembles(self, ensembles: Sequence[Any]) -> list[Spread]:
        """Of the ensembles of all seeds; none where a member has stored predictions, which are of known rows
        alone."""
        if not self.rows or any(isinstance(m, ArrayMember) for e in ensembles for m in e.members):
            return []
        found = []
        for seed, (ensemble, strange) in enumerate(zip(ensembles, self.rows, strict=True)):
            test = self.run.config.split(seed).test
            known = members_uncertainties(ensemble.for_uids(test.uids), test.inputs)
            odd = members_uncertainties(ensemble, strange)
            found.append(Spread(known[0], odd[0], known[1], odd[1]))
        return found

    def of_student(self, name: str) -> dict[str, list[Spread]]:
        """Of a student and of *direct*, by kind."""
        if not self.rows:
            return {}
        kinds = {"direct": ("direct", None), "student": ("distill", self._method(name))}
        found: dict[str, list[Spread]] = {}
        for kind, (stage, method) in kinds.items():
            for seed, strange in enumerate(self.rows):
                place = self.run.of(Unit(stage, seed, name)) / kind
                member, test = load_member(place, self.run.trusted), self.run.config.split(seed).test.inputs
                known, odd = (student_uncertainties(member, method, x) for x in (test, strange))
                found.setdefault(kind, []).append(Spread(known[0], odd[0], known[1], odd[1]))
        return found

    def _method(self, name: str) -> Any:
        distill = self.run.config.distill
        return keeping_method(distill.students[name], distill)


def keeping_method(student: StudentConfig, distill: DistillConfig) -> Any:
    """The part of a student's method that keeps the members' spread; None of others."""
    own: Any = loss_of(student, distill)
    parts = own.parts if isinstance(own, Mix) else (own,)
    return next((part for part in parts if isinstance(part, KEEPS)), None)


def check_ood(config: Config) -> None:
    """Refuse rows out of distribution of another form, and where the report has no place for them.

    Raises
    ------
    ValueError
        Names the setting.
    """
    if config.ood is None:
        return
    if (task := config.split(0).task) != "classification":
        raise WrongArgument(f"ood: expected none for the task {task}, whose report has no figures of it")
    strange_rows(config, 0)


def strange_rows(config: Config, seed: int) -> Any:
    """Rows out of distribution: those of the data set that the settings name, or the test rows with shuffled
    columns; None where there are none, as of texts.

    Raises
    ------
    ValueError
        The named rows are not of the data's form.
    """
    split = config.split(seed)
    if config.ood is None:
        return shuffled_columns(_some(split.test.inputs), derive_seed("ood", seed))
    try:
        other: Split = config.ood.split(seed)
    except ValueError as error:
        kind = WrongArgument if isinstance(error, WrongArgument) else ValueError
        raise kind(f"ood.{error}") from error
    parts = [one.inputs for one in (other.labelled, other.pool, other.test) if len(one)]
    for part in parts:
        if (got := form(part)) != (expected := form(split.test.inputs)):
            raise WrongArgument(f"ood: expected samples like those of data, {expected}; got {got}")
    return _some(joined(parts))


def _some(samples: Any) -> Any:
    """At most ``MOST`` of the samples, at equal distances."""
    return subset(samples, np.unique(np.linspace(0, len(samples) - 1, min(MOST, len(samples))).astype(int)))


def members_uncertainties(ensemble: Any, samples: Any) -> tuple[np.ndarray, np.ndarray]:
    """The entropy of an ensemble's mixture, and the mutual information of class and member, [N] each."""
    logits = np.asarray(ensemble.predict_logits(samples), np.float64)
    return entropy(ensemble.combine(logits)), uncertainties_of(logits, ensemble.weights).knowledge


def student_uncertainties(member: Member, method: Any, samples: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The entropy of a student's prediction, and its part by the members' disagreement as the method keeps
    it; None of another method."""
    outputs = np.asarray(outputs_of(member, samples), np.float64)
    total = entropy(probabilities(outputs))
    if method is None:
        return total, None
    if isinstance(method, Heads):
        return total, uncertainties_of(*heads_of(member, samples)).knowledge
    alpha = torch.from_numpy(outputs).clamp(max=LARGEST).exp()
    return total, uncertainties(alpha)[2].numpy()
