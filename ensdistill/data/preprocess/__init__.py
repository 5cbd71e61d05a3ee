"""Preprocessing that members and students carry with them: from raw samples to a model's own input."""

from ensdistill.data.preprocess.base import Preprocess, load_preprocess
from ensdistill.data.preprocess.images import ImageTransform
from ensdistill.data.preprocess.tables import Transformer, default_transformer
from ensdistill.data.preprocess.texts import HashedNgrams, Tokens

__all__ = [
    "HashedNgrams",
    "ImageTransform",
    "Preprocess",
    "Tokens",
    "Transformer",
    "default_transformer",
    "load_preprocess",
]
