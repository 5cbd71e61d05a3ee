"""Settings that never change a prediction, by library. Fingerprints leave them out."""

from __future__ import annotations

import re
from typing import Any

# By package or module: attributes of its own classes. A subclass elsewhere may use them otherwise, so its own
# count.
_NEUTRAL: dict[str, tuple[str, ...]] = {
    "sklearn": ("n_jobs", "verbose", "warm_start", "memory", "pre_dispatch", "cache_size"),
    "sklearn.feature_extraction.text": ("_stop_words_id",),  # an address: other processes have others
    "xgboost": ("n_jobs", "nthread", "verbosity"),
    # Predictions read neither the training's parameters nor the keywords that LGBMClassifier keeps as
    # attributes too.
    "lightgbm": ("n_jobs", "num_threads", "verbose", "verbosity", "silent", "params", "_other_params"),
    "catboost": ("thread_count", "used_ram_limit", "verbose", "verbose_eval", "logging_level", "silent"),
    "catboost.core": ("metric_period", "allow_writing_files", "train_dir", "save_snapshot", "snapshot_file"),
    # In eval mode these modules return their input.
    "torch.nn.modules.dropout": ("p", "inplace"),
    "torchvision.ops.stochastic_depth": ("p", "mode"),
    "timm.layers.drop": ("drop_prob", "scale_by_keep"),
    # Their dropout is used in training mode only; an RNN also keeps its parameters in lists.
    "torch.nn.modules.rnn": ("dropout", "_flat_weights", "_flat_weight_refs"),
    "torch.nn.modules.activation": ("dropout",),
}
# Rates of dropout in the configs of transformers, and entries that note where a model is from.
_NEUTRAL_CONFIG = re.compile(r"dropout|pdrop|layerdrop|drop_path|^_name_or_path$|^transformers_version$")


def neutral(module: str) -> frozenset[str]:
    """Attributes without effect on answers, for classes that ``module`` defines.

    >>> sorted(neutral("torch.nn.modules.dropout"))
    ['inplace', 'p']
    """
    found = (names for place, names in _NEUTRAL.items() if f"{module}.".startswith(f"{place}."))
    return frozenset(name for names in found for name in names)


def without_neutral(config: Any, used: frozenset[str] = frozenset()) -> Any:
    """A config of transformers without entries that have no effect; those named in ``used`` stay."""
    if isinstance(config, dict):
        kept = {
            key: value for key, value in config.items() if key in used or not _NEUTRAL_CONFIG.search(str(key))
        }
        return {key: without_neutral(value, used) for key, value in kept.items()}
    return [without_neutral(value, used) for value in config] if isinstance(config, list) else config
