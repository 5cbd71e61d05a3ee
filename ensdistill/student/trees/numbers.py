"""Regressors as students: fitted to the mixture's mean by their libraries' own squared error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensdistill.student.trees import of_catboost, of_lightgbm
from ensdistill.student.trees.targets import Numbers
from ensdistill.teachers.members import BoostedMember, ColumnsMember, Member, SklearnMember
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.stack.fitting import copy_of, evaluation_arguments, seeds_of
from ensdistill.teachers.stack.row_weights import fit_weighted, takes_weights

# Of boosters the names and the values of the squared error.
SQUARED: dict[str, tuple[Any, ...]] = {
    "lightgbm": ("regression", "regression_l2", "l2", "mean_squared_error", "mse"),
    "xgboost": ("reg:squarederror",),
    "catboost": ("RMSE",),
}
_DROPPED = {
    "lightgbm": of_lightgbm.DROPPED,
    "xgboost": ("early_stopping_rounds", "eval_metric", "callbacks"),
    "catboost": of_catboost.DROPPED,
}
_ROUNDS = {"lightgbm": of_lightgbm.ROUNDS, "xgboost": ("n_estimators",), "catboost": of_catboost.ROUNDS}


@dataclass(frozen=True, eq=False)
class HeldNumbers:
    """Rows that a regressor is not fitted to.

    Parameters
    ----------
    features : ndarray [V, F], frame, or list of texts
    targets : ndarray [V, D], float64
        The mixture's means.
    weights : ndarray [V], or None
        None where all rows count alike.
    patience : int or None
        Rounds without a better one after which a booster stops.
    """

    features: Any
    targets: np.ndarray
    weights: np.ndarray | None
    patience: int | None


def check_regressor(estimator: Any) -> None:
    """Raise ValueError for an estimator that learns no numbers, or by another error than the squared one."""
    from sklearn.base import is_regressor

    library, kind = library_of(estimator), type(estimator).__name__
    classifies = hasattr(estimator, "predict_proba") or not hasattr(estimator, "predict")
    if classifies or (library is None and not is_regressor(estimator)):
        raise ValueError(f"estimator: expected a regressor for the task regression; got {kind}")
    if library is None:
        return
    given = estimator.get_params()
    for name in ("objective", "loss_function"):
        if given.get(name) not in (None, *SQUARED[library]):
            raise ValueError(
                f"estimator: {kind}: {name}: expected {SQUARED[library][0]!r} for a student, which is fitted "
                f"to the ensemble's means; got {given[name]!r}"
            )


def fit_numbers(
    estimator: Any,
    features: Any,
    numbers: Numbers,
    held: HeldNumbers | None,
    classes: tuple[str, ...],
    seed: int,
    name: str,
) -> tuple[Member, str]:
    """A member of regressors, and the way in which it was fitted.

    One estimator learns all numbers where it can; else there is one for each.
    """
    from sklearn.base import is_regressor

    weights = uneven(numbers.weights)
    library, targets = library_of(estimator), numbers.targets
    if weights is not None and library is None and not takes_weights(estimator):
        raise ValueError(
            f"student: the fit of {type(estimator).__name__} takes no sample_weight, which rows of different "
            "weights need, and an alpha below 1: choose an estimator whose fit does, or alpha=1"
        )
    fit: Callable[..., tuple[Any, str]] = _boosted if library else _plain
    several = library is None and is_regressor(estimator) and _takes_several(estimator)
    if several and len(classes) > 1:
        made, way = fit(estimator, features, targets, weights, held, seed)
        return SklearnMember(made, name=name, classes=classes, task="regression"), way
    members, ways = [], []
    for column, own in enumerate(classes):
        part = None
        if held is not None:
            part = HeldNumbers(held.features, held.targets[:, column], held.weights, held.patience)
        made, way = fit(estimator, features, targets[:, column], weights, part, seed)
        kind = BoostedMember if library else SklearnMember
        named = name if len(classes) == 1 else f"{name}: {own}"
        members.append(kind(made, name=named, classes=[own], task="regression"))
        ways.append(way)
    if len(members) == 1:
        return members[0], ways[0]
    return ColumnsMember(members, name=name, classes=classes, task="regression"), "; ".join(
        dict.fromkeys(ways)
    )


def uneven(weights: np.ndarray) -> np.ndarray | None:
    """The weights; None where all are alike."""
    return None if np.ptp(weights) == 0 else weights


def _takes_several(estimator: Any) -> bool:
    return bool(estimator.__sklearn_tags__().target_tags.multi_output)


def _plain(
    estimator: Any, features: Any, targets: np.ndarray, weights: Any, held: Any, seed: int
) -> tuple[Any, str]:
    made = copy_of(estimator)
    made.set_params(**seeds_of(made, seed))
    features = features.astype(np.float64) if isinstance(features, np.ndarray) else features
    return fit_weighted(made, type(estimator).__name__, features, targets, weights, {}), "squared error"


def _boosted(
    estimator: Any,
    features: Any,
    targets: np.ndarray,
    weights: np.ndarray | None,
    held: HeldNumbers | None,
    seed: int,
) -> tuple[Any, str]:
    library = str(library_of(estimator))
    made, more = _prepared(estimator, library, seed), {}
    allowed = next((made.get_params()[n] for n in _ROUNDS[library] if made.get_params().get(n)), None)
    rounds = int(allowed or (1000 if library == "catboost" else 100))
    if held is not None and not _keeps_all(made):
        patience = rounds if held.patience is None else held.patience
        more = _stopping(made, library, held, patience)
    if library == "xgboost":
        more["verbose"] = False
    if library == "catboost" and isinstance(features, np.ndarray):
        features = of_catboost.with_columns(features, made.get_params().get("cat_features"))
    made.fit(features, targets, sample_weight=weights, **more)
    kept = rounds
    if more.keys() & {"eval_set", "eval_X"}:
        kept = {
            "lightgbm": lambda: made.best_iteration_,
            "xgboost": lambda: made.best_iteration + 1,
            "catboost": lambda: made.tree_count_,
        }[library]()
    return made, f"squared error, {kept or rounds} of {rounds} rounds"


def _prepared(estimator: Any, library: str, seed: int) -> Any:
    """A copy without settings of early stopping and metrics, with a seed, which is quiet."""
    given = {
        key: value
        for key, value in estimator.get_params().items()
        if value is not None and key not in _DROPPED[library]
    }
    if library == "lightgbm":
        if not {"verbose", "verbosity"} & set(given):
            given["verbosity"] = -1
        # LightGBM times both layouts and takes the faster one, so that two runs could differ in bits.
        if not {"force_row_wise", "force_col_wise", "deterministic"} & set(given):
            given |= {"deterministic": True, "force_row_wise": True}
    if library == "catboost":
        given |= {"verbose": False, "allow_writing_files": False}
    made = type(estimator)(**given)
    return made.set_params(**seeds_of(made, seed))


def _keeps_all(estimator: Any) -> bool:
    """Whether the rounds can't be judged one after the other: DART scales earlier trees anew."""
    given = estimator.get_params()
    return any(given.get(name) == "dart" for name in ("booster", *of_lightgbm.KINDS))


def _stopping(made: Any, library: str, held: HeldNumbers, patience: int) -> dict[str, Any]:
    """The arguments of a fit that keeps the best round on held-out rows."""
    features = held.features
    if library == "catboost" and isinstance(features, np.ndarray):
        features = of_catboost.with_columns(features, made.get_params().get("cat_features"))
    more = evaluation_arguments(made, features, held.targets, held.weights)
    if library == "lightgbm":
        import lightgbm

        stop = lightgbm.early_stopping(patience, verbose=False)
        return more | {"eval_metric": "l2", "callbacks": [stop]}
    if library == "xgboost":
        made.set_params(early_stopping_rounds=patience, eval_metric="rmse")
        return more
    return more | {"early_stopping_rounds": patience, "use_best_model": True}
