"""Hugging Face models, recognised by a ``config`` with ``id2label``, without importing transformers."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ensdistill.common.describe import class_path
from ensdistill.common.tasks import Task

LIBRARY = "transformers.models."
_TASKS: dict[str, Task] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
# Entries of a config that name code: the library would fetch it from the hub, or import it.
_CODE = re.compile(
    r"auto_map|_*(attn|experts)_implementation.*|quantization_config|kernel_config|use_kernels|custom_pipelines"
)


def class_names(module: nn.Module) -> tuple[str, ...] | None:
    """The config's names of classes in order; None for other modules and the default LABEL_0, LABEL_1, ..."""
    named = getattr(getattr(module, "config", None), "id2label", None)
    if not isinstance(named, Mapping) or sorted(map(int, named)) != list(range(len(named))):
        return None
    names = [str(named[key]) for key in sorted(named, key=int)]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else tuple(names)


def declared_task(module: nn.Module) -> Task | None:
    """The task that a config's ``problem_type`` declares; None where it declares none."""
    declared = getattr(getattr(module, "config", None), "problem_type", None)
    return _TASKS.get(declared) if isinstance(declared, str) else None


def check_task(name: str, module: nn.Module, output: str, stated: Task = "classification") -> None:
    """Raise ValueError if the config declares another task than the one that the user states.

    ``output`` is the kind that the user states. For a single output it takes precedence over the config.
    """
    config = getattr(module, "config", None)
    task, labels = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
    if stated != "classification":
        if (declared_task(module) or stated) != stated:
            raise ValueError(f"task: {name}: its config has problem_type={task!r}; got the task {stated}")
        return
    if task == "multi_label_classification":
        raise ValueError(
            f"module: {name}: expected a classifier by softmax; its config has "
            "problem_type='multi_label_classification': each output is a sigmoid by itself. State its task: "
            "TorchMember(module, task='multilabel')"
        )
    if (task == "regression" or labels == 1) and not (labels == 1 and output in ("margin", "probabilities")):
        raise ValueError(
            f"module: {name}: expected a classifier by softmax; its config has problem_type={task!r} and "
            f"num_labels={labels!r}. If one output is the logit of the second of two classes, state it: "
            "TorchMember(module, output='margin'); if they are numbers, task='regression'"
        )


def recipe(module: nn.Module) -> dict[str, Any] | None:
    """``{"class_path", "config"}`` of one of the library's own models; None for anything else."""
    path, config = class_path(type(module)), getattr(module, "config", None)
    if not path.startswith(LIBRARY) or config is None or not hasattr(config, "to_dict"):
        return None
    # Through JSON, so that a recipe in memory equals one that was read from a file.
    return {"class_path": path, "config": json.loads(json.dumps(config.to_dict(), default=str))}


def build(made_by: Mapping[str, Any], trusted: Sequence[str] = ()) -> nn.Module:
    """The model of a :func:`recipe`, with new parameters.

    Only the library's own classes are imported. Entries of a config that name code (another implementation of
    attention or experts, a quantiser, ``auto_map``) are left out, also of the configs within.

    Raises
    ------
    ValueError
        The class is not one of the library's models, or the library is not installed.
    """
    path, config = made_by["class_path"], made_by["config"]
    if (
        not isinstance(path, str)
        or not (path.startswith(LIBRARY) or path in trusted)
        or not isinstance(config, dict)
    ):
        remedy = f"If you know it, pass trusted=[{path!r}]"
        raise ValueError(f"{path} is not trusted: it is not one of {LIBRARY}*. {remedy}")
    module_name, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be imported ({error}); it needs the package transformers"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and hasattr(cls, "config_class")):
        raise ValueError(f"{path}: expected one of the library's models")
    model: nn.Module = cls(cls.config_class.from_dict(_without_code(config)))
    return model


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(part) for key, part in value.items() if not _CODE.fullmatch(key)}
    return [_without_code(part) for part in value] if isinstance(value, list) else value
