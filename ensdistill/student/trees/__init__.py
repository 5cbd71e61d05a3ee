"""Students that are not networks: boosted trees with the KL objective, and estimators of scikit-learn."""

from ensdistill.student.trees.judge import DEFAULT_VALIDATION, check_validation
from ensdistill.student.trees.objective import Objective
from ensdistill.student.trees.student import FittedStudent, TreeStudent

__all__ = ["DEFAULT_VALIDATION", "FittedStudent", "Objective", "TreeStudent", "check_validation"]
