"""The face for users of scikit-learn: an ensemble and its student as one estimator."""

from ensdistill.sklearn.classifier import DistilledClassifier
from ensdistill.sklearn.judgement import Report
from ensdistill.sklearn.regressor import DistilledRegressor

__all__ = ["DistilledClassifier", "DistilledRegressor", "Report"]
