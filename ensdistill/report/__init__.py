"""The report of a run: one page, one JSON file and one table of how much of the ensemble was kept."""

from ensdistill.report.html import write_report
from ensdistill.report.judge import judge
from ensdistill.report.multilabel_metrics import LabelProbabilities, tuned_thresholds
from ensdistill.report.regression_metrics import Forecasts
from ensdistill.report.results import MemberResult, ModelResult, RunResults, StudentResults
from ensdistill.report.table import as_text

__all__ = [
    "Forecasts",
    "LabelProbabilities",
    "MemberResult",
    "ModelResult",
    "RunResults",
    "StudentResults",
    "as_text",
    "judge",
    "tuned_thresholds",
    "write_report",
]
