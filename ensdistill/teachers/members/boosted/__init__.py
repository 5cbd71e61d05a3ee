"""Boosted trees of XGBoost, LightGBM and CatBoost as members, each in its library's own file format."""

from __future__ import annotations

from ensdistill.teachers.members.boosted.libraries import LIBRARIES, check_keywords, library_of
from ensdistill.teachers.members.boosted.member import BoostedMember

__all__ = ["LIBRARIES", "BoostedMember", "check_keywords", "library_of"]
