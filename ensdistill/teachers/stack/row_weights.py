"""Weights of rows for the fit of an estimator, through the estimators around it: by a keyword, or by
scikit-learn's metadata routing."""

from __future__ import annotations

from typing import Any

import numpy as np

KEYWORD = "sample_weight"


def takes_weights(estimator: Any) -> bool:
    """Whether weights reach the fit of each classifier or regressor within."""
    return weight_keyword(estimator) is not None or _routes_weights(estimator)


def check_takes_weights(estimator: Any, name: str) -> None:
    """Raise ValueError for an estimator whose fit takes no weights; ``name`` is the member's."""
    if not takes_weights(estimator):
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

    Weights that no keyword brings to each classifier within are routed by scikit-learn, which asks every part
    whether its fit gets them: classifiers do, transformers don't.

    Raises
    ------
    ValueError
        There are weights, and the fit takes none.
    """
    if weights is None:
        return estimator.fit(features, target, **more)
    check_takes_weights(estimator, name)
    if (keyword := weight_keyword(estimator)) is not None:
        return estimator.fit(features, target, **more, **{keyword: weights})
    from sklearn import config_context

    with config_context(enable_metadata_routing=True):
        _request(estimator)
        made = estimator.fit(features, target, **more, **{KEYWORD: weights})
    _forget_requests(made)  # they are no part of the fitted member
    return made


def _routes_weights(estimator: Any) -> bool:
    """Whether scikit-learn's metadata routing brings weights to each classifier within."""
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        return _routes_weights(estimator.steps[-1][1])
    within = _classifiers(estimator)
    if within is not None:
        return len(within) > 0 and all(_routes_weights(one) for one in within)
    return _takes_by_request(estimator)


def _takes_by_request(estimator: Any) -> bool:
    """Whether a part's own fit asks for weights, and hands them to no other part, such as a scorer."""
    from sklearn.utils.metadata_routing import MetadataRequest

    if not hasattr(estimator, "set_fit_request") or weight_keyword(estimator) != KEYWORD:
        return False
    try:
        alone = isinstance(estimator.get_metadata_routing(), MetadataRequest)
    except NotImplementedError:
        return False
    return alone and not any(hasattr(part, "fit") for part in estimator.get_params().values())


def _classifiers(estimator: Any) -> list[Any] | None:
    """The classifiers within an estimator that routes weights to them; None of any other."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import StackingClassifier, VotingClassifier
    from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier

    if isinstance(estimator, (OneVsRestClassifier, OneVsOneClassifier, CalibratedClassifierCV)):
        return [estimator.estimator]
    if not isinstance(estimator, (VotingClassifier, StackingClassifier)):
        return None
    final = getattr(estimator, "final_estimator", None)
    within = [one for _, one in estimator.estimators] + [final]
    return [one for one in within if one is not None and not isinstance(one, str)]


def _request(estimator: Any, weighed: bool = True) -> None:
    """State for each part whether its fit gets the weights: a pipeline's last step does, as with
    ``step__sample_weight``."""
    from sklearn.ensemble import StackingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, StackingClassifier) and estimator.final_estimator is None:
        estimator.final_estimator = LogisticRegression()  # the default, which can't ask for weights unstated
    if isinstance(estimator, Pipeline):
        *before, (_, last) = estimator.steps
        for _, step in before:
            _request(step, False)
        _request(last, weighed)
    elif weighed and (within := _classifiers(estimator)) is not None:
        if hasattr(estimator, "set_fit_request"):
            estimator.set_fit_request(**{KEYWORD: True})  # a calibrator takes them itself
        for one in within:
            _request(one)
    elif not isinstance(estimator, str):
        own = [part for part in estimator.get_params().values() if hasattr(part, "fit")]
        for one in [estimator, *own]:
            if hasattr(one, "set_fit_request") and weight_keyword(one) == KEYWORD:
                one.set_fit_request(**{KEYWORD: weighed})


def _forget_requests(made: Any) -> None:
    """Delete the requests of all parts of a fitted estimator, and of those of which they are copies."""
    left, seen = [made], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, (list, tuple)):
            left += one
        elif isinstance(one, dict):
            left += one.values()
        elif not isinstance(one, type) and (hasattr(one, "get_params") or hasattr(one, "calibrators")):
            vars(one).pop("_metadata_request", None)
            left += vars(one).values()


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
    lacking = dict.fromkeys(
        type(one).__name__ for one in inner if weight_keyword(one) != KEYWORD and not _routes_weights(one)
    )
    return f"{own} (of {', '.join(lacking)})" if lacking else own
