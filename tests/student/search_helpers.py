"""A tiny search on digits: a forest's targets for 900 rows, and candidates of a few neurons."""

from __future__ import annotations

import functools
from dataclasses import replace

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


class Boosters:
    """A family of two boosters, of 2 and of 8 rounds."""

    name = "boosters"

    def refuses(self, about):
        return ""

    def candidates(self, about):
        return [Candidate("boosters", str(n), estimator=self._of(n)) for n in (2, 8)]

    def _of(self, rounds):
        given = {"n_estimators": rounds, "n_jobs": 1, "verbosity": -1}
        return {"class_path": "lightgbm.LGBMClassifier", "init_args": given}


class Material:
    """Rows and cache of a forest that has learned from 700 other rows, so that it is far better than a student
    that learns from the 100 labelled ones; and 300 validation rows."""

    def __init__(self, folder):
        split = Digits(labelled=1100, pool=500).split(0)
        own, known, held = (
            split.labelled.take(np.arange(*span)) for span in ((0, 100), (100, 800), (800, 1100))
        )
        forest = ExtraTreesClassifier(30, random_state=0).fit(known.inputs.reshape(700, -1), known.labels)
        self.ensemble = Ensemble.from_members([SklearnMember(forest, classes=split.classes)])
        self.rows = TransferSet().build(replace(split, labelled=own), 0).rows
        self.folder, self.cache = folder, cache_targets(self.ensemble, self.rows, folder)
        self.flat = None
        self.validation = Rows(held.inputs, 10_000 + np.arange(300), held.labels)
        self.probabilities = np.asarray(self.ensemble.predict_proba(held.inputs))

    def search(self, **settings):
        given = {"validation": self.validation, "ensemble": self.probabilities, "families": [Tiny()], **FAST}
        return search_student(self.rows, self.cache, **(given | settings))

    def search_flat(self, **settings):
        """With inputs [N, 64], which boosters take."""
        rows, held = (replace(one, inputs=one.inputs.reshape(-1, 64)) for one in (self.rows, self.validation))
        if self.flat is None:
            self.flat = cache_targets(self.ensemble, rows, self.folder.with_name("flat"))
        given = {"validation": held, "ensemble": self.probabilities, **FAST}
        return search_student(rows, self.flat, **(given | settings))
