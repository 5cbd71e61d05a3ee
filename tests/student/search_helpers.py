"""A tiny search on digits: a forest's targets for 900 rows, and candidates of a few neurons."""

from __future__ import annotations

import functools

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

from ensdistill.cache import cache_targets
from ensdistill.data import Digits, Rows
from ensdistill.data.transfer import TransferSet
from ensdistill.models import MLP
from ensdistill.student.search import Candidate, search_student
from ensdistill.teachers import Ensemble
from ensdistill.teachers.members import SklearnMember

FAST = {"trials": 3, "steps": 96, "seed": 0}


class Tiny:
    """A family of two sizes."""

    name = "tiny"

    def refuses(self, about):
        return "" if about.kind == "array" else f"it takes arrays; got {about.kind}"

    def candidates(self, about):
        return [
            Candidate("tiny", str(n), functools.partial(MLP, hidden=[n]), preprocess=None, rate=0.03)
            for n in (4, 32)
        ]


class Material:
    """Rows, cache and validation rows that the forest has not seen."""

    def __init__(self, folder):
        split = Digits(labelled=600, pool=600).split(0)
        own, held = split.labelled.take(np.arange(300)), split.labelled.take(np.arange(300, 600))
        forest = ExtraTreesClassifier(20, random_state=0).fit(own.inputs.reshape(300, -1), own.labels)
        self.ensemble = Ensemble([SklearnMember(forest, classes=split.classes)])
        part = type(split)(own, split.pool, split.test, split.classes)
        self.rows = TransferSet().build(part, 0).rows
        self.cache = cache_targets(self.ensemble, self.rows, folder)
        self.validation = Rows(held.inputs, 10_000 + np.arange(300), held.labels)
        self.probabilities = np.asarray(self.ensemble.predict_proba(held.inputs))

    def search(self, **settings):
        given = {"validation": self.validation, "ensemble": self.probabilities, "families": [Tiny()], **FAST}
        return search_student(self.rows, self.cache, **(given | settings))
