"""CatBoost with the objective of soft targets.

CatBoost calls an objective in Python once for each row, and keeps it in the file. Its own losses have the
same derivatives. ``CrossEntropy`` takes the probability of the second of two classes as the label. For
``MultiClass``, which has the full Hessian, a row stands once for each of its classes, with their
probabilities as weights. A temperature T scales the scores of the finished trees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.student.estimators import expanded
from ensdistill.student.trees.fits import Boosted, Fit
from ensdistill.student.trees.objective import LEAST
from ensdistill.teachers.members.categories import with_categories

DROPPED = (
    "early_stopping_rounds",
    "od_wait",
    "od_type",
    "od_pval",
    "use_best_model",
    "eval_metric",
    "eval_fraction",
    "custom_metric",
    "verbose",
    "silent",
    "logging_level",
    "verbose_eval",
    "allow_writing_files",
)
ROUNDS = ("iterations", "n_estimators", "num_boost_round", "num_trees")
REFUSED: dict[str, tuple[Any, ...]] = {
    "loss_function": ("Logloss", "CrossEntropy", "MultiClass"),
    "objective": ("Logloss", "CrossEntropy", "MultiClass"),
    "class_weights": (),
    "auto_class_weights": ("None",),
    "scale_pos_weight": (1, 1.0),
    "class_names": (),
    "classes_count": (),
    "target_border": (),
}


def fit_catboost(fit: Fit) -> Boosted:
    """Train a ``CatBoost`` of the loss CrossEntropy or MultiClass."""
    from catboost import CatBoost

    merged = fit.objective.merged()
    assert merged is not None  # the student's constructor has checked the temperature
    targets, weights, temperature = merged
    settings = fit.parameters((*DROPPED, *REFUSED))
    rounds = next((int(settings[name]) for name in ROUNDS if name in settings), 1000)
    settings = {key: value for key, value in settings.items() if key not in ROUNDS}
    if "random_seed" not in settings and "random_state" not in settings:
        settings["random_seed"] = fit.seed % 2**31
    settings |= {"iterations": rounds, "verbose": False, "allow_writing_files": False}
    columns = settings.pop("cat_features", None)
    if fit.classes == 2:
        settings["loss_function"] = "CrossEntropy"
        features, labels = fit.features, targets[:, 1]
    else:
        settings |= {"loss_function": "MultiClass", "classes_count": fit.classes}
        rows, labels, weights = _every_class(targets, weights, *expanded(targets, weights))
        features = fit.features.iloc[rows] if hasattr(fit.features, "iloc") else fit.features[rows]
    pool = _pool(features, columns, labels, weights)
    model = CatBoost(settings).fit(pool)
    kept = _best(fit, model, columns) if fit.judge is not None else model.tree_count_
    if kept < model.tree_count_:
        if settings.get("grow_policy", "SymmetricTree") == "SymmetricTree":
            model.shrink(kept)
        else:  # trees that CatBoost can't take away; it makes the same ones in a shorter training
            shorter = settings | {"iterations": kept, "learning_rate": model.learning_rate_}
            model = CatBoost(shorter).fit(pool)
    if temperature != 1:
        scale, bias = model.get_scale_and_bias()
        biases = (
            [temperature * one for one in bias] if isinstance(bias, (list, tuple)) else temperature * bias
        )
        model.set_scale_and_bias(temperature * scale, biases)
    return Boosted(model, kept, rounds)


def _every_class(
    targets: np.ndarray, of_rows: np.ndarray, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The expanded rows, and a row for each class that has none: the row of the class's largest probability.
    CatBoost fails without."""
    absent = np.setdiff1d(np.arange(targets.shape[1]), labels)
    more = targets[:, absent].argmax(0)
    counts = of_rows[more] * np.maximum(targets[more, absent], LEAST)
    return (
        np.concatenate([rows, more]),
        np.concatenate([labels, absent]),
        np.concatenate([weights, counts]),
    )


def with_columns(features: np.ndarray, columns: Any) -> Any:
    """The features, with CatBoost's categories where it has any."""
    return with_categories(features, columns) if columns else features


def _pool(features: Any, columns: Any, labels: Any = None, weights: Any = None) -> Any:
    from catboost import Pool

    if isinstance(features, np.ndarray):
        features = with_columns(features, columns)
    return Pool(features, label=labels, weight=weights, cat_features=columns)


def _best(fit: Fit, model: Any, columns: Any) -> int:
    """The round at which early stopping would have kept the trees; CatBoost has no metric of soft targets."""
    assert fit.judge is not None
    best, kept, temperature = -np.inf, 1, fit.objective.temperature
    stages = model.staged_predict(_pool(fit.judge.samples, columns), prediction_type="RawFormulaVal")
    for place, scores in enumerate(stages, 1):
        if (value := fit.value(temperature * np.asarray(scores))) > best:
            best, kept = value, place
        elif place - kept >= fit.judge.ends(model.tree_count_):
            break
    return kept
