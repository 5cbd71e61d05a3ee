"""The methods that a student is trained by: one loss a file. ``docs/extending.md`` shows one from outside the
package."""

from ensdistill.student.methods.hard_labels import HardLabels
from ensdistill.student.methods.own import as_student_loss, name_of
from ensdistill.student.methods.protocol import StudentLoss, check_takes_mixture, code_and_values
from ensdistill.student.methods.soft_targets import SoftTargets

__all__ = [
    "HardLabels",
    "SoftTargets",
    "StudentLoss",
    "as_student_loss",
    "check_takes_mixture",
    "code_and_values",
    "name_of",
]
