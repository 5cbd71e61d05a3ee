"""Tiny searches for several labels and for numbers: a forest's targets for 900 rows of a noisy truth."""

from __future__ import annotations

import numpy as np
from search_helpers import FAST, Tiny
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

from ensdistill.cache import cache_targets
from ensdistill.data import Rows
from ensdistill.student.search import search_student
from ensdistill.teachers import Ensemble

LABELLED, ROWS, JUDGED = 60, 700, 300


def truth(task):
    """Inputs and labels of a noisy truth: three labels, of which some are unknown, or a number."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(7000, 4)).astype(np.float32)
    hidden = np.stack([np.sin(2 * x[:, 1]) + x[:, 2], x[:, 0] - x[:, 3], np.abs(x[:, 0])], 1)
    if task == "multilabel":
        labels = (hidden - 0.4 + 0.5 * generator.logistic(size=hidden.shape) > 0).astype(np.int8)
        return x, labels
    return x, 1000 + 50 * (hidden.sum(1) + 1.5 * generator.normal(size=len(x)))[:, None]


class TaskMaterial:
    """Rows and cache of two forests that have learned from 6 000 other rows, so that they are far better than a
    student that learns from the labelled ones; and validation rows."""

    def __init__(self, folder, task):
        x, y = truth(task)
        kind = ExtraTreesClassifier if task == "multilabel" else ExtraTreesRegressor
        names = ["red", "green", "blue"] if task == "multilabel" else ["price"]
        forests = [
            kind(20, min_samples_leaf=5, random_state=i).fit(x[1000:], np.squeeze(y[1000:])) for i in range(2)
        ]
        self.ensemble = Ensemble.from_members(forests, task=task, classes=names)
        known = y[:ROWS].copy()
        known[LABELLED:] = -1 if task == "multilabel" else np.nan
        held = y[ROWS : ROWS + JUDGED].copy()
        if task == "multilabel":
            known[:5, 1] = held[:9, 2] = -1
        else:
            moments = self.ensemble.predict_moments(x[ROWS:1000])
            self.ensemble.calibrate(moments, held)
        self.rows = Rows(x[:ROWS], np.arange(ROWS), known)
        self.validation = Rows(x[ROWS : ROWS + JUDGED], 10_000 + np.arange(JUDGED), held)
        self.cache = cache_targets(self.ensemble, self.rows, folder)
        method = "predict_proba" if task == "multilabel" else "predict_distribution"
        self.asked = getattr(self.ensemble, method)(self.validation.inputs)

    def search(self, **settings):
        given = {"validation": self.validation, "ensemble": self.asked, "families": [Tiny()], **FAST}
        return search_student(self.rows, self.cache, **(given | settings))
