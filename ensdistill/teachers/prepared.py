"""Recipes on raw samples: their preprocess is fitted to the labelled rows, their members carry it."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensdistill.common.completion import completed
from ensdistill.common.describe import class_path, describe
from ensdistill.common.fingerprint import digest
from ensdistill.common.random import derive_seed
from ensdistill.data import Rows
from ensdistill.data import batches as b
from ensdistill.data.preprocess import (
    Categorical,
    Categories,
    Preprocess,
    fitted,
    load_preprocess,
    trusted_by,
)
from ensdistill.data.samples import Held, form, in_memory, whole
from ensdistill.teachers.existing import ExistingMembers
from ensdistill.teachers.jobs import Job, TrainingRows
from ensdistill.teachers.members import Member, Preprocessed
from ensdistill.teachers.members.boosted import library_of
from ensdistill.teachers.members.inputs import advice, as_batch, read
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers
from ensdistill.teachers.stack import Watch
from ensdistill.teachers.stack.fitting import copy_of, few_rows, parts

CHUNK = 1024  # lazy samples that are preprocessed at once


@dataclass(frozen=True, eq=False)
class Prepared(Recipe):
    """A recipe that is trained on preprocessed samples, and gives out members for raw ones.

    Parameters
    ----------
    recipe : Recipe
        Takes the preprocessed inputs.
    preprocess : Preprocess
        Fitted already.
    """

    recipe: Recipe
    preprocess: Preprocess
    _made: dict[int, tuple[Any, Any]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.recipe.name

    @property
    def count(self) -> int:  # type: ignore[override]
        return self.recipe.count

    @property
    def trusted(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(sorted({*self.recipe.trusted, *trusted_by(self.preprocess)}))

    def names(self) -> list[str]:
        return self.recipe.names()

    def jobs(
        self, labels: np.ndarray, seed: int, allowed: np.ndarray | None = None, part: int | None = None
    ) -> list[Job]:
        return self.recipe.jobs(labels, seed, allowed, part)

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        return self.recipe.units(jobs)

    def files(self) -> list[Path]:
        return self.recipe.files()

    def fingerprint(self) -> Any:
        return [self.recipe.fingerprint(), self.preprocess.fingerprint()]

    def check_storable(self) -> None:
        self.recipe.check_storable()

    def check(self, labelled: Rows, classes: Sequence[str]) -> None:
        """Save and load the preprocess, and check the recipe on what it makes: of lazy samples of a few.

        Raises
        ------
        ValueError
            The preprocess can't be saved or loaded again, or the recipe refuses its result.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.preprocess.save(folder)
                loaded = load_preprocess(folder, self.trusted)
            except (TypeError, ValueError) as error:
                raise ValueError(f"preprocess: {self.name}: it can't be kept: {error}") from error
            if loaded.fingerprint() != self.preprocess.fingerprint():
                kind = type(self.preprocess).__name__
                raise ValueError(
                    f"preprocess: {self.name}: the saved {kind} is another one when it is loaded"
                )
        few = labelled if in_memory(labelled.inputs) else labelled.take(few_rows(labelled.labels))
        self.recipe.check(replace(few, inputs=self.inputs(few.inputs)), classes)

    def inputs(self, samples: Any) -> Any:
        """The preprocessed samples, all in memory: an array, or held samples. They are kept for the next
        call."""
        known = self._made.get(id(samples))
        if known is None:
            self._made.clear()
            known = self._made[id(samples)] = samples, preprocessed(self.preprocess, samples)
        return known[1]

    def data(self, data: TrainingRows) -> TrainingRows:
        """The rows with preprocessed inputs."""
        return replace(data, inputs=self.inputs(data.inputs))

    def fit(
        self,
        data: TrainingRows,
        jobs: Sequence[Job],
        *,
        checkpoint: Path | None = None,
        watch: Watch | None = None,
        finished: Container[str] = (),
    ) -> Iterator[tuple[Job, Member]]:
        # Members that exist already are loaded, whatever the rows are.
        own = data if isinstance(self.recipe, ExistingMembers) else self.data(data)
        for job, member in self.recipe.fit(own, jobs, checkpoint=checkpoint, watch=watch, finished=finished):
            yield job, Preprocessed(member, self.preprocess)


def prepare_recipes(recipes: Sequence[Recipe], samples: Any, classes: int, seed: int) -> list[Recipe]:
    """The recipes with their preprocess fitted to all labelled samples, and with models of the sizes that the
    data decide.

    No label has a part in it, so that the members of all folds share one preprocess. Arrays stay as they are
    unless a recipe names a preprocess.

    Parameters
    ----------
    recipes : sequence of Recipe
    samples : ndarray [N, ...], or samples
    classes : int
        Of another task the number of labels, or of numbers.
    seed : int
        The ensemble's.

    Raises
    ------
    TypeError, ValueError
        A preprocess can't be fitted, or the recipe takes no samples of this kind; begins with ``preprocess``
        and names the recipe.
    """
    known: dict[str, Preprocess | None] = {}
    return [_prepared(recipe, samples, classes, derive_seed("preprocess", seed), known) for recipe in recipes]


def unprepared(recipe: Recipe) -> Recipe:
    """The recipe within, of one with a fitted preprocess; any other as it is."""
    return recipe.recipe if isinstance(recipe, Prepared) else recipe


def preprocessed(preprocess: Preprocess, samples: Any) -> Any:
    """The result for all samples, in memory: an array, or held samples of another kind."""
    if in_memory(samples):
        batch = as_batch(preprocess(whole(samples)))
    else:
        batch = b.join([as_batch(preprocess(part)) for _, part in read(samples, CHUNK)])
    return batch if isinstance(batch, np.ndarray) else Held(batch)


def _prepared(
    recipe: Recipe, samples: Any, classes: int, seed: int, known: dict[str, Preprocess | None]
) -> Recipe:
    setting = getattr(recipe, "preprocess", None)
    if isinstance(setting, str) and setting == "auto" and not isinstance(samples, np.ndarray):
        setting = _default(recipe, samples)
    try:
        key = digest(describe(setting))
    except TypeError:
        raise TypeError(
            f"preprocess: {recipe.name}: expected a setting whose content is known: a dataclass, an "
            f"estimator of scikit-learn, or a preprocess; got {class_path(type(setting))}"
        ) from None
    if key not in known:
        try:
            known[key] = fitted(setting, samples, seed=seed)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"preprocess: {recipe.name}: {error}{advice(error, samples)}") from error
    preprocess = known[key]
    if isinstance(recipe, TorchMembers):
        example = samples[:1] if preprocess is None else preprocess(samples[:1])
        model = completed(recipe.model, example, classes * (1 + recipe.variance), preprocess)
        recipe = recipe if model is recipe.model else replace(recipe, model=model)
    if preprocess is None:
        return recipe
    if isinstance(recipe, SklearnMembers) and isinstance(preprocess, Categorical):
        recipe = _with_categories(recipe, [*preprocess.categories])
    return Prepared(recipe, preprocess)


def _default(recipe: Recipe, samples: Any) -> Any:
    """The setting that ``"auto"`` stands for."""
    if not isinstance(recipe, SklearnMembers):
        return "auto"
    kind = form(samples)["kind"]
    if kind in ("table", "text") and _takes_raw(recipe.estimator):
        return None
    if kind == "text":
        raise TypeError(
            f"preprocess: {recipe.name}: expected an estimator of texts; got a "
            f"{type(recipe.estimator).__name__}: put a vectorizer before it, "
            "make_pipeline(TfidfVectorizer(), estimator), or name a preprocess"
        )
    if kind == "mapping":
        raise TypeError(
            f"preprocess: {recipe.name}: expected one table or array for an estimator; got a mapping of "
            f"{sorted(form(samples)['fields'])}: name a preprocess that makes an array of it"
        )
    if kind == "table" and not recipe.one_vs_rest and _takes_categories(recipe.estimator):
        return Categories(missing="(missing)" if library_of(recipe.estimator) == "catboost" else None)
    return "auto"


def _takes_raw(estimator: Any) -> bool:
    """Whether an estimator brings preprocessing of its own: a pipeline, or one with a transformer of columns
    within."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    return any(isinstance(part, (Pipeline, ColumnTransformer)) for part in parts(estimator).values())


def _takes_categories(estimator: Any) -> bool:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor

    if type(estimator) in (MultiOutputClassifier, MultiOutputRegressor):  # which pass frames on as they are
        own = estimator.estimator
        return library_of(own) is None and _takes_categories(own)
    if isinstance(estimator, (HistGradientBoostingClassifier, HistGradientBoostingRegressor)):
        columns = estimator.categorical_features
        return isinstance(columns, str) and columns == "from_dtype"
    return library_of(estimator) is not None


def _with_categories(recipe: SklearnMembers, columns: list[str]) -> Recipe:
    """The recipe with the parameter that makes its booster take columns of categories."""
    library = library_of(recipe.estimator)
    more: dict[str, Any] = {}
    given: Any = recipe.estimator
    if library == "xgboost" and columns:
        more = {"enable_categorical": True}
    if library == "catboost" and columns and not given.get_params().get("cat_features"):
        more = {"cat_features": columns}
    return replace(recipe, estimator=copy_of(given).set_params(**more)) if more else recipe
