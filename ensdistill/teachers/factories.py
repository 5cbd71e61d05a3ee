"""What the factories of ``Ensemble.train`` must be able to do with its data, found out before anything is trained."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import numpy as np

from ensdistill.data import BadRows, check_finite
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.planning import Planned, Settings
from ensdistill.teachers.stack.fitting import TrainingRows, check_stopping, few_rows, fitted, held_out, is_estimator, stops_early
from ensdistill.teachers.stack.validation import Seen, as_float32, check_fresh


def check_factories(planned: list[Planned], settings: Settings) -> None:
    """Raise ValueError for what a factory does not take or return; warn of classes without a row."""
    data = settings.data
    _check_values(planned, data)
    _check_weights(planned, data)
    for p in planned:
        if is_estimator(p.factory):
            check_stopping(p.factory, p.name, p.rows)
            if stopping := stops_early(p.factory):
                held_out(stopping, p.name, p.rows, data, p.seed, np.setdiff1d(np.arange(len(data.labels)), p.rows))
    seen: Seen = {}
    for p in _each_factory(planned):
        if not is_estimator(p.factory):
            check_fresh(p.factory, p.name, seen)
    _warn_of_missing_classes(planned, data)


def _each_factory(planned: list[Planned]) -> Iterator[Planned]:
    """The first member of each factory."""
    factories = [id(p.factory) for p in planned]
    return (p for i, p in enumerate(planned) if id(p.factory) not in factories[:i])


def _check_values(planned: list[Planned], data: TrainingRows) -> None:
    """Refuse NaN for what does not take it, and inputs that modules can't be trained on."""
    real = data.inputs.dtype.kind == "f"
    gaps = np.isnan(data.inputs).reshape(len(data.inputs), -1).any(1) if real else np.zeros(len(data.inputs), bool)
    modules = [p for p in _each_factory(planned) if not is_estimator(p.factory)]
    if modules:
        try:
            check_finite("data", data.inputs)
        except BadRows as error:
            advice = "fill the gaps first (sklearn.impute), or choose estimators that take NaN"
            raise BadRows(f"{error}. {modules[0].name} is a network: {advice}", error.rows) from None
        _warn_of_rounding(data.inputs, as_float32("data", data.inputs))
    for p in _each_factory(planned):
        if gaps.any() and is_estimator(p.factory) and (reason := _refusal(p, data, gaps)):
            rows = np.flatnonzero(gaps)
            raise BadRows(
                f"data: row {rows[0]} holds nan ({len(rows)} such rows), which {p.name} does not take: {reason}. Fill the gaps first "
                "(sklearn.impute), or choose estimators that take NaN",
                rows,
            )


def _warn_of_rounding(inputs: np.ndarray, rounded: np.ndarray) -> None:
    """Warn of features of a table of which float32 makes more than 1 % of the different values equal."""
    if inputs.ndim != 2 or inputs.dtype == rounded.dtype:
        return
    counts = [(len(np.unique(inputs[:, i])), len(np.unique(rounded[:, i]))) for i in range(inputs.shape[1])]
    if lost := [i for i, (before, after) in enumerate(counts) if after < 0.99 * before]:
        warnings.warn(
            f"data: in float32, which modules are trained on, different values of the features {lost[:5]}{' ...' * (len(lost) > 5)} are "
            "equal; subtract their mean first",
            stacklevel=6,
        )


def _refusal(p: Planned, data: TrainingRows, gaps: np.ndarray) -> str | None:
    """What an estimator raises for NaN, if it does."""
    from sklearn.utils import get_tags

    library = library_of(p.factory)
    if library is not None:
        return "its nan_mode is Forbidden" if p.factory.get_params().get("nan_mode") == "Forbidden" else None
    try:
        if get_tags(p.factory).input_tags.allow_nan:
            return None
    except AttributeError:  # no estimator of scikit-learn's own kind
        pass
    # Those composed of others have no such mark of their own (an imputer before a linear model, say), so one is fitted to a few rows.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted(p.factory, p.name, p.seed, few_rows(data.labels, gaps), data)
    except Exception as error:  # other errors may come of there being so few rows
        text = str(error).strip()
        return text.splitlines()[0] if re.search(r"\bnan\b|missing|finite", text, re.IGNORECASE) else None
    return None


def _check_weights(planned: list[Planned], data: TrainingRows) -> None:
    from sklearn.utils.validation import has_fit_parameter

    if data.weights is None:
        return
    for p in planned:
        if is_estimator(p.factory) and not has_fit_parameter(p.factory, "sample_weight"):
            raise ValueError(
                f"sample_weight: {p.name}: the fit of {type(p.factory).__name__} takes no sample_weight; choose an estimator that does, or "
                "leave the weights out"
            )
        if not (data.weights[p.rows] > 0).any():
            raise ValueError(f"sample_weight: {p.name}: expected a weight above 0 among its {len(p.rows)} rows; got none")


def _warn_of_missing_classes(planned: list[Planned], data: TrainingRows) -> None:
    """Modules have an output for each class in any case; estimators do not learn classes that they have not seen."""
    missing = [data.classes[i] for i in sorted(set(range(len(data.classes))) - set(np.unique(data.labels).tolist()))]
    names = [p.name for p in planned if is_estimator(p.factory)]
    if missing and names:
        whose = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        warnings.warn(f"classes: there are no rows of {missing}: {whose} give{'s' * (len(names) == 1)} them probability 0", stacklevel=5)
