"""Checks of recipes against the rows that they are to be trained on, before anything is trained."""

from __future__ import annotations

import re
import warnings

import numpy as np

from ensdistill.data import BadRows, check_finite
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.prepared import Prepared, unprepared
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers
from ensdistill.teachers.stack.fitting import check_stopping, few_rows, fitted, held_out, stops_early
from ensdistill.teachers.stack.row_weights import check_takes_weights
from ensdistill.teachers.stack.validation import Seen, as_float32, check_fresh
from ensdistill.teachers.train import Planned

Estimators = list[tuple[SklearnMembers, list[Job], TrainingRows]]


def check_recipes(planned: Planned, data: TrainingRows) -> None:
    """Raise ValueError for rows that a recipe does not take and for outputs of a wrong kind; warn of classes
    without a row."""
    # Each recipe with the rows as its own preprocess makes them.
    own = [
        (unprepared(recipe), jobs, recipe.data(data) if isinstance(recipe, Prepared) else data)
        for recipe, jobs in planned
    ]
    fits: Estimators = [(r, jobs, r.weighed(rows)) for r, jobs, rows in own if isinstance(r, SklearnMembers)]
    networks = [(r, jobs, rows) for r, jobs, rows in own if isinstance(r, TorchMembers)]
    checked: set[int] = set()
    for _, jobs, rows in networks:
        if id(rows.inputs) not in checked and isinstance(rows.inputs, np.ndarray):
            checked.add(id(rows.inputs))
            _check_network_inputs(jobs[0].name, rows)
    _check_gaps(fits)
    check_weights(planned, data)
    for recipe, jobs, rows in fits:
        for job in jobs:
            check_stopping(recipe.whole, job.name, job.rows)
            if stopping := stops_early(recipe.whole):
                held_out(stopping, job.name, job.rows, rows, job.seed, job.spare)
    seen: Seen = {}
    checked.clear()
    for network, jobs, _ in networks:
        if id(network.model) not in checked:
            checked.add(id(network.model))
            check_fresh(network.model, jobs[0].name, seen)
    _warn_of_missing_classes(fits, data)


def _check_network_inputs(name: str, data: TrainingRows) -> None:
    """Refuse NaN, which no network takes, and inputs that modules can't be trained on."""
    try:
        check_finite("data", data.inputs)
    except BadRows as error:
        advice = "fill the gaps first (sklearn.impute), or choose estimators that take NaN"
        raise BadRows(f"{error}. {name} is a network: {advice}", error.rows) from None
    _warn_of_rounding(data.inputs, as_float32("data", data.inputs))


def _check_gaps(fits: Estimators) -> None:
    """Refuse NaN for estimators that do not take it."""
    found: dict[int, np.ndarray] = {}  # the rows with gaps, by array
    for recipe, jobs, data in fits:
        inputs = data.inputs
        if not isinstance(inputs, np.ndarray) or inputs.dtype.kind != "f":
            continue
        if id(inputs) not in found:
            found[id(inputs)] = np.asarray(np.isnan(inputs).reshape(len(inputs), -1).any(1))
        gaps = found[id(inputs)]
        if gaps.any() and (reason := _refusal(recipe, jobs[0], data, gaps)):
            rows = np.flatnonzero(gaps)
            raise BadRows(
                f"data: row {rows[0]} holds nan ({len(rows)} such rows), which {jobs[0].name} does not "
                f"take: {reason}. Fill the gaps first "
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
            "data: in float32, which modules are trained on, different values of the features "
            f"{lost[:5]}{' ...' * (len(lost) > 5)} are "
            "equal; subtract their mean first",
            stacklevel=5,
        )


def _refusal(recipe: SklearnMembers, job: Job, data: TrainingRows, gaps: np.ndarray) -> str | None:
    """The message of an estimator that raises an error for NaN; None where it takes NaN."""
    from sklearn.utils import get_tags

    library = library_of(recipe.whole)
    if library is not None:
        return (
            "its nan_mode is Forbidden" if recipe.whole.get_params().get("nan_mode") == "Forbidden" else None
        )
    try:
        if get_tags(recipe.whole).input_tags.allow_nan:
            return None
    except AttributeError:  # no estimator of scikit-learn's own kind
        pass
    # Estimators composed of others (an imputer before a linear model) have no such mark of their own, so one
    # is fitted to a few rows.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted(recipe.whole, job.name, job.seed, few_rows(data.labels, gaps), data)
    except Exception as error:  # other errors may come of there being so few rows
        text = str(error).strip()
        return text.splitlines()[0] if re.search(r"\bnan\b|missing|finite", text, re.IGNORECASE) else None
    return None


def check_weights(planned: Planned, data: TrainingRows) -> None:
    """Raise ValueError for a job whose rows all have weight 0, and for an estimator that takes no weights."""
    for job in (job for _, jobs in planned for job in jobs):
        if data.weights is not None and not (data.weights[job.rows] > 0).any():
            raise ValueError(
                f"sample_weight: {job.name}: expected a weight above 0 among its {len(job.rows)} rows; got "
                "none"
            )
    for one, jobs in planned:
        recipe = unprepared(one)
        if isinstance(recipe, SklearnMembers) and recipe.weighed(data).weights is not None:
            check_takes_weights(recipe.whole, jobs[0].name)


def _warn_of_missing_classes(fits: Estimators, data: TrainingRows) -> None:
    """Modules have an output for each class in any case; estimators do not learn classes that they have not
    seen."""
    if data.task != "classification":
        return
    missing = [
        data.classes[i] for i in sorted(set(range(len(data.classes))) - set(np.unique(data.labels).tolist()))
    ]
    names = [job.name for _, jobs, _ in fits for job in jobs]
    if missing and names:
        whose = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        warnings.warn(
            f"classes: there are no rows of {missing}: {whose} give{'s' * (len(names) == 1)} them "
            "probability 0",
            stacklevel=4,
        )
