"""Teachers, transfer set and student for samples of a kind, where the settings name none.

They are fixed choices by the kind and the number of samples. Nothing is searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import ComplementNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import StudentOptimization
from ensdistill.data.preprocess import HashedNgrams, TableDefaults, power_scaler
from ensdistill.data.samples import as_samples, form
from ensdistill.data.transfer import CutMix, Exchange, Mixup, SpliceTexts, TransferSet
from ensdistill.job.config import CacheConfig, DistillConfig, TeachersConfig
from ensdistill.job.kinds_of_labels import Labels
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import CNN, MLP, BagOfNgrams, TabularMLP
from ensdistill.student.automatic import DIRECT
from ensdistill.teachers.recipes import Recipe, SklearnMembers, TorchMembers

NETWORKS = 3  # networks of one kind in the ensemble
# Unlabelled samples beside the labelled ones: so many for each real one, at least, at most. Those that the
# pool lacks are made. Members take longer for a text than for a row of numbers.
ROWS, IMAGES, TEXTS = (20, 5_000, 80_000), (12, 6_000, 12_000), (12, 2_000, 60_000)
NUMBERS = 2**26  # in the made rows of a table, at most: 512 MiB of float64; wider tables get fewer rows
FEW = 2_000  # images; more of them are better without made ones: docs/transfer.md has the comparison
# Labelled rows from which boosting has more and larger trees and stops early, networks have larger batches,
# and three folds are enough; and those of the rarest class that stopping early needs. docs/numbers.md
SEVERAL, RAREST, BATCH, FOLDS = 10_000, 40, 256, 3
MANY = 50_000  # labelled rows, beyond which leaves are larger: a forest would take gigabytes. docs/numbers.md
# Steps, batch sizes and learning rates are auto: trainings find them by their rows. Members try more or less
# regularisation first.
NETWORK = Optimization(weight_decay=0.05, label_smoothing=0.1)
STUDENT = StudentOptimization()
NGRAMS = HashedNgrams(words=1, characters=(3, 4), buckets=16384, length=200)


@dataclass(frozen=True)
class Defaults:
    """The stages' settings of one job."""

    teachers: TeachersConfig
    cache: CacheConfig
    distill: DistillConfig


def defaults(samples: Any, labelled: int, pool: int = 0, labels: Labels = Labels()) -> Defaults:  # noqa: B008
    """The settings for samples without settings of their own.

    Tables and arrays [N, F]: boosted trees, extremely randomised trees and three networks; synthetic rows
    by exchange with neighbours where the pool is small; a network with two hidden layers as the student.
    Networks on tables have embeddings of their numbers where the package ``rtdl_num_embeddings`` is there.
    Images: convolution networks; few arrays are mixed and cut. Texts: linear models of
    TF-IDF, and sums of n-gram embeddings; synthetic texts of a beginning and an end where the pool is small.
    Several labels have an estimator for each. Numbers have regressors of the same kinds, whose networks, like
    the student, predict variances, too.

    Parameters
    ----------
    samples : samples of any kind
        The labelled ones, or some of them: their kind decides.
    labelled, pool : int
        Rows with and without labels.
    labels : Labels

    Raises
    ------
    TypeError
        Samples of several fields, for which there is no default model.

    Examples
    --------
    >>> import numpy as np
    >>> [recipe.name for recipe in defaults(np.zeros((10, 3), np.float32), 10).teachers.members]
    ['boosting', 'trees', 'mlp']
    """
    samples = as_samples(samples)
    about = form(samples)
    kind = about["kind"]
    if kind == "table":
        made = _of_numbers(len(about["columns"]), labelled, pool, "auto", labels)
        return made if find_spec("rtdl_num_embeddings") is None else _embedded(made)
    if kind == "text":
        return _of_texts(labelled, pool, labels)
    shape = samples[:1].shape[1:] if kind in ("array", "tensor") else ()
    if kind == "images" or len(shape) == 3:
        return _of_images(labelled, pool, shape, labels)
    if kind in ("array", "tensor"):
        preprocess = scaler_of(samples) if len(shape) == 1 else "auto"
        return _of_numbers(math.prod(shape), labelled, pool, preprocess, labels)
    raise TypeError(
        f"samples: expected a table, an array, images or texts; got {kind}, for which there are no default "
        "models: name teachers and student"
    )


def scaler_of(samples: Any) -> Any:
    """The scaler of an array [N, F]: by powers, which can't be fitted in float16."""
    return StandardScaler() if str(samples[:1].dtype).endswith("float16") else power_scaler()


def _embedded(made: Defaults) -> Defaults:
    """With networks of embedded numbers as members and as student: docs/numbers.md has the comparison."""
    network = partial(TabularMLP, hidden=[128, 128], numbers="piecewise", width=8)
    preprocess = TableDefaults(codes=8)
    *trees, networks = made.teachers.recipes
    assert isinstance(networks, TorchMembers)
    members = [*trees, replace(networks, model=partial(network, dropout=0.2), preprocess=preprocess)]
    (student,) = made.distill.students.values()
    student = replace(student, model=partial(network, activation="silu"), preprocess=preprocess)
    return replace(
        made,
        teachers=replace(made.teachers, members=members),
        distill=replace(made.distill, students={"student": student}),
    )


def _of_numbers(columns: int, labelled: int, pool: int, preprocess: Any, labels: Labels) -> Defaults:
    factor, least, most = ROWS
    made = _lacking(labelled, pool, factor, least, max(least, min(most, NUMBERS // max(1, columns))))
    synthetic = [Exchange(rows=made)] if made else []  # docs/transfer.md has the comparison
    boosting: dict[str, Any] = {  # docs/numbers.md has the comparison
        "learning_rate": 0.05,
        "max_iter": 150,
        "max_leaf_nodes": 15,
        "l2_regularization": 1.0,
        "max_features": 0.5,
    }
    optimization = _network(labels)
    if labelled >= SEVERAL:
        optimization = replace(optimization, batch_size=BATCH)
        if labels.task == "regression" or (labels.task == "classification" and labels.rarest >= RAREST):
            boosting |= {"max_iter": 1000, "max_leaf_nodes": 63, "early_stopping": True}
        else:  # scikit-learn stops early by the number of rows, and fails at a class or label of one row
            boosting["early_stopping"] = False
    forest = {"n_estimators": 200, "min_samples_leaf": 5 if labelled > MANY else 2}
    estimators: dict[str, Any] = {
        "boosting": _each(HistGradientBoostingClassifier(**boosting), labels),
        "trees": ExtraTreesClassifier(**forest),
    }
    if labels.task == "regression":
        estimators = {
            "boosting": _each(HistGradientBoostingRegressor(**boosting), labels),
            "trees": ExtraTreesRegressor(**forest),
        }
    if labels.gaps:
        del estimators["trees"]
    members: list[Recipe] = [
        *(SklearnMembers(estimator, name=name) for name, estimator in estimators.items()),
        TorchMembers(
            partial(MLP, hidden=[256, 256], dropout=0.2),
            NETWORKS,
            optimization=optimization,
            preprocess=preprocess,
            variance=labels.task == "regression",
            tune=True,
        ),
    ]
    student = partial(MLP, hidden=[128, 128], activation="silu")
    made_of = _job(members, synthetic, student, preprocess, labels)
    folds = FOLDS if labelled >= SEVERAL else made_of.teachers.folds
    # Trees and networks are unequal: docs/teachers.md has the comparison.
    return replace(made_of, teachers=replace(made_of.teachers, select=True, folds=folds))


def _network(labels: Labels) -> Optimization:
    """How networks learn; numbers are not smoothed."""
    return replace(NETWORK, label_smoothing=0.0) if labels.task == "regression" else NETWORK


def _each(estimator: Any, labels: Labels) -> Any:
    """The estimator, once for each label, and for each number where there are several."""
    if labels.task == "multilabel":
        return MultiOutputClassifier(estimator)
    return MultiOutputRegressor(estimator) if labels.count > 1 else estimator


def _of_images(labelled: int, pool: int, shape: tuple[int, ...], labels: Labels) -> Defaults:
    network = partial(CNN, channels=[16, 32], hidden=[64], dropout=0.3)
    variance = labels.task == "regression"
    members: list[Recipe] = [
        TorchMembers(network, NETWORKS, optimization=_network(labels), variance=variance, tune=True)
    ]
    student = partial(CNN, channels=[8, 16], activation="silu", pooling="average")
    # Pictures in files may have unlike sizes, which cannot be mixed.
    few = shape and labelled + pool < FEW
    half = _lacking(labelled, pool, *IMAGES) // 2 if few else 0
    synthetic = [Mixup(rows=half), CutMix(rows=half)] if half else []
    return _job(members, synthetic, student, "auto", labels)


def _of_texts(labelled: int, pool: int, labels: Labels) -> Defaults:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    linear: dict[str, Any] = {
        "logistic": (characters, _each(LogisticRegression(C=10.0, max_iter=1000), labels)),
        "bayes": (words, _each(ComplementNB(alpha=0.3), labels)),
    }
    if labels.task == "regression":  # ridge regression takes several numbers itself
        linear = {"characters": (characters, Ridge()), "words": (words, Ridge())}
    members: list[Recipe] = [
        *(SklearnMembers(make_pipeline(*parts), name=name) for name, parts in linear.items()),
        TorchMembers(
            partial(BagOfNgrams, width=64, dropout=0.3),
            2,
            optimization=replace(_network(labels), learning_rate=7e-4),  # docs/texts.md has the comparison
            way="one_by_one",  # torch has no batching rule for an embedding bag: a stack is five times slower
            preprocess=NGRAMS,
            variance=labels.task == "regression",
        ),
    ]
    made = 0 if pool >= 4 * labelled else _lacking(labelled, 0, *TEXTS)
    synthetic = [SpliceTexts(rows=made)] if made else []
    student = partial(BagOfNgrams, width=32, dropout=0.3)
    return _job(members, synthetic, student, NGRAMS, labels)


def _job(
    members: list[Recipe], synthetic: list[Any], model: Any, preprocess: Any, labels: Labels
) -> Defaults:
    variance = labels.task == "regression"
    student = StudentConfig(model, STUDENT, DIRECT, preprocess=preprocess, variance=variance)
    return Defaults(
        TeachersConfig(members),
        CacheConfig(TransferSet(synthetic=synthetic)),
        DistillConfig({"student": student}),
    )


def _lacking(labelled: int, pool: int, factor: int, least: int, most: int) -> int:
    """How many samples the pool lacks."""
    return max(0, max(least, min(factor * (labelled + pool), most)) - pool)
