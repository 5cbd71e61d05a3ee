"""The search for a student: the smallest that keeps enough, or the best within a budget."""

from ensdistill.student.search.families import About, Candidate, Family
from ensdistill.student.search.journal import OtherSearch
from ensdistill.student.search.result import Cost, Point, SearchResult
from ensdistill.student.search.rows import TooFewRows
from ensdistill.student.search.search import search_student
from ensdistill.student.search.settings import SearchSettings

__all__ = [
    "About",
    "Candidate",
    "Cost",
    "Family",
    "OtherSearch",
    "Point",
    "SearchResult",
    "SearchSettings",
    "TooFewRows",
    "search_student",
]
