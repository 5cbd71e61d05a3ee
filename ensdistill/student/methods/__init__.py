"""The methods that a student is trained by: one loss a file. ``docs/extending.md`` shows one from outside the
package."""

from ensdistill.student.methods.alpha_divergence import AlphaDivergence
from ensdistill.student.methods.by_task import loss_by_task
from ensdistill.student.methods.correlation import Correlation
from ensdistill.student.methods.decoupled import Decoupled
from ensdistill.student.methods.hard_labels import HardLabels
from ensdistill.student.methods.method import Method
from ensdistill.student.methods.mix import Mix, temperatures_of
from ensdistill.student.methods.moment_targets import MomentTargets
from ensdistill.student.methods.multi_level import MultiLevel
from ensdistill.student.methods.names import METHODS, build, method_or_loss
from ensdistill.student.methods.own import as_student_loss, changes_network, name_of
from ensdistill.student.methods.protocol import Start, StudentLoss, check_takes_mixture, code_and_values
from ensdistill.student.methods.soft_labels import SoftLabels
from ensdistill.student.methods.soft_targets import SoftTargets
from ensdistill.student.methods.squared_logits import SquaredLogits
from ensdistill.student.methods.standardised import Standardised

__all__ = [
    "METHODS",
    "AlphaDivergence",
    "Correlation",
    "Decoupled",
    "HardLabels",
    "Method",
    "Mix",
    "MomentTargets",
    "MultiLevel",
    "SoftLabels",
    "SoftTargets",
    "SquaredLogits",
    "Standardised",
    "Start",
    "StudentLoss",
    "as_student_loss",
    "build",
    "changes_network",
    "check_takes_mixture",
    "code_and_values",
    "loss_by_task",
    "method_or_loss",
    "name_of",
    "temperatures_of",
]
