"""The settings where none are named, by the kind and number of their samples."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ensdistill.data import Rows, Split
from ensdistill.data.preprocess import TableDefaults
from ensdistill.data.transfer import CutMix, Exchange, Mixup, SpliceTexts
from ensdistill.job.check import check_job
from ensdistill.job.config import Config
from ensdistill.job.defaults import defaults
from ensdistill.job.kinds_of_labels import Labels
from ensdistill.job.run_folder import RunFolder
from ensdistill.models import MLP, TabularMLP
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers

GENERATOR = np.random.default_rng(0)
LABELS = np.arange(90, dtype=np.int64) % 3
WORDS = np.array(["red", "green", "blue", "fox", "hen", "crow", "hill", "lake"])
SAMPLES: dict[str, Any] = {
    "array": GENERATOR.normal(size=(90, 4)).astype(np.float32),
    "image array": GENERATOR.normal(size=(90, 1, 8, 8)).astype(np.float32),
    "table": pd.DataFrame(
        {
            "size": np.where(np.arange(90) % 7, GENERATOR.normal(size=90), np.nan),
            "weight": GENERATOR.normal(size=90),
            "colour": WORDS[np.arange(90) % 3],
        }
    ),
    "texts": [" ".join(GENERATOR.permutation(WORDS)) for _ in range(90)],
    "images": [GENERATOR.integers(0, 255, (8, 8), np.uint8) for _ in range(90)],
}


class Own:
    """A data set of these samples."""

    names: tuple[str, ...] = ("a", "b", "c")

    def __init__(self, samples: Any) -> None:
        self.rows = Rows(samples, np.arange(90), LABELS)

    def split(self, seed: int) -> Split:
        rows, pool = self.rows, self.rows.take(np.arange(60, 75)).without_labels()
        return Split(rows.take(np.arange(60)), pool, rows.take(np.arange(75, 90)), self.names)


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_defaults_pass_the_check_of_a_job(kind: str, tmp_path: Any) -> None:
    made = defaults(SAMPLES[kind], 60, 15)
    # The check saves and loads each estimator; ten of its trees are as good as two hundred.
    for estimator in (recipe.estimator for recipe in made.teachers.members if hasattr(recipe, "estimator")):
        for name in {"n_estimators", "max_iter"} & estimator.get_params().keys():
            estimator.set_params(**{name: 10})
    check_job(RunFolder(Config(Own(SAMPLES[kind]), made.teachers, made.cache, made.distill, folder=tmp_path)))


class Numbers(Own):
    """The same samples with a number each."""

    names = ("weight",)

    def __init__(self, samples: Any) -> None:
        self.rows = Rows(samples, np.arange(90), GENERATOR.normal(size=(90, 1)))


@pytest.mark.parametrize("kind", SAMPLES)
def test_networks_of_numbers_predict_variances_and_are_not_smoothed(kind: str, tmp_path: Any) -> None:
    made = defaults(SAMPLES[kind], 60, 15, Labels("regression", 1))
    (student,) = made.distill.students.values()
    networks = [one for one in made.teachers.members if isinstance(one, TorchMembers)]
    assert networks
    for one in networks:
        assert one.variance
        assert one.optimization.label_smoothing == 0
    assert student.variance
    for estimator in (recipe.estimator for recipe in made.teachers.members if hasattr(recipe, "estimator")):
        for name in {"n_estimators", "max_iter"} & estimator.get_params().keys():
            estimator.set_params(**{name: 10})
    check_job(
        RunFolder(Config(Numbers(SAMPLES[kind]), made.teachers, made.cache, made.distill, folder=tmp_path))
    )
    plain = defaults(SAMPLES[kind], 60, 15)
    assert not any(one.variance for one in plain.teachers.members if isinstance(one, TorchMembers))
    assert not any(one.variance for one in plain.distill.students.values())


def boosting_of(labelled: int, labels: Labels) -> dict[str, Any]:
    recipe = defaults(SAMPLES["array"], labelled, 0, labels).teachers.members[0]
    assert isinstance(recipe, SklearnMembers)
    own = getattr(recipe.estimator, "estimator", recipe.estimator)
    return {name: own.get_params()[name] for name in ("max_iter", "early_stopping")}


def test_boosting_of_many_rows_stops_early_where_no_class_is_rare() -> None:
    many = {"max_iter": 1000, "early_stopping": True}
    assert boosting_of(10_000, Labels(rarest=40)) == many
    assert boosting_of(10_000, Labels("regression", 1)) == many
    few = {"max_iter": 150, "early_stopping": False}
    assert boosting_of(60_000, Labels(rarest=39)) == few
    assert boosting_of(60_000, Labels()) == few
    assert boosting_of(60_000, Labels("multilabel", 3)) == few
    assert boosting_of(60_000, Labels("multilabel", 3, rarest=60_000)) == few
    assert boosting_of(9_999, Labels(rarest=40))["max_iter"] == 150


def test_a_large_pool_needs_no_synthetic_rows() -> None:
    assert defaults(SAMPLES["array"], 60, 80_000).cache.transfer.synthetic == []
    for rows, pool, made in ((60, 0, 5000), (60, 600, 12_600), (1001, 0, 20_020), (1000, 12_000, 68_000)):
        sources = defaults(SAMPLES["array"], rows, pool).cache.transfer.synthetic
        assert sources == [Exchange(rows=made)]
    for rows, pool, made in ((200, 900, 5550), (60, 0, 3000)):
        sources = defaults(SAMPLES["image array"], rows, pool).cache.transfer.synthetic
        assert sources == [Mixup(rows=made), CutMix(rows=made)]
    for kind, pool in (("image array", 1940), ("images", 0)):
        assert defaults(SAMPLES[kind], 60, pool).cache.transfer.synthetic == []
    assert defaults(SAMPLES["texts"], 60, 240).cache.transfer.synthetic == []
    for rows, made in ((60, 2000), (1001, 12_012), (14_000, 60_000)):
        assert defaults(SAMPLES["texts"], rows).cache.transfer.synthetic == [SpliceTexts(rows=made)]


def test_the_synthetic_rows_of_wide_tables_are_bounded_by_their_numbers() -> None:
    for columns, made in ((800, 80_000), (2000, 2**26 // 2000), (20_000, 5000)):
        samples = np.zeros((2, columns), np.float32)
        assert defaults(samples, 5000).cache.transfer.synthetic == [Exchange(rows=made)]
    frame = pd.DataFrame(np.zeros((2, 2000)), columns=[f"c{place}" for place in range(2000)])
    assert defaults(frame, 5000).cache.transfer.synthetic == [Exchange(rows=2**26 // 2000)]
    # A pool that is larger than this bound needs none.
    assert defaults(samples, 5000, 6000).cache.transfer.synthetic == []


@pytest.mark.parametrize("kind", SAMPLES)
def test_trainings_find_their_numbers_by_themselves(kind: str) -> None:
    made = defaults(SAMPLES[kind], 60, 15)
    student = made.distill.students["student"]
    networks = [one for one in made.teachers.members if isinstance(one, TorchMembers)]
    for optimization in (student.optimization, student.baseline):
        assert optimization.automatic == ("steps", "batch_size", "learning_rate")
    # Bags of n-grams on few labels need a lower rate: docs/texts.md.
    rate = () if kind == "texts" else ("learning_rate",)
    for one in networks:
        assert one.optimization.automatic == ("steps", "batch_size", *rate)
    assert networks


def test_networks_on_tables_embed_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def models_of(kind: str) -> list[Any]:
        made = defaults(SAMPLES[kind], 60, 15)
        (student,), member = made.distill.students.values(), made.teachers.recipes[-1]
        return [(one.model.func, one.preprocess) for one in (student, member)]

    assert models_of("table") == 2 * [(TabularMLP, TableDefaults(codes=8))]
    assert models_of("array")[0][0] is MLP
    monkeypatch.setattr("ensdistill.job.defaults.find_spec", lambda name: None)
    assert models_of("table") == 2 * [(MLP, "auto")]


def test_networks_on_many_rows_have_larger_batches_and_three_folds() -> None:
    def found(labelled: int) -> tuple[Any, int]:
        teachers = defaults(SAMPLES["table"], labelled).teachers
        return teachers.recipes[-1].optimization.batch_size, teachers.folds

    assert (found(9999), found(10_000)) == (("auto", 5), (256, 3))


def test_forests_of_many_rows_have_larger_leaves() -> None:
    def leaves(labelled: int) -> int:
        found = defaults(np.zeros((10, 3), np.float32), labelled, 0).teachers.members
        trees = next(one.estimator for one in found if getattr(one, "name", "") == "trees")
        return int(trees.min_samples_leaf)

    assert (leaves(50_000), leaves(50_001)) == (2, 5)


def test_samples_of_several_fields_have_no_default() -> None:
    with pytest.raises(TypeError, match="got mapping, for which there are no default models"):
        defaults({"a": np.zeros((3, 2)), "b": np.zeros(3)}, 3)
