"""Data: samples with stable ids, splits, transfer sets and versions."""

from ensdistill.data.datasets import ArrayDataset, Dataset, Digits
from ensdistill.data.guess import Guess, guess_task
from ensdistill.data.multilabel import as_multilabels, from_tags
from ensdistill.data.partition import Partition
from ensdistill.data.quantities import as_numbers
from ensdistill.data.rows import UNLABELLED, BadRows, Rows, check_finite
from ensdistill.data.sources import ImageFolder, Items, Table, Texts
from ensdistill.data.splits import Split, stratified_split

__all__ = [
    "UNLABELLED",
    "ArrayDataset",
    "BadRows",
    "Dataset",
    "Digits",
    "Guess",
    "ImageFolder",
    "Items",
    "Partition",
    "Rows",
    "Split",
    "Table",
    "Texts",
    "as_multilabels",
    "as_numbers",
    "check_finite",
    "from_tags",
    "guess_task",
    "stratified_split",
]
