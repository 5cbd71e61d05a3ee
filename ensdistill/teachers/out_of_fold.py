"""``train_ensemble``: members of different kinds, calibrated and weighted by their predictions on held-out
folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.combiners import Combiner
from ensdistill.common.processes import processes
from ensdistill.common.random import derive_seed
from ensdistill.data import BadRows, Rows
from ensdistill.data.copies import equal_inputs, folds_of, merged
from ensdistill.teachers import held_out as fits
from ensdistill.teachers.ensemble import Ensemble
from ensdistill.teachers.existing import ExistingMembers
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.predict import over_parts, predicted
from ensdistill.teachers.prepared import prepare_recipes
from ensdistill.teachers.recipes import Recipe
from ensdistill.teachers.requirements import check_weights
from ensdistill.teachers.stack import Watch
from ensdistill.teachers.train import Planned, Training, train
from ensdistill.teachers.tuning import Parts, tuned
from ensdistill.teachers.validation import plain_name


def train_ensemble(
    recipes: Sequence[Recipe],
    labelled: Rows,
    classes: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    combiner: Combiner = "prob",
    prior_rows: float = 3.0,
    select: bool = False,
    folder: Path | str | None = None,
    progress: bool | Watch | None = None,
) -> tuple[Any, Any]:
    """Train the members on all labelled rows, calibrated and weighted by their predictions on held-out folds
    of the same rows.

    Parameters
    ----------
    recipes : sequence of Recipe
        For example :class:`ensdistill.teachers.recipes.TorchMembers` and
        :class:`ensdistill.teachers.recipes.SklearnMembers`.
    labelled : Rows
        All with labels. Samples of any kind: each recipe has a preprocess, which is fitted to all of them
        without their labels. Their weights count in the members' fits, in temperatures and in weights. The
        form of the labels decides the task.
    classes : sequence of str
        Or the names of the labels, or of the numbers.
    folds : int
        Folds, stratified by class (Wolpert, 1992, "Stacked Generalization"): each row's held-out
        prediction is by members that did not see it, nor a copy of it: rows with equal inputs are in one
        fold.
    seed : int
        The folds, and (with its name) every member's seed.
    combiner : {"prob", "logit", "log_prob"}
        Of regressors prob alone.
    prior_rows : float
        See :func:`ensdistill.teachers.fitting.calibration.fit_weights`. Measured on digits with 200 labelled
        rows and seven members: weights fitted without a prior lose to equal ones (97.6 % against 98.35 %),
        with 2 to 5 rows they do not.
    select : bool
        Give weight only to members that a greedy selection by the held-out predictions takes; see
        :meth:`ensdistill.Ensemble.select`. The others stay in the ensemble, with a weight of 0. By default
        the weights alone decide, which keep nearly all members until there are some thousand rows.
    folder : path, optional
        Every result is kept there, and a long training's checkpoints; the same call resumes where a killed
        one stopped and ends with the same bits. Results of other settings are replaced.
    progress : bool, or callable, optional
        True: a live view. A callable gets each :class:`ensdistill.teachers.stack.Status`; a fold's member is
        called ``name, fold 1``.

    Returns
    -------
    ensemble : Ensemble or RegressionEnsemble
    held_out : ndarray [K, N, C], float32, or Moments [K, N, D]
        Raw logits (no temperature) for ``labelled``, or the means and variances of regressors, by members
        that did not see the row. NaN for members that exist already and may have been trained on these rows
        (see :mod:`ensdistill.teachers.existing`).

    Raises
    ------
    ValueError
        Bad arguments, a recipe of another task, a class with fewer rows than folds, or a member whose
        predictions are NaN or infinite (names member and rows).

    Examples
    --------
    >>> from ensdistill.data import Digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from ensdistill.teachers.recipes import SklearnMembers
    >>> split = Digits().split(seed=0)
    >>> recipes = [SklearnMembers(LogisticRegression()), SklearnMembers(GaussianNB())]
    >>> ensemble, held_out = train_ensemble(recipes, split.labelled, split.classes)
    >>> ensemble.names, held_out.shape
    (('logisticregression', 'gaussiannb'), (2, 200, 10))
    """
    names = [name for recipe in recipes for name in recipe.names()]
    if not names:
        raise ValueError("recipes: expected at least one member; got none")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"recipes: expected different names; {names.count(twice[0])} are called {twice[0]!r}; give each "
            "its own name: name="
        )
    task = labelled.task
    _check_rows(labelled, classes, folds)
    alike = merged(equal_inputs(labelled.inputs)[0], labelled.groups)
    parts = folds_of(alike, labelled.labels, folds, derive_seed("folds", seed))
    planned: Planned = []
    data = TrainingRows(labelled.inputs, labelled.labels, tuple(classes), labelled.weights)
    device = next((recipe.device for recipe in recipes if hasattr(recipe, "device")), "cpu")
    home = None if folder is None else Path(folder)
    for recipe in prepare_recipes(recipes, labelled.inputs, len(classes), seed):
        jobs = [
            job for i, (rows, _) in enumerate(parts) for job in recipe.jobs(labelled.labels, seed, rows, i)
        ]
        planned.append((recipe, [*jobs, *recipe.jobs(labelled.labels, seed)]))
    check_weights(planned, data)
    found = _tuned([recipe for recipe, _ in planned], data, parts, seed, home, device, progress)
    planned = [(recipe, jobs) for recipe, (_, jobs) in zip(found, planned, strict=True)]
    training = Training(planned, data, {i: held for i, (_, held) in enumerate(parts)})
    try:
        made = train(training, dict, device=device, folder=home, progress=progress)
    except BadRows as error:
        raise ValueError(f"{error}, of uid {labelled.uids[error.rows[0]]}") from error
    held_out = fits.unknown_predictions(len(names), len(labelled), len(classes), task)
    for job in training.jobs:
        if job.part is not None:
            held_out[names.index(job.name), parts[job.part][1]] = made[job.key]
    members = [made[name] for name in names]
    ensemble: Any = Ensemble.from_members(members, combiner=combiner, classes=classes, task=task)
    existing = [recipe for recipe in recipes if isinstance(recipe, ExistingMembers)]
    for name in (name for recipe in existing if recipe.held_out for name in recipe.names()):
        asked = ensemble.only(name).for_uids(labelled.uids)
        held_out[names.index(name)] = over_parts(
            labelled.inputs, partial(predicted, asked.members[0], names=classes)
        )
    if task != "regression":
        temperatures = {name: t for recipe in existing for name, t in recipe.temperatures().items()}
        ensemble.temperatures = np.array([temperatures.get(name, 1.0) for name in names])
    fits.fit(ensemble, held_out, replace(labelled, groups=alike), prior_rows, select)
    return ensemble, fits.as_predictions(held_out)


def _tuned(
    recipes: Sequence[Recipe],
    data: TrainingRows,
    parts: Parts,
    seed: int,
    folder: Path | None,
    device: str,
    progress: Any,
) -> list[Recipe]:
    """The recipes with the settings that were found for them: by the first process, the others read them."""
    found: list[Recipe] = []
    with processes(device) as group:
        for turn in (group.rank == 0, group.rank > 0):
            with group.together():
                for recipe in recipes if turn else []:
                    tell = getattr(progress, "tuning", None)
                    home = None if folder is None else folder / "tuning" / plain_name(recipe.name, folder)
                    shown = None if tell is None else partial(tell, recipe.name)
                    found.append(tuned(recipe, data, parts, seed, home, shown))
    return found


def _check_rows(labelled: Rows, classes: Sequence[str], folds: int) -> None:
    rows, count = len(labelled), len(classes)
    if labelled.task != "classification":
        _check_table(labelled, classes, folds)
        return
    if rows == 0 or labelled.labels.min() < 0 or labelled.labels.max() >= count:
        raise ValueError(
            f"labelled: expected rows with labels in 0..{count - 1}; got {rows} rows, labels "
            f"{np.unique(labelled.labels)[:5]} ..."
        )
    per_class = np.bincount(labelled.labels, minlength=count)
    if not (2 <= folds <= per_class.min()):
        rare = int(per_class.argmin())
        raise ValueError(
            f"folds: expected 2 to {per_class[rare]}, the rows of the rarest class ({classes[rare]!r}); got "
            f"{folds}"
        )


def _check_table(labelled: Rows, classes: Sequence[str], folds: int) -> None:
    """Raise ValueError for labels of several columns that are not those of ``classes``, or lack a row's."""
    rows, shape = len(labelled), list(labelled.labels.shape)
    if rows == 0 or shape[1] != len(classes) or not labelled.known.all():
        raise ValueError(
            f"labelled: expected rows with labels [N, {len(classes)}], each with a known one; got {shape}, "
            f"{int((~labelled.known).sum())} rows without"
        )
    if not 2 <= folds <= rows:
        raise ValueError(f"folds: expected 2 to {rows}, the number of rows; got {folds}")
