"""Torch modules as members: any that map a batch to logits, or to an output with ``.logits`` as Hugging Face's classifiers do."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.channels_last import answers_alike, as_channels_last, gains_by_channels_last
from ensdistill.describe import build_module, class_path, module_recipe
from ensdistill.errors import is_out_of_memory
from ensdistill.files import write_bytes
from ensdistill.fingerprint import digest
from ensdistill.members import pretrained
from ensdistill.members.base import Logits, align, batches, check_width, write_about
from ensdistill.members.behaviour import behaviour


class TorchMember:
    """A torch module that maps [N, ...] to logits [N, C], or to an object whose ``logits`` are that.

    Parameters
    ----------
    module : Module
        Predicts in eval mode, without gradients; every submodule's mode is given back as it was. Hugging Face classification models
        are such modules: of token ids, those equal to the config's ``pad_token_id`` are masked, and ``id2label`` names the classes.
    name : str
    classes : sequence of str, optional
    factory : callable, optional
        The module's class, or ``functools.partial(Class, **plain_arguments)``: how it is built again when it is loaded.
        Needed to save it (but for Hugging Face models, whose config says it).
    batch_size : int
        Rows predicted at once; halved as often as needed where the memory is short.
    device : str, optional
        Where it predicts; the module is moved there for each call and back afterwards, so that of many members one at a time is
        there. By default it predicts where it is.

    Examples
    --------
    >>> TorchMember(nn.Linear(3, 2)).predict_logits(np.zeros((5, 3), np.float32)).shape
    (5, 2)
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str = "module",
        classes: Sequence[str] | None = None,
        factory: Callable[[], nn.Module] | None = None,
        batch_size: int = 1024,
        device: str | torch.device | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module; got {class_path(type(module))}")
        if batch_size < 1:
            raise ValueError(f"batch_size: {name}: expected at least 1; got {batch_size}")
        self.module, self.name, self.batch_size = module, name, batch_size
        self.device = None if device is None else torch.device(device)
        self.classes, self._columns = align(name, pretrained.class_names(module), classes)
        self.recipe = pretrained.recipe(module) if factory is None else module_recipe(factory)
        if factory is not None and self.recipe is None:
            raise ValueError(
                f"factory: {name}: expected a module class, or functools.partial of one with plain keyword arguments; got {factory!r}"
            )
        self._channels_last: bool | None = None  # whether it takes images so, once it is known
        self._masks = "attention_mask" in inspect.signature(module.forward).parameters

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self.module.state_dict().values())

    @property
    def predicts_on(self) -> torch.device:
        """Where it predicts, which is where ``predict_tensor`` leaves what it says."""
        found = self.device or next((t.device for t in (*self.module.parameters(), *self.module.buffers())), torch.device("cpu"))
        return torch.device("cuda", torch.cuda.current_device()) if found == torch.device("cuda") else found

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        return self.ordered(check_width(self.name, self.raw(inputs), len(inputs), self.classes))

    def predict_tensor(self, inputs: np.ndarray) -> Tensor:
        """float32 logits [N, C] on the device where it predicts."""
        return self.ordered(check_width(self.name, self._outputs(inputs, stay=True), len(inputs), self.classes))

    def ordered(self, outputs: Logits) -> Logits:
        """The module's outputs [N, C] in the order of ``classes``."""
        return outputs if self._columns is None else outputs[:, self._columns.tolist()]

    def raw(self, inputs: np.ndarray) -> np.ndarray:
        """The module's outputs as they are: float32 [N, C]."""
        return self._outputs(inputs, stay=False).numpy()

    def _outputs(self, inputs: np.ndarray, stay: bool) -> Tensor:
        if inputs.dtype != np.float32 and inputs.dtype.kind not in "iu":
            raise ValueError(f"inputs: {self.name} expects float32, or integers for a model of tokens; got {inputs.dtype}")
        with predicting(self.module, self.device) as device, torch.no_grad():
            parts = [part for x in batches(inputs, self.batch_size) for part in self._predict(x, device, stay)]
        return torch.cat(parts).float()

    def _predict(self, inputs: np.ndarray, device: torch.device, stay: bool) -> list[Tensor]:
        try:
            logits = self._logits(torch.from_numpy(np.ascontiguousarray(inputs)).to(device))
            return [logits if stay else logits.cpu()]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(inputs) <= 1:
                raise MemoryError(
                    f"{self.name}: out of memory on {device} with a single row ({error}). It has {self.bytes / 2**20:,.0f} MiB of "
                    f"parameters: predict elsewhere with TorchMember(module, name={self.name!r}, device='cpu'), or free the device"
                ) from None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(inputs) // 2  # not in the except clause: the error's frames hold the tensors that did not fit
        return self._predict(inputs[:half], device, stay) + self._predict(inputs[half:], device, stay)

    def _logits(self, x: Tensor) -> Tensor:
        if gains_by_channels_last(self.module, x):
            if self._channels_last is None and len(x):
                self._channels_last = answers_alike(self._answer, x[:2])
            if self._channels_last:
                return self._answer(as_channels_last(x))
        return self._answer(x)

    def _answer(self, x: Tensor) -> Tensor:
        padding = getattr(getattr(self.module, "config", None), "pad_token_id", None)
        if self._masks and padding is not None and not x.is_floating_point():
            output = self.module(x, attention_mask=(x != padding).long())
        else:
            output = self.module(x)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise TypeError(f"{self.name}: expected a module that answers with a tensor, or with .logits; got {class_path(type(output))}")
        return logits

    def fingerprint(self) -> str:
        """Of the weights and of :func:`what else <ensdistill.members.behaviour.behaviour>` the answers depend on.

        A class counts with the whole file that defines it: one of its own keeps edits of a script from changing it.
        """
        return digest([self.saved_content(), behaviour(self.module)])

    def saved_content(self) -> str:
        """Of what is saved alone: the same in another version of torch, or of the module's code."""
        return digest(["torch", self.recipe or repr(self.module), dict(self.module.state_dict())])

    def save(self, folder: Path | str) -> None:
        from safetensors.torch import save

        if self.recipe is None:
            kind = type(self.module).__name__
            raise ValueError(
                f"{self.name}: cannot be saved without knowing how it is built; make it a member by "
                f"TorchMember(module, name={self.name!r}, factory=functools.partial({kind}, argument=value, ...))"
            )
        if "config" not in self.recipe:
            self._check_recipe(self.recipe)
        # clone(): tied weights share storage, which safetensors refuses.
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.module.state_dict().items()}
        write_bytes(Path(folder) / "model.safetensors", save(state))
        write_about(folder, self, "torch", recipe=self.recipe, batch_size=self.batch_size)

    def _check_recipe(self, recipe: dict[str, Any]) -> None:
        """Refuse a factory that builds something else: nobody could load what is saved."""
        try:
            with torch.random.fork_rng(devices=[]):
                built = build_module(recipe, [recipe["class_path"]])
        except Exception as error:  # whatever a constructor of somebody's own raises
            raise ValueError(f"factory: {self.name}: it can't build the module again: {error}") from error
        here, there = ({k: (tuple(v.shape), v.dtype) for k, v in m.state_dict().items()} for m in (self.module, built))
        if here != there:
            name = next(k for k in {**here, **there} if here.get(k) != there.get(k))
            words = [f"{m[name][1]} {list(m[name][0])}" if name in m else "missing" for m in (here, there)]
            raise ValueError(f"factory: {self.name}: it builds another module: {name} is {words[0]} here and {words[1]} there")
        if repr(built) != repr(self.module):
            raise ValueError(f"factory: {self.name}: it builds another module: {built!r} instead of {self.module!r}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what has no content; the fingerprint tells of that
            pairs = zip(behaviour(self.module), behaviour(built), strict=True)
            differing = [digest(one) != digest(other) for one, other in pairs]
        if any(differing):  # perhaps a counter, or what a call has left: then it does no harm
            parts = [f"attributes, hooks or code of {name or 'the module'}" for name, _ in self.module.named_modules()]
            other = ["unsaved buffers", *parts][differing.index(True)]
            warnings.warn(f"{self.name}: its factory builds a module with other {other}: loaded, it may answer otherwise", stacklevel=3)


def load_torch(folder: Path, about: dict[str, Any], trusted: tuple[str, ...]) -> TorchMember:
    """A saved module, built from its recipe: of trusted classes only."""
    from safetensors.torch import load

    recipe = about["recipe"]
    module = pretrained.build(recipe, trusted) if "config" in recipe else build_module(recipe, trusted)
    module.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    member = TorchMember(module.eval(), name=about["name"], classes=about["classes"], batch_size=int(about["batch_size"]))
    member.recipe = recipe
    return member


@contextmanager
def predicting(module: nn.Module, device: torch.device | None = None) -> Iterator[torch.device]:
    """The module in eval mode and on ``device`` (by default where it is), which it yields; then as it was, whatever happens."""
    tensors = [*module.parameters(), *module.buffers()]
    home = next((t.device for t in tensors), torch.device("cpu"))
    modes = {m: m.training for m in module.modules()}
    if device is not None and len({t.device for t in tensors}) > 1:
        raise ValueError(f"device: expected a module on one device; {type(module).__name__} is spread over several, so it can't be moved")
    try:
        module.eval()
        if device is not None and device != home:
            module.to(device)
        yield device or home
    finally:
        if device is not None and device != home:
            module.to(home)
        for m, training in modes.items():
            m.training = training
