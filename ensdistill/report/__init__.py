"""The report of a run: one page, one JSON file and one table of how much of the ensemble was kept."""

from ensdistill.report.html import write_report
from ensdistill.report.judge import judge
from ensdistill.report.results import MemberResult, ModelResult, RunResults, StudentResults
from ensdistill.report.table import print_report

__all__ = ["MemberResult", "ModelResult", "RunResults", "StudentResults", "judge", "print_report", "write_report"]
