"""One estimator, fitted: its seed, its weights, and rows of their own for boosters that stop early."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from ensdistill.common.random import random_generator
from ensdistill.common.tasks import Task
from ensdistill.data.augmentation import Augmentation
from ensdistill.data.copies import equal_inputs
from ensdistill.data.samples import whole
from ensdistill.data.tasks import strata_of, task_of_labels
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.members import BoostedMember, Member, SklearnMember
from ensdistill.teachers.members.base import flat
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.members.categories import with_categories
from ensdistill.teachers.stack.per_label import check_known, fit_labels, of_labels
from ensdistill.teachers.stack.row_weights import fit_weighted

HELD_OUT = 0.2  # of the rows of each class, where a booster stops early and no rows are left over
TRIED = 8  # rows of each class in a trial
TRIED_NUMBERS = 64  # rows of a regression
_SEVERAL = {
    "multilabel": "if it takes one label alone: sklearn.multioutput.MultiOutputClassifier(estimator)",
    "regression": "if it takes one number alone: sklearn.multioutput.MultiOutputRegressor(estimator)",
}

# By library, the parameters that make a booster stop by rows it was not fitted to. LightGBM's has several
# names.
_STOPPING: dict[str, tuple[str, ...]] = {
    "xgboost": ("early_stopping_rounds",),
    "lightgbm": ("early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change"),
    "catboost": ("early_stopping_rounds", "od_wait", "od_pval", "use_best_model"),
}

# By library, the names of the number of rounds; the first is the usual one.
_ROUNDS: dict[str, tuple[str, ...]] = {
    "xgboost": ("n_estimators",),
    "lightgbm": ("n_estimators", "num_iterations", "num_iteration", "n_iter", "num_trees", "num_rounds"),
    "catboost": ("iterations", "n_estimators", "num_trees", "num_boost_round"),
}


def is_estimator(value: Any) -> bool:
    """Whether it is fitted rather than called: scikit-learn's interface, which boosted trees have as well."""
    return not isinstance(value, type) and hasattr(value, "fit") and hasattr(value, "get_params")


def parts(estimator: Any) -> dict[str, Any]:
    """The estimator itself, under the name "", and those it is composed of, by the names of their
    parameters."""
    inner = estimator.get_params().items()
    return {"": estimator} | {name: value for name, value in inner if is_estimator(value)}


def libraries(estimator: Any) -> tuple[str, ...]:
    """The libraries of boosted trees that an estimator or its parts come from."""
    return tuple(sorted({library for part in parts(estimator).values() if (library := library_of(part))}))


def versions(estimator: Any) -> dict[str, str]:
    """The versions of the libraries that decide the result of a fit."""
    return {
        name: sys.modules[name].__version__
        for name in ("sklearn", *libraries(estimator))
        if name in sys.modules
    }


def seeds_of(estimator: Any, seed: int) -> dict[str, int]:
    """The parameters that give an estimator a seed of its own; a seed that is set already stays."""
    parameters = estimator.get_params()
    found = {
        name: seed % 2**31
        for name, value in parameters.items()
        if name.endswith("random_state") and value is None
    }
    if library_of(estimator) == "catboost" and not {"random_seed", "random_state"} & set(parameters):
        return {"random_seed": seed % 2**31}  # CatBoost lists only parameters that were set
    return found


def stops_early(estimator: Any) -> str | None:
    """The parameter by which a booster stops early, and so needs rows that it is not fitted to; None where it
    has none."""
    library, given = library_of(estimator), estimator.get_params()
    if library is None or given.get("eval_fraction"):  # CatBoost's own share of held-out rows
        return None
    if any(type(callback).__name__ == "EarlyStopping" for callback in given.get("callbacks") or ()):
        return "callbacks"
    return next((name for name in _STOPPING[library] if (given.get(name) or 0) > 0), None)


def without_stopping(fitted: Any) -> Any:
    """A booster that is not fitted, of the parameters of one that stopped early, and of as many rounds as
    that one kept."""
    library, given = library_of(fitted) or "", dict(fitted.get_params())
    if library == "catboost":
        rounds = fitted.tree_count_
    else:  # XGBoost counts from 0; LightGBM has 0 where it did not stop
        rounds = fitted.best_iteration + 1 if library == "xgboost" else fitted.best_iteration_
    names = _ROUNDS[library]
    rounds = rounds or next(given[name] for name in names if given.get(name) is not None)
    if callbacks := given.pop("callbacks", None):
        given["callbacks"] = [one for one in callbacks if type(one).__name__ != "EarlyStopping"]
    kept = {name: value for name, value in given.items() if name not in (*_STOPPING[library], *names)}
    return type(fitted)(**kept, **{names[0]: max(1, int(rounds))})


def splits_itself(estimator: Any, rows: int) -> str | None:
    """The parameter by which an estimator of scikit-learn holds out some of its own rows to stop early; None
    where it has none."""
    given = estimator.get_params(deep=False)
    if library_of(estimator) is not None or given.get("validation_fraction") is None:
        return None
    if "early_stopping" in given:
        automatic = given["early_stopping"] == "auto" and rows > 10_000
        return "early_stopping" if given["early_stopping"] is True or automatic else None
    return None if given.get("n_iter_no_change") is None else "n_iter_no_change"


def check_stopping(estimator: Any, name: str, rows: np.ndarray) -> None:
    """Raise ValueError where an estimator or a part of it would stop early by rows that it is fitted to, or
    by none at all."""
    from sklearn.utils.validation import has_fit_parameter

    repeated = len(np.unique(rows)) < len(rows)
    for place, part in parts(estimator).items():
        if place and (parameter := stops_early(part)):
            raise ValueError(
                f"{place}__{parameter}: {name}: expected {parameter} of a factory itself; inside a "
                f"{type(estimator).__name__} the rows by "
                "which it is to stop can't be passed to it. Set it to None, or choose the booster without "
                "the other parts"
            )
        parameter = splits_itself(part, len(rows)) if repeated else None
        if parameter and (place or not has_fit_parameter(part, "sample_weight")):
            raise ValueError(
                f"{place}{'__' * bool(place)}{parameter}: {name}: expected rows without copies, because it "
                "stops by some of its own rows "
                "and would be fitted to copies of them; choose method='subsample' or 'seeds', or let it not "
                "stop early"
            )


def held_out(
    parameter: str,
    name: str,
    rows: np.ndarray,
    data: TrainingRows,
    seed: int,
    spare: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows to fit to, and of those by which a booster stops.

    Parameters
    ----------
    parameter, name : str
        The parameter by which it stops, and the member, for messages.
    rows : ndarray [R], int64
        Positions that the member may learn from.
    data : TrainingRows
    seed : int
        The member's own.
    spare : ndarray, int64, optional
        Positions that the member is not fitted to, such as those that a bootstrap left out; copies of rows
        that it is fitted to don't count. Where there are none, a share of each class is drawn from ``rows``:
        copies together, and at least one row of a class stays.

    Raises
    ------
    ValueError
        No row can be spared.
    """
    useful = np.ones(len(data.labels), bool) if data.weights is None else data.weights > 0
    (copies,) = equal_inputs(data.inputs)
    if spare is not None:
        judges = spare[useful[spare] & ~np.isin(copies[spare], copies[rows])]
        if len(judges):
            return rows, judges
    unique = np.unique(rows)
    strata = strata_of(data.labels)  # rows of other tasks are of one stratum
    counts = np.bincount(strata[unique[useful[unique]]], minlength=int(strata.max()) + 1)
    quota = np.minimum(np.round(HELD_OUT * counts), np.maximum(counts - 1, 0))
    by_copies = unique[np.argsort(copies[unique], kind="stable")]
    sets = np.split(by_copies, np.flatnonzero(np.diff(copies[by_copies])) + 1)
    drawn = [np.zeros(0, np.int64)]
    for place in random_generator("held out", seed).permutation(len(sets)):
        if not quota.any():
            break
        classes, found = np.unique(strata[sets[place][useful[sets[place]]]], return_counts=True)
        if len(classes) and (found <= quota[classes]).all():
            quota[classes] -= found
            drawn.append(sets[place])
    away = np.sort(np.concatenate(drawn))
    kept, away = rows[~np.isin(rows, away)], away[useful[away]]
    if len(away) == 0:
        raise ValueError(
            f"{parameter}: {name}: expected rows to stop by that it is not fitted to; none of its "
            f"{len(rows)} rows can be spared: pass "
            f"more rows, or set {parameter} to None"
        )
    return kept, away


def fitted(
    estimator: Any,
    name: str,
    seed: int,
    rows: np.ndarray,
    data: TrainingRows,
    *,
    spare: np.ndarray | None = None,
    augment: Augmentation | None = None,
) -> Any:
    """A copy of an estimator, fitted to some rows.

    Parameters
    ----------
    estimator : estimator
        Of the rows' task. For classes also a regressor, which is fitted to one column for each (1 for the
        class, -1 for the others).
    name : str
        The member's, for messages.
    seed : int
    rows : ndarray [R], int64
        Positions in ``data``; a bootstrap holds some of them twice.
    data : TrainingRows
        Boosters get the features in their own dtype, scikit-learn gets them in float64, which holds every
        float32. Frames and texts are given as they are.
    spare : ndarray, int64, optional
        See :func:`held_out`.
    augment : Augmentation, optional
        The estimator is fitted to every variant of every row.
    """
    check_stopping(estimator, name, rows)
    copy = copy_of(estimator).set_params(**seeds_of(estimator, seed))
    for part in parts(copy).values():
        if library_of(part) == "catboost" and "allow_writing_files" not in part.get_params():
            part.set_params(
                allow_writing_files=False
            )  # members that are fitted at once would write to the same files
    more: dict[str, Any] = {}
    present = np.unique(strata_of(data.labels)[rows])
    if stopping := stops_early(copy):
        rows, away = held_out(stopping, name, rows, data, seed, spare)
        more = evaluation_arguments(copy, *_arguments(copy, name, data.take(away), present))
    elif splits_itself(copy, len(rows)):
        # The estimator's own split must not put copies of one row on both sides: it would stop by rows that
        # it is fitted to.
        rows, counts = np.unique(rows, return_counts=True)
        if counts.max() > 1:
            data = replace(
                data,
                weights=np.bincount(rows, counts, len(data.labels))
                * (1 if data.weights is None else data.weights),
            )
    portion = data.take(rows)
    if augment is not None:
        if not isinstance(portion.inputs, np.ndarray):
            raise TypeError(
                f"augment: {name}: expected arrays, which an augmentation changes; got samples of another "
                "kind: name a preprocess that returns an array"
            )
        variants = augment.variants(portion.inputs)
        weights = None if portion.weights is None else np.tile(portion.weights, len(variants))
        portion = replace(
            data,
            inputs=np.concatenate(variants),
            labels=np.concatenate([portion.labels] * len(variants)),
            weights=weights,
        )
    features, target, weights = _arguments(copy, name, portion, present)
    if data.task == "multilabel" and of_labels(copy):
        return fit_labels(copy, name, features, portion.labels, weights)
    try:
        return fit_weighted(copy, name, features, target, weights, more)
    except ValueError as error:
        if data.labels.ndim == 2 and data.labels.shape[1] > 1:
            error.add_note(_SEVERAL[data.task])
        raise


def copy_of(estimator: Any) -> Any:
    """An estimator that is not fitted, with the same parameters."""
    from sklearn.base import clone

    if library_of(estimator) != "catboost":
        return clone(estimator)
    # CatBoost keeps lists of columns in another form than they were given in, which clone takes for a fault.
    return type(estimator)(**deepcopy(estimator.get_params()))


def features_of(samples: Any) -> Any:
    """An array as [N, features]; of samples of another kind the frame or the list of texts."""
    batch = whole(samples)
    return flat(batch) if isinstance(batch, np.ndarray) else batch


def _arguments(
    estimator: Any, name: str, portion: TrainingRows, present: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """Features, target and weights as the estimator takes them; ``present`` are the classes of the rows that
    it is fitted to.

    Raises
    ------
    ValueError
        The estimator is of another task than the rows, or takes no unknown labels.
    """
    from sklearn.base import is_classifier, is_regressor

    features, library = features_of(portion.inputs), library_of(estimator)
    if isinstance(features, np.ndarray):
        features = features if library else features.astype(np.float64)
    if (
        library == "catboost"
        and isinstance(features, np.ndarray)
        and (columns := estimator.get_params().get("cat_features"))
    ):
        features = with_categories(features, columns)
    if portion.task == "regression":
        if is_classifier(estimator):
            raise _of_other_task(name, estimator, "regression")
        numbers = portion.labels
        return features, numbers[:, 0] if numbers.shape[1] == 1 else numbers, portion.weights
    if portion.task == "multilabel":
        if is_regressor(estimator):
            raise _of_other_task(name, estimator, "multilabel")
        if not of_labels(estimator):
            check_known(name, portion.labels)
        return features, portion.labels.astype(np.int64), portion.weights
    if is_regressor(estimator):
        return features, 2.0 * np.eye(len(portion.classes))[portion.labels] - 1, portion.weights
    # XGBoost refuses labels with gaps.
    gaps = "xgboost" in libraries(estimator)
    return features, np.searchsorted(present, portion.labels) if gaps else portion.labels, portion.weights


def _of_other_task(name: str, estimator: Any, task: Task) -> ValueError:
    kinds = ("classifier", "regressor") if task == "multilabel" else ("regressor", "classifier")
    return ValueError(
        f"estimator: {name}: expected a {kinds[0]} for labels of the task {task}; got the {kinds[1]} "
        f"{type(estimator).__name__}"
    )


def evaluation_arguments(
    booster: Any, features: Any, labels: np.ndarray, weights: np.ndarray | None
) -> dict[str, Any]:
    """Arguments of a booster's ``fit`` that make it stop by these rows."""
    library = library_of(booster)
    if library == "catboost":
        from catboost import Pool

        return {
            "eval_set": Pool(
                features, labels, weight=weights, cat_features=booster.get_params().get("cat_features")
            )
        }
    own = None if weights is None else [weights]
    if library == "xgboost":
        return {"eval_set": [(features, labels)], "sample_weight_eval_set": own, "verbose": False}
    if "eval_X" in inspect.signature(booster.fit).parameters:  # LightGBM from 4.7 on
        return {"eval_X": features, "eval_y": labels, "eval_sample_weight": own}
    return {"eval_set": [(features, labels)], "eval_sample_weight": own}


def as_member(
    estimator: Any, name: str, classes: Sequence[str], labels: np.ndarray, **options: Any
) -> Member:
    """The member of an estimator that was fitted to rows with these labels; classes without a row get
    probability 0."""
    cls: Any = SklearnMember if library_of(estimator) is None else BoostedMember
    task = task_of_labels(labels) or "classification"
    if task != "classification":
        return cls(estimator, name=name, classes=classes, task=task, **options)
    own, present = getattr(estimator, "classes_", None), np.unique(labels)
    columns = None
    if own is not None:
        indices = np.asarray(own).astype(np.int64)
        columns = [classes[i] for i in (present[indices] if "xgboost" in libraries(estimator) else indices)]
    return cls(estimator, name=name, classes=classes, columns=columns, **options)


def few_rows(labels: np.ndarray, first: np.ndarray | None = None) -> np.ndarray:
    """Positions of up to ``TRIED`` rows of each class, or with and without each label, in growing order.

    Those where ``first`` [N] is true come before others. Of numbers ``TRIED_NUMBERS`` rows from the least to
    the largest.
    """
    if labels.dtype == np.float64:
        by_size = np.argsort(labels[:, 0], kind="stable")
        chosen = by_size[np.linspace(0, len(labels) - 1, min(len(labels), TRIED_NUMBERS)).astype(np.int64)]
        return np.unique(chosen if first is None else np.append(chosen, np.flatnonzero(first)[:TRIED]))
    if labels.ndim == 2:
        return np.unique(np.concatenate([few_rows(column.astype(np.int64), first) for column in labels.T]))
    order = np.arange(len(labels)) if first is None else np.argsort(~first, kind="stable")
    return np.sort(np.concatenate([order[labels[order] == value][:TRIED] for value in np.unique(labels)]))
