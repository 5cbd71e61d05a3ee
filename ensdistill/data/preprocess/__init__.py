"""Preprocessing that members and students carry with them: from raw samples to a model's own input."""

from ensdistill.data.preprocess.base import Preprocess, Settings, load_preprocess
from ensdistill.data.preprocess.categories import Categorical, Categories
from ensdistill.data.preprocess.images import ImageTransform
from ensdistill.data.preprocess.modules import ModuleTransform
from ensdistill.data.preprocess.named import Named
from ensdistill.data.preprocess.settings import (
    TableDefaults,
    as_preprocess,
    as_setting,
    fitted,
    preprocess_file,
    trusted_by,
)
from ensdistill.data.preprocess.tables import Transformer, default_transformer
from ensdistill.data.preprocess.texts import HashedNgrams, Tokens

__all__ = [
    "Categorical",
    "Categories",
    "HashedNgrams",
    "ImageTransform",
    "ModuleTransform",
    "Named",
    "Preprocess",
    "Settings",
    "TableDefaults",
    "Tokens",
    "Transformer",
    "as_preprocess",
    "as_setting",
    "default_transformer",
    "fitted",
    "load_preprocess",
    "preprocess_file",
    "trusted_by",
]
