"""Data sets that a run's settings name: tables, image folders, texts and map-style data sets."""

from ensdistill.data.sources.table import Table

__all__ = ["Table"]
