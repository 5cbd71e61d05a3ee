"""Preprocessing that members and students carry with them: from raw samples to a model's own input.

The names are loaded when they are first used: that of texts needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "base": ("Preprocess", "Settings", "load_preprocess"),
    "categories": ("Categorical", "Categories"),
    "images": ("ImageTransform",),
    "modules": ("ModuleTransform",),
    "named": ("Named",),
    "settings": ("TableDefaults", "as_preprocess", "as_setting", "fitted", "preprocess_file", "trusted_by"),
    "tables": ("Transformer", "default_transformer", "power_scaler"),
    "texts": ("HashedNgrams", "Tokens"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

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
    "power_scaler",
    "preprocess_file",
    "trusted_by",
]

if TYPE_CHECKING:
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
    from ensdistill.data.preprocess.tables import Transformer, default_transformer, power_scaler
    from ensdistill.data.preprocess.texts import HashedNgrams, Tokens


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
