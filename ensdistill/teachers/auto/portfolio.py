"""The members that :mod:`ensdistill.teachers.auto.plan` chooses from, in the order of their worth.

A portfolio of fixed settings needs no search on the user's rows (Erickson et al., 2020, "AutoGluon-Tabular:
Robust and Accurate AutoML for Structured Data"; Salinas and Erickson, 2023, "TabRepo"). The order was chosen
on five tables (letter, spam, income, digits, diamonds): unlike kinds of members come before further members
of one kind, because a mixture gains by unlike errors. The seconds of a fit follow a rule and are never
measured, so the same rows and minutes make the same ensemble on every machine. The rule's constants were
measured on one core of a two-core Intel Xeon.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensdistill.common.optimization import Optimization
from ensdistill.common.tasks import TASKS, Task
from ensdistill.data.preprocess import TableDefaults, power_scaler
from ensdistill.models import MLP, Numbers, TabularMLP
from ensdistill.teachers.auto.facts import Facts
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers

Size = Mapping[str, float]
"""Settings that decide the cost of a fit: rounds and rate, trees, or epochs."""

BATCH = 128
LEAST_STEPS = 300  # of a network
PATIENCE = 0.1  # share of the rounds without an improvement after which a booster stops
EXTRAS = {  # the extras of this package that have a package
    "lightgbm": "trees",
    "xgboost": "trees",
    "catboost": "trees",
    "rtdl_num_embeddings": "table",
}


@dataclass(frozen=True)
class Entry:
    """A kind of member of the portfolio.

    Parameters
    ----------
    name : str
        Of the member in the ensemble.
    sizes : tuple of Size
        From the dearest to the cheapest.
    make : callable
        The recipe for some rows, in one of the sizes; it imports ``package``.
    seconds : callable
        Seconds of one fit to all rows, on one core: a rule by the facts alone.
    package : str
        The optional package that it needs; "" where it needs none.
    tasks : tuple of str
        Those that it has members for.
    """

    name: str
    sizes: tuple[Size, ...]
    make: Callable[[str, Facts, Size], Recipe]
    seconds: Callable[[Facts, Size], float]
    package: str = ""
    tasks: tuple[Task, ...] = TASKS


def _rounds(*pairs: tuple[float, int]) -> tuple[Size, ...]:
    return tuple({"learning_rate": rate, "rounds": rounds} for rate, rounds in pairs)


RATES = _rounds((0.03, 800), (0.05, 500), (0.1, 250), (0.2, 120), (0.3, 60))
TREES: tuple[Size, ...] = ({"trees": 300}, {"trees": 100}, {"trees": 50})
EPOCHS: tuple[Size, ...] = ({"epochs": 60}, {"epochs": 30}, {"epochs": 15})


def _boosting_seconds(trees: str, work: float, fixed: float, facts: Facts, size: Size) -> float:
    """Of all rounds, each of one tree, or of one for each class: ``work`` for a number of the rows, and
    ``fixed`` for a tree. A fit that stops early is followed by one to all rows."""
    count = facts.trees if trees == "each class" else 1 + 0.2 * facts.trees
    return 1.8 * size["rounds"] * count * (work * facts.rows * facts.columns + fixed)


def _forest_seconds(work: float, facts: Facts, size: Size) -> float:
    # With unknown labels there is a forest for each.
    work *= facts.classes if facts.gaps else 1
    tree = work * facts.rows * math.log2(facts.rows + 2) * math.sqrt(facts.columns)
    return size["trees"] * (tree + 1e-3) + 0.05


def _network_seconds(hidden: list[int], width: int, slow: float, facts: Facts, size: Size) -> float:
    """``width`` numbers stand for one column of numbers, each at ``slow`` seconds for a row."""
    inputs = facts.numbers * width + facts.encoded - facts.numbers
    parameters = inputs * hidden[0] + sum(a * b for a, b in pairwise(hidden))
    step = 2.5e-3 + 6 * BATCH * parameters / 4e10 + slow * BATCH * facts.numbers * width
    return _steps(facts, size) * step


def _steps(facts: Facts, size: Size) -> int:
    return max(LEAST_STEPS, math.ceil(size["epochs"] * facts.rows / BATCH))


def _lightgbm(name: str, facts: Facts, size: Size, **more: Any) -> Recipe:
    from lightgbm import LGBMClassifier, LGBMRegressor

    kind = LGBMRegressor if facts.task == "regression" else LGBMClassifier
    settings = {"learning_rate": size["learning_rate"], "n_jobs": 1, "verbose": -1, **more}
    if facts.several:  # of its models, each predicts one column
        return _each(kind(n_estimators=_without_stopping(size), **settings), name, facts)
    model = kind(n_estimators=int(size["rounds"]), early_stopping_round=_patience(size), **settings)
    return SklearnMembers(model, name=name, refit=True)


def _xgboost(name: str, facts: Facts, size: Size) -> Recipe:
    from xgboost import XGBClassifier, XGBRegressor

    kind = XGBRegressor if facts.task == "regression" else XGBClassifier
    settings = {"max_depth": 6, "subsample": 0.8, "colsample_bytree": 0.8, "n_jobs": 1}
    settings["learning_rate"] = size["learning_rate"]
    if facts.gaps:
        return _each(kind(n_estimators=_without_stopping(size), **settings), name, facts)
    model = kind(n_estimators=int(size["rounds"]), early_stopping_rounds=_patience(size), **settings)
    return SklearnMembers(model, name=name, refit=True)


def _catboost(name: str, facts: Facts, size: Size) -> Recipe:
    from catboost import CatBoostClassifier, CatBoostRegressor

    numbers = facts.task == "regression"
    kind = CatBoostRegressor if numbers else CatBoostClassifier
    settings: dict[str, Any] = {"thread_count": 1, "verbose": False}
    settings["learning_rate"] = size["learning_rate"]
    if facts.gaps:
        return _each(kind(iterations=_without_stopping(size), **settings), name, facts)
    if facts.several:
        settings["loss_function"] = "MultiRMSE" if numbers else "MultiLogloss"
    model = kind(iterations=int(size["rounds"]), early_stopping_rounds=_patience(size), **settings)
    return SklearnMembers(model, name=name, refit=True)


def _each(model: Any, name: str, facts: Facts) -> Recipe:
    """A copy for each label or number; only this takes unknown labels."""
    kind = MultiOutputRegressor if facts.task == "regression" else MultiOutputClassifier
    return SklearnMembers(kind(model), name=name)


def _without_stopping(size: Size) -> int:
    """Rounds of a booster within another estimator, where it can't be passed rows by which it would stop."""
    return max(1, int(size["rounds"]) // 2)


def _patience(size: Size) -> int:
    return max(10, round(PATIENCE * size["rounds"]))


def _histograms(name: str, facts: Facts, size: Size) -> Recipe:
    kind = HistGradientBoostingRegressor if facts.task == "regression" else HistGradientBoostingClassifier
    rounds = _without_stopping(size) if facts.several else int(size["rounds"])
    model = kind(
        learning_rate=size["learning_rate"],
        max_iter=rounds,
        max_leaf_nodes=15,
        early_stopping=False,
    )
    return _each(model, name, facts) if facts.several else SklearnMembers(model, name=name)


def _forest(classifier: Any, regressor: Any, leaf: int, name: str, facts: Facts, size: Size) -> Recipe:
    kind = regressor if facts.task == "regression" else classifier
    model = kind(int(size["trees"]), min_samples_leaf=leaf)
    return _each(model, name, facts) if facts.gaps else SklearnMembers(model, name=name)


def _linear(name: str, facts: Facts, size: Size) -> Recipe:
    preprocess = TableDefaults() if facts.kind == "table" else _filled(StandardScaler())
    if facts.task == "regression":
        return SklearnMembers(Ridge(), name=name, preprocess=preprocess)
    model = MultiOutputClassifier(LogisticRegression(max_iter=int(size["steps"])))
    return SklearnMembers(model, name=name, preprocess=preprocess)


def _linear_seconds(facts: Facts, size: Size) -> float:
    return 0.02 + 4e-9 * size["steps"] * facts.rows * facts.encoded * facts.classes


def _network(
    hidden: list[int],
    dropout: float,
    numbers: Numbers,
    rate: float,
    smoothing: float,
    name: str,
    facts: Facts,
    size: Size,
) -> Recipe:
    """Categories by embeddings, numbers by embeddings of their own where ``numbers`` names a kind."""
    given: dict[str, Any] = {"hidden": hidden, "dropout": dropout, "activation": "silu"}
    if facts.kind == "table":
        model: Any = partial(TabularMLP, numbers=numbers, **given)
        preprocess: Any = TableDefaults(codes=10)
    elif numbers == "plain":
        model, preprocess = partial(MLP, **given), _filled(power_scaler())
    else:
        model = partial(TabularMLP, numeric=facts.numbers, numbers=numbers, **given)
        preprocess = _filled(power_scaler())
    smoothing = 0.0 if facts.task == "regression" else smoothing
    optimization = Optimization(
        _steps(facts, size), BATCH, rate, weight_decay=0.05, label_smoothing=smoothing
    )
    variance = facts.task == "regression"
    return TorchMembers(model, 1, name, optimization=optimization, preprocess=preprocess, variance=variance)


def _filled(scaler: Any) -> Any:
    return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), scaler)


def _boosted(
    name: str, make: Callable[..., Recipe], work: float, fixed: float, sizes: tuple[Size, ...], package: str
) -> Entry:
    trees = "all classes" if package == "catboost" else "each class"
    return Entry(name, sizes, make, partial(_boosting_seconds, trees, work, fixed), package)


def _networks(
    name: str, hidden: list[int], dropout: float, numbers: Numbers, sizes: tuple[Size, ...], **more: float
) -> Entry:
    package, width, slow = {
        "plain": ("", 1, 0.0),
        "piecewise": ("rtdl_num_embeddings", 12, 5e-8),
        "periodic": ("rtdl_num_embeddings", 12, 1e-7),
    }[numbers]
    settings = (hidden, dropout, numbers, more.get("rate", 3e-3), more.get("smoothing", 0.0))
    seconds = partial(_network_seconds, hidden, width, slow)
    return Entry(name, sizes, partial(_network, *settings), seconds, package)


def _forests(name: str, classifier: Any, regressor: Any, leaf: int) -> Entry:
    make = partial(_forest, classifier, regressor, leaf)
    return Entry(name, TREES, make, partial(_forest_seconds, 2.5e-8))


RANDOM_SPLITS: dict[str, Any] = {"extra_trees": True, "num_leaves": 15}
PORTFOLIO: tuple[Entry, ...] = (
    _boosted("lightgbm", _lightgbm, 1e-8, 3e-4, RATES, "lightgbm"),
    _networks("mlp", [256, 256], 0.2, "plain", EPOCHS, rate=1e-2, smoothing=0.1),
    _forests("extra_trees", ExtraTreesClassifier, ExtraTreesRegressor, 1),
    _boosted("catboost", _catboost, 8e-8, 1e-3, RATES, "catboost"),
    Entry("linear", ({"steps": 300},), _linear, _linear_seconds, tasks=("multilabel", "regression")),
    _networks("mlp_dropout", [256, 256], 0.5, "plain", ({"epochs": 10},), rate=1e-3),
    _forests("extra_trees_soft", ExtraTreesClassifier, ExtraTreesRegressor, 4),
    _boosted("xgboost", _xgboost, 2e-8, 3e-4, RATES[2:], "xgboost"),
    _networks("mlp_piecewise", [256, 256], 0.2, "piecewise", EPOCHS),
    _boosted("lightgbm_random", partial(_lightgbm, **RANDOM_SPLITS), 7e-9, 3e-4, RATES, "lightgbm"),
    _networks("mlp_wide", [512, 512], 0.3, "plain", EPOCHS, rate=5e-3, smoothing=0.1),
    _forests("random_forest", RandomForestClassifier, RandomForestRegressor, 1),
    _networks("mlp_periodic", [256, 256], 0.2, "periodic", EPOCHS),
    _boosted("boosting", _histograms, 2e-8, 1e-3, RATES[2:], ""),
)
