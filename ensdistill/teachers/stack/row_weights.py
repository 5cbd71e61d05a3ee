"""The keyword by which the fit of an estimator takes weights of rows, through the estimators around it."""

from __future__ import annotations

from typing import Any

import numpy as np

KEYWORD = "sample_weight"


def check_takes_weights(estimator: Any, name: str) -> None:
    """Raise ValueError for an estimator whose fit takes no weights; ``name`` is the member's."""
    if not _asks_for_weights(estimator) and weight_keyword(estimator) is None:
        raise ValueError(
            f"sample_weight: {name}: the fit of {_described(estimator)} takes no sample_weight; choose an "
            "estimator that does, leave the weights out, or let this member ignore them: "
            "SklearnMembers(estimator, ignore_weights=True)"
        )


def fit_weighted(
    estimator: Any,
    name: str,
    features: Any,
    target: np.ndarray,
    weights: np.ndarray | None,
    more: dict[str, Any],
) -> Any:
    """``estimator.fit`` with weights of rows, and with ``more`` arguments; ``name`` is the member's.

    Raises
    ------
    ValueError
        There are weights, and the fit takes none.
    """
    if weights is None:
        return estimator.fit(features, target, **more)
    check_takes_weights(estimator, name)
    if not _asks_for_weights(estimator):
        return estimator.fit(features, target, **more, **{str(weight_keyword(estimator)): weights})
    from sklearn import config_context

    with config_context(enable_metadata_routing=True):
        estimator.estimator.set_fit_request(sample_weight=True)
        made = estimator.fit(features, target, **more, **{KEYWORD: weights})
    for one in (made.estimator, *made.estimators_):  # the request is no part of the fitted member
        vars(one).pop("_metadata_request", None)
    return made


def _asks_for_weights(estimator: Any) -> bool:
    """Whether weights reach the classifiers within by scikit-learn's metadata routing alone: one class
    against the rest, or against another, of an estimator that is not composed itself."""
    from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier

    if not isinstance(estimator, (OneVsRestClassifier, OneVsOneClassifier)):
        return False
    one = estimator.estimator
    composed = any(hasattr(part, "fit") for part in one.get_params().values())
    return not composed and hasattr(one, "set_fit_request") and weight_keyword(one) == KEYWORD


def weight_keyword(estimator: Any) -> str | None:
    """The keyword of ``fit`` for weights of rows; None where weights can't reach each classifier within.

    A pipeline passes them to its last step: its transformers are fitted without weights.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import StackingClassifier, VotingClassifier
    from sklearn.frozen import FrozenEstimator
    from sklearn.model_selection._search import BaseSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import has_fit_parameter

    if isinstance(estimator, Pipeline):
        step, last = estimator.steps[-1]
        inner = weight_keyword(last)
        return None if inner is None else f"{step}__{inner}"
    if isinstance(estimator, BaseSearchCV):
        return weight_keyword(estimator.estimator)
    if isinstance(estimator, (VotingClassifier, StackingClassifier)):
        # Both pass weights on under this one keyword, which a pipeline within does not take.
        within = [one for _, one in estimator.estimators if not isinstance(one, str)]
        final = getattr(estimator, "final_estimator", None)
        within += [] if final is None else [final]
        return KEYWORD if all(weight_keyword(one) == KEYWORD for one in within) else None
    if isinstance(estimator, CalibratedClassifierCV):
        # It leaves the weights out, with a mere warning, where the signature within does not name them.
        one = estimator.estimator
        direct = one is None or isinstance(one, FrozenEstimator) or has_fit_parameter(one, KEYWORD)
        return KEYWORD if direct else None
    return KEYWORD if hasattr(estimator, "fit") and has_fit_parameter(estimator, KEYWORD) else None


def _described(estimator: Any) -> str:
    """The estimator's class, with those of the estimators within that keep the weights out."""
    own = type(estimator).__name__
    inner = [one for one in estimator.get_params().values() if hasattr(one, "predict")]
    lacking = dict.fromkeys(type(one).__name__ for one in inner if weight_keyword(one) != KEYWORD)
    return f"{own} (of {', '.join(lacking)})" if lacking else own
