"""scikit-learn's own checks of estimators."""

import pytest
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn_helpers import small, takes_gaps

from ensdistill.sklearn import DistilledClassifier

WEIGHTS = (
    "a row of weight 2 counts twice in every loss, but two copies are drawn into batches and folds by themselves, "
    "so the students are alike and not equal"
)


def expected_failures(estimator):
    return {"check_sample_weight_equivalence_on_dense_data": WEIGHTS}


@parametrize_with_checks([small()], expected_failed_checks=expected_failures)
def test_a_network_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        small(student=DecisionTreeClassifier(max_depth=6)),
        takes_gaps(validation_fraction=0.2),
        DistilledClassifier(
            [("trees", ExtraTreesClassifier(20)), HistGradientBoostingClassifier(max_iter=20)], n_jobs=2
        ),
    ],
    expected_failed_checks=expected_failures,
)
def test_other_parameters_pass_them_too(estimator, check):
    check(estimator)


def test_tags_follow_the_teachers_and_the_student():
    assert get_tags(DistilledClassifier()).input_tags.allow_nan
    assert not get_tags(small()).input_tags.allow_nan
    assert get_tags(takes_gaps()).input_tags.allow_nan
    assert get_tags(small()).classifier_tags.multi_class
    assert get_tags(small()).target_tags.required
