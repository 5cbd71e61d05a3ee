"""XGBoost with the objective of soft targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensdistill.student.trees.fits import Boosted, Fit

DROPPED = (
    "n_estimators",
    "early_stopping_rounds",
    "eval_metric",
    "callbacks",
    "importance_type",
    "enable_categorical",
    "feature_types",
    "missing",
    "verbosity",
)
REFUSED: dict[str, tuple[Any, ...]] = {
    "objective": ("binary:logistic", "multi:softprob", "multi:softmax"),
    "base_score": (),
    "booster": ("gbtree", "dart"),  # a linear one has no rounds to choose from
    "scale_pos_weight": (1, 1.0),
    "num_class": (),
    "use_label_encoder": (False,),
}
FACTOR = 2.0  # as XGBoost's multi:softprob


def parameter_names() -> tuple[set[str], set[str]]:
    """The names of an XGBClassifier's parameters, and some others of the library."""
    from xgboost import XGBClassifier

    others = (
        "alpha eta lambda min_split_loss nthread seed seed_per_iteration num_boost_round updater "
        "refresh_leaf process_type max_cached_hist_node predictor validate_parameters "
        "rate_drop skip_drop one_drop "
        "sample_type normalize_type disable_default_eval_metric"
    )
    return set(XGBClassifier().get_params()), {*others.split(), *DROPPED, *REFUSED}


def fit_xgboost(fit: Fit) -> Boosted:
    """Train a booster of ``multi:softprob`` (of two classes: ``binary:logistic``) with these derivatives."""
    import xgboost

    given = fit.estimator.get_params()
    kind, judge = given.get("booster") or "gbtree", fit.judge_for(given.get("booster"))
    settings = fit.parameters((*DROPPED, *REFUSED)) | {"booster": kind}
    rounds = int(given.get("n_estimators") or 100)
    start = fit.start()
    settings.setdefault("random_state", fit.seed % 2**31)
    settings |= {"verbosity": given.get("verbosity") or 0, "disable_default_eval_metric": True}
    if fit.classes == 2:
        settings |= {"objective": "binary:logistic", "base_score": float(1 / (1 + np.exp(-start[0])))}
    else:
        settings |= {"objective": "multi:softprob", "num_class": fit.classes, "base_score": start.tolist()}
    missing = given.get("missing")

    def matrix(features: Any) -> Any:
        return xgboost.DMatrix(
            features,
            missing=np.nan if missing is None else missing,
            feature_types=given.get("feature_types"),
            enable_categorical=bool(given.get("enable_categorical")),
            nthread=given.get("n_jobs"),
        )

    def derivatives(scores: np.ndarray, _: Any) -> tuple[np.ndarray, np.ndarray]:
        gradient, curvature = fit.derivatives(scores, FACTOR)
        return gradient.astype(np.float32), np.maximum(curvature, 1e-16).astype(np.float32)

    # XGBoost's own early stopping reads six digits of a metric from a text.
    values: list[float] = []

    def record(scores: np.ndarray, _: Any) -> tuple[str, float]:
        values.append(fit.value(scores))
        return "value", values[-1]

    class Stop(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return len(values) - 1 - int(np.argmax(values)) >= patience

    more: dict[str, Any] = {}
    if judge is not None:
        patience = judge.ends(rounds)
        evals = [(matrix(judge.samples), "validation")]
        more = {"evals": evals, "custom_metric": record, "verbose_eval": False, "callbacks": [Stop()]}
    booster = xgboost.train(settings, matrix(fit.features), rounds, obj=derivatives, **more)
    kept = int(np.argmax(values)) + 1 if values else booster.num_boosted_rounds()
    return Boosted(booster[:kept] if kept < booster.num_boosted_rounds() else booster, kept, rounds)
