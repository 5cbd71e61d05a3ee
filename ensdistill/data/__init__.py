"""Data: samples with stable ids, splits, transfer sets and versions."""

from ensdistill.data.datasets import ArrayDataset, Dataset, Digits
from ensdistill.data.partition import Partition
from ensdistill.data.rows import UNLABELLED, BadRows, Rows, check_finite
from ensdistill.data.sources import ImageFolder, Items, Table, Texts
from ensdistill.data.splits import Split, stratified_split

__all__ = [
    "UNLABELLED",
    "ArrayDataset",
    "BadRows",
    "Dataset",
    "Digits",
    "ImageFolder",
    "Items",
    "Partition",
    "Rows",
    "Split",
    "Table",
    "Texts",
    "check_finite",
    "stratified_split",
]
