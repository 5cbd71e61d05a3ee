"""One trunk with a head for each of several data sets, each distilled from a cache of its own; also outputs
at each pixel or anchor."""

from ensdistill.student.shared.modules import Headed
from ensdistill.student.shared.report import SetReport
from ensdistill.student.shared.sets import HeadSet
from ensdistill.student.shared.training import SharedStudents, distill_sets

__all__ = ["HeadSet", "Headed", "SetReport", "SharedStudents", "distill_sets"]
