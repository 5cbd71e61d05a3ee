"""``auto``: a strong mixed ensemble for tables within a budget of time."""

from ensdistill.teachers.auto.facts import Facts, facts_of
from ensdistill.teachers.auto.plan import MINUTES, Plan, PlannedMember, auto_plan, check_minutes

__all__ = ["MINUTES", "Facts", "Plan", "PlannedMember", "auto_plan", "check_minutes", "facts_of"]
