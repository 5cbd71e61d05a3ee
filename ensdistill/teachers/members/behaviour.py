"""What a module's answers depend on beside its saved tensors: code, plain attributes, buffers that aren't saved, hooks."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ensdistill.common.describe import class_path
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import Used, state_data

# Of every module, and marks that accelerate, torch.compile and transformers leave on one.
_OF_EVERY_MODULE = frozenset({*vars(nn.Module()), "_is_accelerate_prepared", "_is_torch_compile", "_is_hf_initialized"})
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# What Hugging Face notes on its models: where they came from, which a saved one does not know; and the config, which the recipe has.
_OF_HUGGING_FACE = frozenset({"config", "generation_config", "name_or_path", "warnings_issued"})


def behaviour(module: nn.Module) -> dict[str, str]:
    """Digests by part: the code in use (see :mod:`ensdistill.common.source`), attributes and hooks of submodules, and unsaved buffers.

    The attributes of all submodules of one class are one part. The submodules' tensors don't count here.
    """
    return _Behaviour().of(module)


class _Behaviour(Used):
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
        found = {f"attributes of {path}": digest(parts) for path, parts in own.items()}
        found |= {f"hooks of {path}": digest(parts) for path, parts in hooks.items()}
        return {**({"unsaved buffers": digest(buffers)} if buffers else {}), **found, **self.parts}

    def module(self, module: nn.Module, where: str) -> Any:
        """A part that isn't registered."""
        self._place(module)
        parts = [[name, self._class(type(part)), self._attributes(part)] for name, part in module.named_modules()]
        return [parts, state_data(module)]

    def _place(self, module: nn.Module) -> None:
        """Note the submodules: what refers to one gives its class alone, because each is described in its own place."""
        self._known.update({id(part): (part, class_path(type(part))) for part in module.modules()})

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
        return {name: self.refer(value, f"{path}.{name}") for name, value in own.items()}
