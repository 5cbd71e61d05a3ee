"""What was kept of the ensemble: one page, one JSON file, one table, made from the results of a run."""

from ensdistill.report.html import write_report
from ensdistill.report.judge import judge
from ensdistill.report.results import MemberResult, ModelResult, RunResults, StudentResults
from ensdistill.report.table import as_text

__all__ = ["MemberResult", "ModelResult", "RunResults", "StudentResults", "as_text", "judge", "write_report"]
