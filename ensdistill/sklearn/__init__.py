"""The face for users of scikit-learn: an ensemble and its student as one classifier."""

from ensdistill.sklearn.classifier import DistilledClassifier
from ensdistill.sklearn.judgement import Report

__all__ = ["DistilledClassifier", "Report"]
