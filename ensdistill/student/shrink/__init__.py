"""Students made from a member of the ensemble: pruned, factorised or quantised, and then distilled."""

from ensdistill.student.shrink.compact import Compact
from ensdistill.student.shrink.low_rank import LowRank
from ensdistill.student.shrink.rounding import Rounding
from ensdistill.student.shrink.settings import Shrink
from ensdistill.student.shrink.shrinking import Shrunk, shrink
from ensdistill.student.shrink.structured import Resized

__all__ = ["Compact", "LowRank", "Resized", "Rounding", "Shrink", "Shrunk", "shrink"]
