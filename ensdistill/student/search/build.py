"""Builds a candidate: its factory, preprocess or estimator, and its size."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ensdistill.common.completion import completed, with_tuples
from ensdistill.common.random import derive_seed
from ensdistill.data.preprocess import Preprocess, fitted
from ensdistill.data.samples import as_samples
from ensdistill.student.search.families import Candidate


@dataclass(frozen=True, eq=False)
class Built:
    """A candidate for some data.

    Parameters
    ----------
    candidate : Candidate
    model : callable or None
        The module's factory, completed from the data; of a regression whose ensemble has variances it has
        outputs for these.
    preprocess : Preprocess, "auto" or None
        Fitted to rows without their labels.
    parameters, bytes : int or None
        Of a network; None of an estimator, whose size its fit decides.
    means_alone : callable or None
        The factory without outputs for variances, where ``model`` has them.
    """

    candidate: Candidate
    model: Callable[[], nn.Module] | None
    preprocess: Any
    parameters: int | None
    bytes: int | None
    means_alone: Callable[[], nn.Module] | None = None

    def factory(self, values: Mapping[str, Any]) -> Callable[[], nn.Module]:
        """The factory with a trial's dropout, and outputs for variances if the trial has them."""
        model = self.model if values.get("variance", True) else self.means_alone
        assert model is not None
        dropout = values.get("dropout", 0.0)
        known = inspect.signature(model).parameters
        if "dropout" not in known or known["dropout"].default == dropout:
            return model
        return functools.partial(model, **{"dropout": dropout})

    def estimator_of(self, values: Mapping[str, Any]) -> Any:
        """The estimator with a trial's values."""
        assert self.candidate.estimator is not None
        return made(estimator_setting(self.candidate.estimator, values))


def estimator_setting(setting: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The ``class_path`` and ``init_args`` of a booster with a trial's values."""
    own = {
        "num_leaves": int(values["leaves"]),
        "learning_rate": float(values["rate"]),
        "min_child_samples": int(values["rows"]),
    }
    return {"class_path": setting["class_path"], "init_args": {**setting.get("init_args", {}), **own}}


def made(setting: Any) -> Any:
    """The object of a ``class_path`` with ``init_args``, in lists too; other settings as they are.

    Examples
    --------
    >>> made({"class_path": "sklearn.preprocessing.StandardScaler", "init_args": {"with_mean": False}})
    StandardScaler(with_mean=False)
    """
    if isinstance(setting, list):
        return [made(one) for one in setting]
    if not isinstance(setting, Mapping) or "class_path" not in setting:
        return setting
    cls = class_at(setting["class_path"])
    arguments = {key: made(value) for key, value in setting.get("init_args", {}).items()}
    return cls(**with_tuples(cls, arguments))


def class_at(path: str) -> Any:
    """The class of an import path.

    >>> class_at("ensdistill.models.MLP").__name__
    'MLP'
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class Builder:
    """Builds candidates; candidates of one preprocess share it.

    Parameters
    ----------
    inputs : samples
        To which preprocesses are fitted.
    classes : int
        Classes, labels, or numbers of a row.
    seed : int
    variances : bool
        Whether the ensemble has variances, for which networks of numbers have outputs.
    """

    def __init__(self, inputs: Any, classes: int, seed: int, variances: bool = False) -> None:
        self.samples, self.classes = as_samples(inputs), classes
        self.seed, self.variances = seed, variances
        self._fitted: dict[str, tuple[Preprocess | None, Any]] = {}
        self._built: dict[str, Built] = {}

    def __call__(self, candidate: Candidate) -> Built:
        if candidate.key not in self._built:
            self._built[candidate.key] = self._build(candidate)
        return self._built[candidate.key]

    def _build(self, candidate: Candidate) -> Built:
        if candidate.model is None:
            return Built(candidate, None, candidate.preprocess, None, None)
        preprocess, example = self._prepared(candidate.preprocess)
        model, means_alone = completed(candidate.model, example, self.classes, preprocess), None
        if self.variances:
            means_alone, model = model, completed(candidate.model, example, 2 * self.classes, preprocess)
        with torch.random.fork_rng([]):
            state = model().state_dict().values()
        numbers = [tensor for tensor in state if isinstance(tensor, torch.Tensor)]
        return Built(
            candidate,
            model,
            preprocess,
            sum(tensor.numel() for tensor in numbers),
            sum(tensor.nbytes for tensor in numbers),
            means_alone,
        )

    def _prepared(self, setting: Any) -> tuple[Preprocess | None, Any]:
        key = repr(setting)
        if key not in self._fitted:
            own = fitted(made(setting), self.samples, seed=derive_seed("preprocess", self.seed))
            two = self.samples[:2]
            self._fitted[key] = own, (two if own is None else own(two))
        return self._fitted[key]
