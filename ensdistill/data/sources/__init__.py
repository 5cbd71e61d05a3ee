"""Data sets that a run's settings name: tables, image folders, texts and map-style data sets."""

from ensdistill.data.sources.images import ImageFolder
from ensdistill.data.sources.items import Items
from ensdistill.data.sources.table import Table
from ensdistill.data.sources.texts import Texts

__all__ = ["ImageFolder", "Items", "Table", "Texts"]
