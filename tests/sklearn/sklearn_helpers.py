"""Small classifiers and tables for the tests of the face for scikit-learn."""

from functools import partial

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from ensdistill import Optimization
from ensdistill.models import MLP
from ensdistill.sklearn import DistilledClassifier

FAST = Optimization(steps=150, batch_size=32, learning_rate=0.02)
STUDENT = partial(MLP, hidden=[16])


def small(teachers=None, student=STUDENT, **more):
    """A classifier whose fit takes some tenths of a second, without a report."""
    given = [DecisionTreeClassifier(max_depth=4), LogisticRegression()] if teachers is None else teachers
    settings = {"validation_fraction": None, "synthetic": None, "random_state": 0}
    if student is STUDENT:
        settings["optimization"] = FAST
    return DistilledClassifier(given, student, **{**settings, **more})


def takes_gaps(**more):
    return small([HistGradientBoostingClassifier(max_iter=20), ExtraTreesClassifier(20)], **more)


def numbers(rows=240, seed=0):
    """Two interleaved classes on two numbers: float64 [N, 2] of unlike scales, labels "no" and "yes"."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2))
    y = np.where(x[:, 0] + x[:, 1] ** 2 + 0.3 * generator.normal(size=rows) > 0.7, "yes", "no")
    return x * [1.0, 500.0], y


def table(rows=240, seed=0):
    """A frame with texts, numbers and gaps in both, and labels."""
    generator = np.random.default_rng(seed)
    city, age = generator.choice(["Rome", "Oslo", "Bonn"], rows), generator.normal(40, 9, rows)
    y = np.where((city == "Rome") ^ (age > 40), "yes", "no")
    frame = pd.DataFrame({"city": city, "age": age, "count": generator.integers(0, 9, rows)})
    frame.loc[::11, "age"], frame.loc[::13, "city"] = np.nan, None
    return frame, y
