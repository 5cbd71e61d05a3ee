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

from ensdistill.common.describe import build_module, class_path, module_recipe
from ensdistill.common.errors import is_out_of_memory
from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import state_data
from ensdistill.teachers.channels_last import answers_alike, as_channels_last, gains_by_channels_last
from ensdistill.teachers.members import pretrained
from ensdistill.teachers.members.base import Logits, align, batches, check_width, not_distributions, write_about
from ensdistill.teachers.members.behaviour import behaviour
from ensdistill.teachers.members.ending import ending
from ensdistill.teachers.members.outputs import Output, Reading, as_logits, check_output, reading_of
from ensdistill.teachers.members.wrappers import unwrapped

_FEW = 8  # different rows, of which nothing is concluded: logits of so few may look like probabilities by chance


class TorchMember:
    """A torch module that maps [N, ...] to outputs [N, C], or to an object or a dict whose ``logits`` are that.

    Parameters
    ----------
    module : Module
        Predicts in eval mode, without gradients; every submodule's mode is given back as it was. Hugging Face classification models
        are such modules: of token ids, those equal to the config's ``pad_token_id`` are masked, and ``id2label`` names the classes.
        ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and what ``torch.compile`` returns are taken off: the module
        within predicts. Floating inputs are given to it in the type of its parameters.
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
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        What the outputs are. ``auto`` reads a module that ends in a softmax as probabilities, and others as logits, unless the first
        batch could be probabilities. ``margin`` is one column, the logit of the second of two classes.

    Raises
    ------
    ValueError
        Parameters that are not initialised, a model of another task than classification by softmax, or (by ``predict_logits``)
        outputs that could be probabilities as well as logits, or have one column.

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
        output: Output = "auto",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module; got {class_path(type(module))}")
        if batch_size < 1:
            raise ValueError(f"batch_size: {name}: expected at least 1; got {batch_size}")
        self.module, self.name, self.batch_size = unwrapped(module), name, batch_size
        self.output = check_output(name, output)
        check_initialised("module", name, self.module)
        pretrained.check_task(name, self.module, output)
        self.device = None if device is None else torch.device(device)
        known = pretrained.class_names(self.module)
        self.classes, self._columns = align(name, None if len(known or ()) == 1 else known, classes)
        self.recipe = pretrained.recipe(self.module) if factory is None else module_recipe(factory)
        if factory is not None and self.recipe is None:
            raise ValueError(
                f"factory: {name}: expected a module class, or functools.partial of one with plain keyword arguments; got {factory!r}"
            )
        self._reading: Reading | None = None if output == "auto" else output  # None until an answer shows what they are
        self._seen_its_end = False
        self._channels_last: bool | None = None  # whether it takes images so, once it is known
        self._masks = _takes_mask(self.module)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self.module.state_dict().values() if isinstance(t, Tensor))

    @property
    def predicts_on(self) -> torch.device:
        """Where it predicts, which is where ``predict_tensor`` leaves what it says."""
        found = self.device or next((t.device for t in (*self.module.parameters(), *self.module.buffers())), torch.device("cpu"))
        return torch.device("cuda", torch.cuda.current_device()) if found == torch.device("cuda") else found

    def predict_logits(self, inputs: np.ndarray) -> np.ndarray:
        return self._checked(self.ordered(self.raw(inputs)), len(inputs))

    def predict_tensor(self, inputs: np.ndarray) -> Tensor:
        """float32 logits [N, C] on the device where it predicts."""
        return self._checked(self.ordered(self._outputs(inputs, stay=True)), len(inputs))

    def _checked(self, logits: Logits, rows: int) -> Logits:
        return check_width(self.name, logits, rows, self.classes)

    def ordered(self, outputs: Logits) -> Logits:
        """The module's outputs as logits [N, C], in the order of ``classes``."""
        if self._reading is None:
            self._reading = self._read(outputs)
        reading = self._reading or "logits"
        if reading != "logits" or outputs.ndim != 2 or outputs.shape[1] == 1:
            if isinstance(outputs, Tensor):
                values = as_logits(self.name, outputs.cpu().numpy(), reading)
                outputs = torch.from_numpy(values).to(outputs.device)
            else:
                outputs = as_logits(self.name, outputs, reading)
        if self._columns is None or outputs.shape[1] != len(self._columns):
            return outputs
        return outputs[:, self._columns.tolist()]

    def _read(self, outputs: Logits) -> Reading | None:
        """The reading of a module's outputs that end in no softmax; None where there are too few rows to be sure.

        Rows that are all distributions are refused whatever their number: logits don't sum to one by chance.
        """
        if outputs.ndim != 2 or outputs.shape[1] == 1:
            return None
        values = outputs[: self.batch_size].cpu().numpy() if isinstance(outputs, Tensor) else outputs[: self.batch_size]
        distributions = len(values) > 0 and len(not_distributions(values)) == 0
        if not distributions and len(np.unique(values, axis=0)) < _FEW:
            return None
        if distributions or reading_of(self.name, values) == "probabilities":
            raise ValueError(
                f"output: {self.name}: a module is expected to answer with logits; all rows of this one's outputs are probabilities. "
                f"Tell what they are: TorchMember(module, name={self.name!r}, output='probabilities'), or output='logits'"
            )
        return "logits"

    def raw(self, inputs: np.ndarray) -> np.ndarray:
        """The module's outputs as they are: float32 [N, C]."""
        return self._outputs(inputs, stay=False).numpy()

    def _outputs(self, inputs: np.ndarray, stay: bool) -> Tensor:
        dtype = floating_type(self.module)
        own = None if dtype in (None, torch.bfloat16) else torch.empty(0, dtype=dtype).numpy().dtype
        if inputs.dtype not in (np.float32, own) and inputs.dtype.kind not in "iu":
            raise ValueError(f"inputs: {self.name} expects float32, or integers for a model of tokens; got {inputs.dtype}")
        with predicting(self.module, self.device) as device, torch.no_grad():
            if self._reading is None and not self._seen_its_end and len(inputs):
                self._look_at_its_end(self._batch(inputs[:2], device))
            parts = [part for x in batches(inputs, self.batch_size) for part in self._predict(x, device, stay)]
        return torch.cat(parts).float()

    def _look_at_its_end(self, x: Tensor) -> None:
        """Read a module that ends in a softmax as probabilities, and refuse one that ends in a sigmoid."""
        end = ending(self._answer, x)
        if end == "sigmoid":
            raise ValueError(
                f"output: {self.name}: the module ends in a sigmoid: each of its outputs is a probability by itself. Of one output, "
                "output='probabilities' takes it as that of the second of two classes; several (multi-label) can't be distilled here"
            )
        self._reading, self._seen_its_end = "probabilities" if end == "softmax" else None, True

    def _batch(self, inputs: np.ndarray, device: torch.device) -> Tensor:
        x, dtype = torch.from_numpy(np.ascontiguousarray(inputs)).to(device), floating_type(self.module)
        return x.to(dtype) if x.is_floating_point() and dtype is not None else x

    def _predict(self, inputs: np.ndarray, device: torch.device, stay: bool) -> list[Tensor]:
        try:
            logits = self._logits(self._batch(inputs, device))
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
        logits = output["logits"] if isinstance(output, dict) and "logits" in output else getattr(output, "logits", output)
        if isinstance(logits, tuple) and len(logits) == 1:
            logits = logits[0]
        if not isinstance(logits, Tensor):
            raise TypeError(f"{self.name}: expected a module that answers with a tensor, or with .logits; got {class_path(type(output))}")
        return logits

    def fingerprint(self) -> str:
        """Of the weights and of :func:`what else <ensdistill.teachers.members.behaviour.behaviour>` the answers depend on."""
        return digest(["torch", self.fingerprint_parts()])

    def fingerprint_parts(self) -> dict[str, str]:
        """What the fingerprint is made of, by part, so that a difference can be named."""
        parts = {"weights": digest(self._state()), "architecture": digest(self.recipe or repr(self.module)), **behaviour(self.module)}
        if self.output != "auto":
            parts["output"] = self.output
        if self.classes is not None:
            parts["classes"] = digest(self.classes)
        return parts

    def saved_content(self) -> str:
        """Of what is saved alone: the same in another version of torch, or of the module's code."""
        more = [] if self.output in ("auto", "logits") else [self.output]
        return digest(["torch", self.recipe or repr(self.module), self._state(), *more])

    def _state(self) -> dict[str, Any]:
        try:
            return state_data(self.module)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def save(self, folder: Path | str) -> None:
        from safetensors.torch import save

        if self.recipe is None:
            kind = type(self.module).__name__
            raise ValueError(
                f"{self.name}: cannot be saved without knowing how it is built; make it a member by "
                f"TorchMember(module, name={self.name!r}, factory=functools.partial({kind}, argument=value, ...))"
            )
        self._check_plain()
        if "config" not in self.recipe:
            self._check_recipe(self.recipe)
        # clone(): tied weights share storage, which safetensors refuses.
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.module.state_dict().items()}
        write_bytes(Path(folder) / "model.safetensors", save(state))
        more: dict[str, Any] = {} if self.output == "auto" else {"output": self.output}
        if unsaved := unsaved_types(self.module):
            more["unsaved_buffers"] = unsaved
        write_about(folder, self, "torch", recipe=self.recipe, batch_size=self.batch_size, **more)

    def _check_plain(self) -> None:
        """Refuse quantised modules: their numbers alone don't say how they are put together."""
        config = getattr(getattr(self.module, "config", None), "quantization_config", None)
        odd = [k for k, v in self.module.state_dict().items() if not isinstance(v, Tensor) or v.is_quantized or type(v) is not Tensor]
        if odd or config is not None:
            what = "its config has a quantization_config" if config is not None else f"{odd[0]} is no plain tensor"
            raise ValueError(f"{self.name}: a quantised module can't be saved ({what}); save the module as it was before")

    def _check_recipe(self, recipe: dict[str, Any]) -> None:
        """Refuse a factory that builds something else: nobody could load what is saved."""
        try:
            with torch.random.fork_rng(devices=[]):
                built = build_module(recipe, [recipe["class_path"]])
        except Exception as error:  # whatever a constructor of somebody's own raises
            raise ValueError(f"factory: {self.name}: it can't build the module again: {error}") from error
        check_initialised("factory", self.name, built)
        here, there = ({k: (tuple(v.shape), v.dtype) for k, v in m.state_dict().items()} for m in (self.module, built))
        # Of another floating type it may be: loaded, it is given the saved one.
        shapes = [{k: (shape, dtype.is_floating_point or dtype) for k, (shape, dtype) in m.items()} for m in (here, there)]
        if shapes[0] != shapes[1]:
            name = next(k for k in {**here, **there} if shapes[0].get(k) != shapes[1].get(k))
            words = [f"{m[name][1]} {list(m[name][0])}" if name in m else "missing" for m in (here, there)]
            raise ValueError(f"factory: {self.name}: it builds another module: {name} is {words[0]} here and {words[1]} there")
        if repr(built) != repr(self.module):
            raise ValueError(f"factory: {self.name}: it builds another module: {built!r} instead of {self.module!r}")
        give_types(built, {name: dtype for name, (_, dtype) in here.items()} | _types(unsaved_types(self.module)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what has no content; the fingerprint tells of that
            one, other = behaviour(self.module), behaviour(built)
        # Perhaps a counter, or what a call has left: then it does no harm.
        if differing := [part for part in {**one, **other} if one.get(part) != other.get(part)]:
            warnings.warn(
                f"{self.name}: its factory builds a module with other parts ({', '.join(differing[:5])}): loaded, it may answer otherwise",
                stacklevel=3,
            )


def load_torch(folder: Path, about: dict[str, Any], trusted: tuple[str, ...]) -> TorchMember:
    """A saved module, built from its recipe: of trusted classes only."""
    from safetensors.torch import load

    recipe = about["recipe"]
    module = pretrained.build(recipe, trusted) if "config" in recipe else build_module(recipe, trusted)
    state = load((folder / "model.safetensors").read_bytes())
    give_types(module, {name: value.dtype for name, value in state.items()} | _types(about.get("unsaved_buffers", {})))
    module.load_state_dict(state)
    options = {"batch_size": int(about["batch_size"]), "output": about.get("output", "auto")}
    member = TorchMember(module.eval(), name=about["name"], classes=about["classes"], **options)
    member.recipe = recipe
    return member


def check_initialised(argument: str, name: str, module: nn.Module) -> None:
    """Raise ValueError for a module with lazy parameters, which have no shape yet."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if lazy := [key for key, value in tensors if nn.parameter.is_lazy(value)]:
        raise ValueError(
            f"{argument}: {name}: expected initialised parameters; {', '.join(lazy[:3])}{' ...' * (len(lazy) > 3)} of a lazy module have "
            "no shape before its first call: call the module with one batch, and build it again (factory) from layers with sizes"
        )


def floating_type(module: nn.Module) -> torch.dtype | None:
    """The floating type of a module's parameters; None where there is none, or several."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def unsaved_types(module: nn.Module) -> dict[str, str]:
    """The floating types of buffers that aren't saved, by name: what builds the module again may make them of another."""
    saved = module.state_dict().keys()
    return {name: str(b.dtype)[6:] for name, b in module.named_buffers() if name not in saved and b.is_floating_point()}


def _types(names: dict[str, str]) -> dict[str, torch.dtype]:
    return {name: dtype for name, kind in names.items() if isinstance(dtype := getattr(torch, str(kind), None), torch.dtype)}


def give_types(module: nn.Module, types: dict[str, torch.dtype]) -> None:
    """Give parameters and buffers these floating types, in place: tied ones stay tied."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        dtype = types.get(name, value.dtype)
        if dtype != value.dtype and dtype.is_floating_point and value.is_floating_point():
            value.data = value.data.to(dtype)


def _takes_mask(module: nn.Module) -> bool:
    try:
        return "attention_mask" in inspect.signature(module.forward).parameters
    except ValueError:  # of a scripted module
        return False


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
