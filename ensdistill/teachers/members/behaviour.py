"""Everything beside saved tensors on which outputs depend: code, attributes, buffers, hooks, configs."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ensdistill.common.describe import class_path
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import Used, attributes_read, state_data
from ensdistill.teachers.members.neutral import neutral, without_neutral

# Attributes of every module, and marks that accelerate, torch.compile and transformers leave on one.
_OF_EVERY_MODULE = frozenset(
    {*vars(nn.Module()), "_is_accelerate_prepared", "_is_torch_compile", "_is_hf_initialized"}
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Hugging Face notes on its models where they came from, which a saved one lacks; their configs are a part of
# their own.
_OF_HUGGING_FACE = frozenset({"config", "generation_config", "name_or_path", "warnings_issued"})


def behaviour(module: nn.Module) -> dict[str, str]:
    """Digests by part: code (see `ensdistill.common.source`), architecture, attributes, hooks, buffers.

    The attributes of all submodules of one class are one part. The submodules' tensors don't count here.
    Neither do settings that have no effect in eval mode, such as the rate of a ``Dropout``, unless the
    module's own code reads them.
    """
    return _Behaviour().of(module)


class _Behaviour(Used):
    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()  # names of attributes in code that is no library's
        self.neutral: dict[str, list[Any]] = {}

    def of(self, module: nn.Module) -> dict[str, str]:
        self._place(module)
        saved = module.state_dict().keys()
        own, hooks = defaultdict[str, list[Any]](list), defaultdict[str, list[Any]](list)
        for name, part in module.named_modules():
            path = class_path(type(part))
            own[path].append([name, self._class(type(part)), self._attributes(part)])
            for kind in _HOOKS:
                if registered := list(getattr(part, kind, {}).values()):
                    hooks[path].append([name, self.refer(registered, f"a hook of {path}")])
        buffers = {name: tensor for name, tensor in module.named_buffers() if name not in saved}
        found = {"architecture": digest([_described(name, part) for name, part in module.named_modules()])}
        found |= {f"attributes of {path}": digest(parts) for path, parts in own.items()}
        found |= {f"hooks of {path}": digest(parts) for path, parts in hooks.items()}
        found |= {"unsaved buffers": digest(buffers)} if buffers else {}
        if used := {name: values for name, values in self.neutral.items() if name in self.read}:
            found["attributes that the module's code reads"] = digest(used)
        if configs := self._configs(module):
            found["config"] = digest(configs)
        return {**found, **self.parts}

    def module(self, module: nn.Module, where: str) -> Any:
        """A part that isn't registered."""
        self._place(module)
        parts = [
            [name, self._class(type(part)), self._attributes(part)] for name, part in module.named_modules()
        ]
        return [parts, state_data(module)]

    def _place(self, module: nn.Module) -> None:
        """Note the submodules; a reference to one counts by its class, as each has its own entry."""
        self._known.update({id(part): (part, class_path(type(part))) for part in module.modules()})

    def _function(self, function: Any, where: str) -> str:
        if not self._is_library(getattr(function, "__module__", None)):
            self.read |= attributes_read(function)
        return super()._function(function, where)

    def _attributes(self, module: nn.Module) -> dict[str, Any]:
        if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            return {"code": getattr(module, "code", "")}
        if "_orig_mod" in module._modules:  # torch.compile keeps the compiler's state beside the module
            return {}
        root, skipped = type(module).__module__.partition(".")[0], _OF_EVERY_MODULE
        if any(cls.__module__.partition(".")[0] == "transformers" for cls in type(module).__mro__):
            skipped = frozenset(vars(module)) if root == "transformers" else skipped | _OF_HUGGING_FACE
        path = class_path(type(module))
        own = {name: value for name, value in vars(module).items() if name not in skipped}
        if getattr(own.get("forward"), "__func__", None) is getattr(type(module), "forward", None):
            own.pop("forward", None)  # as accelerate gives it back
        for name in neutral(type(module).__module__) & own.keys():
            self.neutral.setdefault(name, []).append(own.pop(name))
        return {name: self.refer(value, f"{path}.{name}") for name, value in own.items()}

    def _configs(self, module: nn.Module) -> list[Any]:
        """The configs of Hugging Face's models within, each once, without entries that have no effect."""
        found = (getattr(part, "config", None) for part in module.modules())
        configs: dict[int, Any] = {id(config): config for config in found if hasattr(config, "to_dict")}
        plain = (json.loads(json.dumps(config.to_dict(), default=str)) for config in configs.values())
        return [without_neutral(config, frozenset(self.read)) for config in plain]


def _described(name: str, module: nn.Module) -> list[str]:
    """A submodule's name, class and settings."""
    kind = getattr(module, "original_name", class_path(type(module)))  # of a scripted module
    plain = isinstance(module, torch.jit.ScriptModule) or neutral(type(module).__module__)
    return [name, str(kind), "" if plain else module.extra_repr()]
