"""A search for a student refuses wrong budgets, rows and settings."""

from unittest import mock

import numpy as np
import pytest
from search_helpers import Material, Tiny

from ensdistill.data import Rows
from ensdistill.student.search import SearchSettings, TooFewRows
from ensdistill.student.search.ladders import _refusal
from ensdistill.student.search.latency import Latency
from ensdistill.student.search.rows import lessons

pytest.importorskip("optuna")


@pytest.fixture(scope="module", autouse=True)
def no_export():
    """Making a graph of each candidate takes seconds."""
    with mock.patch("ensdistill.student.search.ladders.latency_of", return_value=Latency(2e-5, "none")):
        yield


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("search") / "cache")


def test_a_budget_below_every_candidate_names_the_nearest_and_the_remedy(material):
    with pytest.raises(
        ValueError,
        match=r"^max_bytes: expected at least 1,240 bytes \(tiny/4\); got 1,000 bytes\. Of tiny, the nearest "
        r"candidate is tiny/4, with 1,240 bytes: raise max_bytes beyond 1,240 bytes, or name other families$",
    ):
        material.search(max_bytes="1kB")
    with pytest.raises(ValueError, match=r"max_latency: expected at least 20 us \(tiny/32\); got 1\.5 us"):
        material.search(max_latency="1.5us", families=[Large()])


class Large(Tiny):
    def candidates(self, about):
        return Tiny.candidates(self, about)[1:]


def test_budgets_that_no_candidate_meets_together_name_the_least_of_each():
    settings = SearchSettings(max_bytes="20kB", max_latency="15us")
    beyond = {"mlp/16": {"seconds": 1.8e-5, "bytes": 7592.0}, "cnn/4-8": {"seconds": 9e-6, "bytes": 9e4}}
    assert _refusal(settings, "mlp, cnn", beyond) == (
        "max_latency and max_bytes: expected one candidate within all of them; the least of each are 9 us "
        "(cnn/4-8) and 7,592 bytes (mlp/16); got 15 us and 20,000 bytes. Of mlp, cnn, the nearest candidate is "
        "mlp/16, with 18 us and 7,592 bytes: raise max_latency beyond 18 us, or name other families"
    )


def test_too_few_rows_of_any_kind_are_refused(material):
    pool = int((material.rows.labels < 0).sum())
    with pytest.raises(
        TooFewRows, match=rf"at least 203 rows that judge; 0 were given, .* {pool} rows without a label"
    ):
        material.search(validation=None, ensemble=None)


def test_too_few_validation_rows_say_how_many_are_needed(material):
    few = material.validation.take(np.arange(20))
    with pytest.raises(TooFewRows, match=r"20 were given.*pass 183 more labelled rows"):
        material.search(validation=few, ensemble=material.probabilities[:20])


def test_validation_rows_that_students_learn_from_are_refused(material):
    with pytest.raises(ValueError, match=r"validation: uid 3 is among the rows"):
        material.search(validation=material.rows.take(np.arange(3, 300)), ensemble=None)


def test_probabilities_of_another_shape_are_refused(material):
    with pytest.raises(ValueError, match=r"ensemble: expected probabilities \[300, 10\]; got \[300, 9\]"):
        material.search(ensemble=material.probabilities[:, :9])
    with pytest.raises(ValueError, match="ensemble: expected the ensemble's probabilities"):
        material.search(ensemble=None)


def test_held_out_rows_of_the_cache_are_no_lessons(material):

    known = {"given": (material.rows, material.cache)}
    few = Rows(material.validation.inputs[:100], np.arange(9000, 9100), material.validation.labels[:100])
    made = lessons(known, few, material.probabilities[:100], None, 0)
    assert len(made.judged.rows) == 203
    assert made.synthetic == 0
    real = int((material.rows.labels >= 0).sum()) + 100  # some of the rows held out are synthetic
    with_synthetic = lessons(known, few, material.probabilities[:100], None, 0, real)
    synthetic = np.asarray(material.rows.inputs)[real:].reshape(len(material.rows) - real, -1)
    own = np.asarray(with_synthetic.judged.rows.inputs)[100:].reshape(103, -1)
    assert with_synthetic.synthetic == (own[:, None] == synthetic).all(2).any(1).sum() > 0
    learned = made.mixtures["given"][0]
    assert len(learned) == len(material.rows) - 103
    inputs = {row.tobytes() for row in np.asarray(learned.inputs)}
    held = np.asarray(made.judged.rows.inputs)[100:]
    assert not any(row.tobytes() in inputs for row in held)
    own = material.ensemble.predict_proba(held)
    assert np.abs(made.judged.ensemble[100:] - own).max() < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.5}, "keep: expected a share"),
        ({"max_latency": "50 parsec"}, "max_latency: expected a positive number, or a time such as 50us"),
        ({"max_bytes": "-3kB"}, "max_bytes: expected"),
        ({"max_parameters": 0}, "max_parameters: expected an integer"),
        ({"minutes": 0}, "minutes: expected a positive number"),
        ({"trials": 0}, "trials: expected an integer"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**settings)


def test_an_unknown_family_is_refused(material):
    with pytest.raises(ValueError, match="families: expected one of mlp, embeddings"):
        material.search(families=["mpl"])
    with pytest.raises(ValueError, match="families: 'ngrams' does not fit these samples: it takes texts"):
        material.search(families=["ngrams"])
