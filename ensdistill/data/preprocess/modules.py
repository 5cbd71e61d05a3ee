"""Torch modules as preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.describe import build_module, class_path, module_recipe
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import Used, state_data
from ensdistill.data import batches as b
from ensdistill.data.preprocess.base import write_about


class ModuleTransform:
    """A torch module, called in eval mode: without gradients, unless the batch is a tensor that wants them.

    An array [N, ...] is given to it as a tensor, a mapping as keyword arguments. A list of images is given
    image by image, each as uint8 [1, C, H, W]; the results are joined.

    Parameters
    ----------
    module : Module
    factory : callable, optional
        The module's class, or ``functools.partial(Class, **plain_arguments)``, by which loading builds it
        again. Needed to save it.

    Raises
    ------
    TypeError
        ``module`` is no module.

    Examples
    --------
    >>> ModuleTransform(nn.Flatten())(np.zeros((2, 3, 4), np.float32)).shape
    torch.Size([2, 12])
    """

    takes_trusted = True

    def __init__(self, module: nn.Module, factory: Callable[[], nn.Module] | None = None) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module; got {class_path(type(module))}")
        self.module = module
        self.recipe = None if factory is None else module_recipe(factory)
        if factory is not None and self.recipe is None:
            raise ValueError(
                "factory: expected a module class, or functools.partial of one with plain keyword arguments; "
                f"got {factory!r}"
            )

    def __call__(self, batch: Any) -> Any:
        modes = {part: part.training for part in self.module.modules()}
        try:
            self.module.eval()
            with torch.set_grad_enabled(isinstance(batch, Tensor) and batch.requires_grad):
                return self._result(batch)
        finally:
            for part, training in modes.items():
                part.training = training

    def _result(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return self.module(**{name: _tensor(part) for name, part in batch.items()})
        kind = b.kind_of(batch).name
        if kind == "images":
            return torch.cat([self.module(_image(image)) for image in batch])
        if kind not in ("array", "tensor"):
            raise TypeError(
                f"inputs: expected an array, a mapping or images for {type(self.module).__name__}; got a "
                f"batch of kind {kind!r}"
            )
        return self.module(_tensor(batch))

    @property
    def trusted(self) -> tuple[str, ...]:
        """Class paths that loading has to trust."""
        return () if self.recipe is None else (self.recipe["class_path"],)

    def fingerprint(self) -> str:
        used = Used()
        parts = [[name, used.refer(part, name), repr(part)] for name, part in self.module.named_modules()]
        return digest(["module", parts, used.parts, state_data(self.module)])

    def save(self, folder: Path | str) -> None:
        """Write ``module.safetensors`` and ``preprocess.json``.

        Raises
        ------
        ValueError
            There is no factory.
        """
        from safetensors.torch import save_file

        if self.recipe is None:
            kind = type(self.module).__name__
            raise ValueError(
                f"preprocess: {kind} can't be saved without a factory that builds it again: "
                f"ModuleTransform(module, factory=functools.partial({kind}, argument=value, ...))"
            )
        Path(folder).mkdir(parents=True, exist_ok=True)
        state = self.module.state_dict().items()
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state}
        save_file(tensors, Path(folder) / "module.safetensors")
        write_about(folder, self, {"recipe": self.recipe})

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> ModuleTransform:
        from safetensors.torch import load_file

        module = build_module(settings["recipe"], settings["trusted"])
        module.load_state_dict(load_file(folder / "module.safetensors"))
        loaded = cls(module.eval())
        loaded.recipe = settings["recipe"]
        return loaded


def _tensor(part: Any) -> Tensor:
    return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


def _image(image: Any) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None, None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)[None]
