"""Students that are not networks: boosted trees with the KL objective, and estimators of scikit-learn."""

from ensdistill.student.trees.objective import Objective
from ensdistill.student.trees.student import FittedStudent, TreeStudent
from ensdistill.student.trees.validation import Validation

__all__ = ["FittedStudent", "Objective", "TreeStudent", "Validation"]
