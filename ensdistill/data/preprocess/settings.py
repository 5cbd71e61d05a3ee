"""Settings of preprocessing, before they are fitted to samples: "auto", None, a preprocess, or an object with
``fit``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensdistill.common.random import random_generator
from ensdistill.common.skops_files import load_skops
from ensdistill.data import batches as b
from ensdistill.data.preprocess.base import Preprocess, load_preprocess
from ensdistill.data.preprocess.images import ImageTransform
from ensdistill.data.preprocess.modules import ModuleTransform
from ensdistill.data.preprocess.named import Named
from ensdistill.data.preprocess.tables import Transformer, default_transformer
from ensdistill.data.preprocess.texts import HashedNgrams, Tokens
from ensdistill.data.samples import as_samples, form, in_memory, subset, whole

FITTED_ROWS = 100_000  # lazy samples that a preprocess is fitted to: all of them may not fit into memory


@dataclass(frozen=True)
class TableDefaults:
    """Setting for tables that networks and linear models take; see
    :func:`ensdistill.data.preprocess.default_transformer`.

    Parameters
    ----------
    numbers : {"quantile", "power", "standard"}
        How numbers are scaled.
    rare : int
        Values of a category that stand in fewer rows are "others".
    most : int
        The largest number of columns for one category, the others' among them.
    codes : int, optional
        Categories of more values become codes, for a model with embeddings
        (:class:`ensdistill.models.TabularMLP`).
    """

    numbers: Literal["quantile", "power", "standard"] = "power"
    rare: int = 10
    most: int = 50
    codes: int | None = None

    def __post_init__(self) -> None:
        if self.numbers not in ("quantile", "power", "standard"):
            raise ValueError(f"numbers: expected quantile, power or standard; got {self.numbers!r}")
        if self.codes is not None and self.codes < 1:
            raise ValueError(f"codes: expected at least 1; got {self.codes}")
        for name, least in (("rare", 1), ("most", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}; got {getattr(self, name)}")

    def fit(self, samples: Any, *, seed: int = 0) -> Transformer:
        """The transformer that is fitted to a frame, or to samples that are one."""
        return default_transformer(
            table_of(samples, seed),
            numbers=self.numbers,
            rare=self.rare,
            most=self.most,
            codes=self.codes,
            seed=seed,
        )


def fitted(setting: Any, samples: Any, *, seed: int = 0) -> Preprocess | None:
    """The preprocess that a setting stands for, fitted to samples where it has to be.

    Parameters
    ----------
    setting : "auto", None, Preprocess, object with ``fit``, str, or anything that `as_preprocess` takes
        ``"auto"``: tables by :class:`TableDefaults`, texts by :class:`HashedNgrams`, images by an
        :class:`ImageTransform` of the first one's size and channels; arrays, tensors and mappings as they
        are. None: samples of any kind as they are. ``fit(samples)`` returns a preprocess; one of an
        estimator of scikit-learn is called with the frame or array, on a copy.
    samples : Samples, or a container of them
        Without their labels. Of more than 100 000 lazy samples so many are drawn.
    seed : int

    Returns
    -------
    Preprocess or None

    Raises
    ------
    TypeError, ValueError
        The setting is none of these, or can't be fitted to these samples.

    Examples
    --------
    >>> fitted("auto", np.zeros((2, 3))) is None
    True
    >>> type(fitted("auto", ["some text"])).__name__
    'HashedNgrams'
    """
    if setting is None:
        return None
    samples = as_samples(samples)
    if isinstance(setting, str) and setting == "auto":
        return _default(samples, seed)
    if hasattr(setting, "transform") and hasattr(setting, "get_params"):
        return _transformer(setting, samples, seed)
    if hasattr(setting, "fit") and not isinstance(setting, (Preprocess, type)):
        seeded = "seed" in inspect.signature(setting.fit).parameters
        made = setting.fit(samples, **({"seed": seed} if seeded else {}))
        if not isinstance(made, Preprocess):
            raise TypeError(
                f"preprocess: expected {type(setting).__name__}.fit to return a preprocess, with a call, "
                f"fingerprint and save; got {type(made).__name__}"
            )
        return made
    return _named(setting) if isinstance(setting, str) else as_preprocess(setting)


def as_preprocess(value: Any, model: Any = None) -> Preprocess:
    """A preprocess as it is; other objects that turn raw samples into a model's input in the adapter for
    them.

    Parameters
    ----------
    value : Preprocess, fitted transformer, torch module, tokenizer, function, or str
        A tokenizer of ``tokenizers`` or ``transformers``; a string is a function's import path, or a path as
        for :func:`preprocess_file`.
    model : optional
        The model that it belongs to, whose config bounds the length of texts.

    Raises
    ------
    TypeError, ValueError
        None of these; a transformer that is not fitted; a tokenizer without a length; a function that can't
        be imported.
    """
    from torch import nn

    if isinstance(value, Preprocess):
        return value
    if isinstance(value, nn.Module):
        return ModuleTransform(value)
    if hasattr(value, "transform") and hasattr(value, "get_params"):
        return Transformer(value)
    backend = getattr(value, "backend_tokenizer", value)
    if hasattr(backend, "encode_batch") and hasattr(backend, "to_str"):
        return Tokens(backend, _length(value, model), _padding(value))
    if isinstance(value, (str, Path)):
        return preprocess_file(Path(value)) if Path(value).exists() else Named(str(value))
    if callable(value) and not isinstance(value, type):
        return Named(value)
    raise TypeError(
        "preprocess: expected a Preprocess, a fitted scikit-learn transformer, a torch module, a tokenizer, "
        f"a function or its import path; got {type(value).__module__}.{type(value).__qualname__}"
    )


def preprocess_file(path: Path, trusted: Sequence[str] = ()) -> Preprocess:
    """The preprocess in a file or folder: a fitted transformer (.skops), a saved preprocess, a tokenizer.

    Raises
    ------
    ValueError
        It can't be read, needs a class that is not trusted, or is a tokenizer without a length.
    """
    if path.suffix == ".skops":
        return Transformer(load_skops(path.read_bytes(), trusted, path))
    if (path / "preprocess.json").is_file():
        return load_preprocess(path, trusted)
    # The file's own limit of the length: of a Tokens it is replaced by that of its argument.
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    known = Tokens(path)  # its errors name the file
    own = Tokenizer.from_file(str(file))
    return Tokens(known.tokenizer, _length(own, None), _padding(own))


def as_setting(value: Any) -> Any:
    """A setting, checked before there are samples: "auto", None, a preprocess, or an object with ``fit``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`as_preprocess`.
    """
    if value is None or (isinstance(value, str) and value == "auto") or isinstance(value, Preprocess):
        return value
    if hasattr(value, "transform") and hasattr(value, "get_params"):
        from sklearn.exceptions import NotFittedError

        try:
            return Transformer(value)
        except NotFittedError:
            return value
    if hasattr(value, "fit") and not isinstance(value, type):
        return value
    return _named(value) if isinstance(value, str) else as_preprocess(value)


def trusted_by(setting: Any) -> tuple[str, ...]:
    """The class paths that loading a preprocess, or one that a setting makes, has to trust.

    Of a transformer that is yet to be fitted these are the classes of its parts.
    """
    if setting is None or isinstance(setting, str):
        return () if setting in (None, "auto") else trusted_by(as_preprocess(setting))
    if hasattr(setting, "get_params"):
        found = [setting, *(part for part in setting.get_params().values() if hasattr(part, "get_params"))]
        return tuple(sorted({f"{type(part).__module__}.{type(part).__qualname__}" for part in found}))
    if not isinstance(setting, Preprocess):
        return ()
    cls = type(setting)
    own = () if cls.__module__.startswith("ensdistill.") else (f"{cls.__module__}.{cls.__qualname__}",)
    return (*own, *getattr(setting, "trusted", ()))


def _named(text: str) -> Preprocess:
    """The preprocess that a text stands for, other than "auto"; an error has the nearest setting."""
    try:
        return as_preprocess(text)
    except ValueError as error:
        if Path(text).exists():
            raise
        if "." in text and "/" not in text:
            raise ValueError(f"{error}; there is no file of this name either") from error
        known = {"auto": "auto", "null": "null", "none": "null"}
        classes = ("TableDefaults", "Categories", "HashedNgrams", "ImageTransform", "Tokens")
        known |= {name: f"class_path: {name}" for name in classes}
        near = difflib.get_close_matches(text, known, 1) or difflib.get_close_matches(text.lower(), known, 1)
        raise ValueError(
            "preprocess: expected auto, null, a class_path with init_args, a function's import path "
            "(package.module.function), or the path of a tokenizer or of a saved preprocess that exists; got "
            f"{text!r}.{f' Did you mean {known[near[0]]!r}?' if near else ''}"
        ) from error


def table_of(samples: Any, seed: int = 0) -> Any:
    """The frame of samples, whole or, of many lazy ones, a part that is drawn by the seed.

    Raises
    ------
    TypeError
        They are no table.
    """
    batch = _some(as_samples(samples), seed)
    if (kind := b.kind_of(batch).name) != "table":
        raise TypeError(f"inputs: expected a table, a frame with named columns; got a batch of kind {kind!r}")
    return batch


def _default(samples: Any, seed: int) -> Preprocess | None:
    kind = form(samples)["kind"]
    if kind == "table":
        return TableDefaults().fit(samples, seed=seed)
    if kind == "text":
        return HashedNgrams()
    return _images(samples) if kind == "images" else None


def _images(samples: Any) -> ImageTransform:
    """To -1..1, in the first image's own size; where it is not square, all have to have that size."""
    first = np.asarray(samples[:1][0])
    height, width = first.shape[:2]
    half = (0.5,) * (1 if first.ndim == 2 else first.shape[2])
    return ImageTransform(size=height if height == width else None, mean=half, std=half)


def _transformer(setting: Any, samples: Any, seed: int) -> Transformer:
    """A transformer of scikit-learn as it is where it is fitted; else a fitted copy."""
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError

    try:
        return Transformer(setting)
    except NotFittedError:
        return Transformer(clone(setting).fit(_some(samples, seed)))


def _some(samples: Any, seed: int) -> Any:
    if not in_memory(samples) and len(samples) > FITTED_ROWS:
        generator = random_generator("rows to fit a preprocess to", seed)
        drawn = np.sort(generator.choice(len(samples), FITTED_ROWS, replace=False))
        samples = subset(samples, drawn)
    return whole(samples)


def _length(tokenizer: Any, model: Any) -> int:
    """Ids of each text: the least of the tokenizer's own limits and of the model's."""
    truncation = getattr(tokenizer, "truncation", None) or {}
    limits = [
        getattr(tokenizer, "model_max_length", None),
        truncation.get("max_length") if isinstance(truncation, dict) else None,
        getattr(getattr(model, "config", None), "max_position_embeddings", None),
    ]
    known = [int(limit) for limit in limits if limit is not None and limit < 1e6]
    if not known:
        raise ValueError(
            "preprocess: expected a tokenizer with a length, of which longer texts are cut; this one has "
            "none: state it by ensdistill.data.preprocess.Tokens(tokenizer, length=...)"
        )
    return min(known)


def _padding(tokenizer: Any) -> int:
    own = getattr(tokenizer, "pad_token_id", None)
    padding = getattr(tokenizer, "padding", None)
    if own is None and isinstance(padding, dict):
        own = padding.get("pad_id")
    return 0 if own is None else int(own)
