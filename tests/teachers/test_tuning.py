"""The search for networks' settings before an ensemble is trained."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ensdistill.common.files import read_json
from ensdistill.common.optimization import Optimization
from ensdistill.data import Rows
from ensdistill.data.copies import stratified_folds
from ensdistill.data.preprocess import HashedNgrams
from ensdistill.models import MLP, BagOfNgrams
from ensdistill.teachers import tuning
from ensdistill.teachers.jobs import TrainingRows
from ensdistill.teachers.out_of_fold import train_ensemble
from ensdistill.teachers.prepared import Prepared, prepare_recipes
from ensdistill.teachers.recipes import SklearnMembers, TorchMembers
from ensdistill.teachers.tuning import tuned

BASE = Optimization(steps=256, batch_size=32, learning_rate=0.02, weight_decay=0.01)


@pytest.fixture(scope="module")
def noisy():
    """Labels of which a fifth are wrong, so that long trainings overfit."""
    random = np.random.default_rng(0)
    x = random.normal(size=(240, 20)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    wrong = random.random(240) < 0.2
    return TrainingRows(x, np.where(wrong, 1 - y, y), ("no", "yes"))


def recipe(**more):
    model = partial(MLP, inputs=20, hidden=[64], outputs=2, dropout=0.1)
    return TorchMembers(model, 2, name="net", optimization=BASE, preprocess=None, tune=True, **more)


def parts_of(data):
    return stratified_folds(data.inputs, data.labels, 3, 1)


@pytest.fixture(scope="module")
def found(noisy, tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("tuning"), []
    return tuned(recipe(), noisy, parts_of(noisy), 0, folder, lambda *at: seen.append(at)), folder, seen


def test_the_settings_found_are_those_of_the_least_held_out_loss(found):
    made, folder, seen = found
    tried = {name: one["nll"] for name, one in read_json(folder / "choice.json")["tried"].items()}
    kept = tuning.Choice(
        made.optimization.steps, made.optimization.learning_rate, made.optimization.weight_decay,
        made.optimization.label_smoothing, tuning.dropout_of(made.model),
    )  # fmt: skip
    assert tried[str(kept)] == min(tried.values())
    assert len(tried) >= 4
    assert not made.tune
    assert made.count == 2
    assert seen[-1][0] == len(tried)


@pytest.mark.parametrize(
    "best", [(16, 2.0, 100.0, 0.1, 0.5), (1, 1.0, 1.0, 0.0, 0.1), (4, 0.25, 10.0, 0.1, 0.1)]
)
def test_the_search_climbs_to_the_best_of_each_setting(best):
    """Where each setting has one lowest point, all are found."""
    steps, rate, decay, smoothing, dropout = best
    first = tuning.Choice(256, 0.02, 0.01, 0.0, 0.1)

    def loss(choice):
        return (
            abs(np.log(choice.steps * steps / 256)) + abs(np.log(choice.weight_decay / (0.01 * decay)))
            + abs(choice.label_smoothing - smoothing) + abs(choice.dropout - dropout)
            + abs(np.log(choice.learning_rate / (0.02 * rate)))
        )  # fmt: skip

    assert tuning._climbed(first, "classification", loss) == tuning.Choice(
        256 // steps, 0.02 * rate, 0.01 * decay, smoothing, dropout
    )


def test_a_search_goes_on_after_a_kill(found, noisy, monkeypatch):
    made, folder, _ = found

    def trains(*_, **__):
        raise AssertionError("everything is known")

    monkeypatch.setattr(TorchMembers, "fit", trains)
    again = tuned(recipe(), noisy, parts_of(noisy), 0, folder)
    assert again.optimization == made.optimization
    with pytest.raises(AssertionError):  # other settings are judged anew
        tuned(replace(recipe(), optimization=replace(BASE, steps=96)), noisy, parts_of(noisy), 0, folder)


def test_equal_calls_find_equal_settings_with_and_without_a_folder(found, noisy):
    made, _, _ = found
    again = tuned(recipe(), noisy, parts_of(noisy), 0)
    assert again.optimization == made.optimization
    assert tuning.dropout_of(again.model) == tuning.dropout_of(made.model)


def test_numbers_are_not_smoothed_and_judged_in_their_units(tmp_path):
    random = np.random.default_rng(1)
    x = random.normal(size=(200, 6)).astype(np.float32)
    y = (1000 * x[:, :1] + 300 * random.normal(size=(200, 1))).astype(np.float64)
    data = TrainingRows(x, y, ("price",))
    model = partial(MLP, inputs=6, hidden=[32], outputs=1)
    asked = TorchMembers(
        model, 1, name="net", optimization=replace(BASE, steps=64), preprocess=None, tune=True
    )
    made = tuned(asked, data, parts_of(data), 0, tmp_path)
    assert made.optimization.label_smoothing == 0
    tried = [one["nll"] for one in read_json(tmp_path / "choice.json")["tried"].values()]
    assert 7 < min(tried) < 8.5, "the NLL of errors of 300 to 1000: log of the deviation and 1.42"


def test_other_recipes_and_many_rows_stay_as_they_are(noisy, monkeypatch):
    parts = parts_of(noisy)
    for one in (replace(recipe(), tune=False), SklearnMembers(LogisticRegression())):
        assert tuned(one, noisy, parts, 0) is one
    monkeypatch.setattr(tuning, "MANY", 100)
    asked = recipe()
    assert tuned(asked, noisy, parts, 0) is asked


def test_a_prepared_recipe_keeps_its_preprocess(noisy):
    from sklearn.preprocessing import StandardScaler

    asked = replace(recipe(), preprocess=StandardScaler(), optimization=replace(BASE, steps=32))
    (one,) = prepare_recipes([asked], noisy.inputs, 2, 0)
    made = tuned(one, noisy, parts_of(noisy)[:1], 0)
    assert isinstance(made, Prepared)
    assert made.preprocess is one.preprocess


def test_networks_of_texts_are_tuned(tmp_path):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 90)
    texts = [" ".join(random.choice([["good", "fine"], ["bad", "poor"]][y], 3)) for y in labels]
    asked = TorchMembers(
        partial(BagOfNgrams, width=8, dropout=0.1), 1, name="net", optimization=replace(BASE, steps=24),
        way="one_by_one", preprocess=HashedNgrams(words=1, characters=(3, 3), buckets=256, length=16), tune=True,
    )  # fmt: skip
    rows = Rows(texts, np.arange(90), labels)
    ensemble, _ = train_ensemble([asked], rows, ("bad", "good"), folds=3, folder=tmp_path)
    tried = read_json(tmp_path / "tuning" / "net" / "choice.json")["tried"]
    assert len(tried) >= 4
    assert all(one["nll"] < np.log(2) for one in tried.values())
    assert ensemble.predict_proba(texts).argmax(1).tolist() == labels.tolist()


def test_members_of_one_training_can_not_be_tuned():
    with pytest.raises(ValueError, match="tune: expected members of trainings of their own"):
        recipe(method="snapshot")


def test_trainings_that_all_diverge_are_an_error(noisy):
    asked = replace(recipe(), optimization=replace(BASE, learning_rate=1e30, steps=20))
    with pytest.raises(FloatingPointError, match="net: every training of the search"):
        tuned(asked, noisy, parts_of(noisy), 0)


def test_an_ensemble_is_trained_with_the_settings_found(noisy, tmp_path):
    rows = Rows(noisy.inputs, np.arange(240), noisy.labels)
    known = []

    class Watcher:
        def __call__(self, status):
            known.append(status.steps)

        def tuning(self, name, done, total):
            known.append((name, done, total))

    watch = Watcher()
    ensemble, _ = train_ensemble([recipe()], rows, noisy.classes, folds=3, folder=tmp_path, progress=watch)
    assert [one for one in known if isinstance(one, tuple)][-1][0] == "net"
    tried = read_json(tmp_path / "tuning" / "net" / "choice.json")["tried"]
    best = min(tried, key=lambda name: tried[name]["nll"])
    assert {one for one in known if isinstance(one, int)} == {int(best.split()[0])}
    assert ensemble.names == ("net-1", "net-2")
