"""The methods that a student is trained by: one loss a file. ``docs/extending.md`` shows one from outside the
package."""

from ensdistill.student.methods.by_task import loss_by_task
from ensdistill.student.methods.hard_labels import HardLabels
from ensdistill.student.methods.moment_targets import MomentTargets
from ensdistill.student.methods.own import as_student_loss, given_loss, name_of
from ensdistill.student.methods.protocol import StudentLoss, check_takes_mixture, code_and_values
from ensdistill.student.methods.soft_labels import SoftLabels
from ensdistill.student.methods.soft_targets import SoftTargets

__all__ = [
    "HardLabels",
    "MomentTargets",
    "SoftLabels",
    "SoftTargets",
    "StudentLoss",
    "as_student_loss",
    "check_takes_mixture",
    "code_and_values",
    "given_loss",
    "loss_by_task",
    "name_of",
]
