"""Torch modules as members. They map a batch to logits, or to an object with ``.logits``."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from ensdistill.common.describe import build_module, class_path, module_recipe, paths_of
from ensdistill.common.errors import is_out_of_memory
from ensdistill.common.files import write_bytes
from ensdistill.common.fingerprint import digest
from ensdistill.common.source import state_data
from ensdistill.common.tasks import Task, check_task
from ensdistill.teachers.channels_last import as_channels_last, gains_by_channels_last, same_in_channels_last
from ensdistill.teachers.members import pretrained
from ensdistill.teachers.members.base import (
    Logits,
    align,
    check_width,
    not_distributions,
    own_source,
    task_parts,
    write_description,
    wrong_task,
)
from ensdistill.teachers.members.behaviour import behaviour
from ensdistill.teachers.members.dtypes import (
    as_batch,
    check_inputs,
    give_types,
    named_types,
    refusal,
    unsaved_types,
)
from ensdistill.teachers.members.ending import ending
from ensdistill.teachers.members.inputs import batches, count, take
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.members.moments import Moments, check_moments, joined_moments, split_moments
from ensdistill.teachers.members.needs import needed, of_recipe
from ensdistill.teachers.members.outputs import Output, Reading, as_logits, check_output, reading_of
from ensdistill.teachers.members.sigmoids import as_log_odds
from ensdistill.teachers.members.wrappers import check_not_exported, unwrapped

_FEW = 8  # different rows: logits of fewer may look like probabilities by chance, so they are not judged


class TorchMember:
    """A torch module that maps [N, ...] to outputs [N, C]; of several outputs (a tuple, a dict, a dataclass,
    an object) they are what is called ``logits``, or else the one tensor of two dimensions.

    Parameters
    ----------
    module : Module
        Predicts in eval mode, without gradients; afterwards every submodule has its own mode again. Hugging
        Face's classification models are such modules: token ids equal to the config's ``pad_token_id`` are
        masked, and ``id2label`` names the classes. ``DataParallel``, ``DistributedDataParallel``,
        ``AveragedModel`` and compiled modules are taken off: the module within predicts. Floating inputs are
        given to it in the dtype of its parameters, token ids in int64.
    name : str
    classes : sequence of str, optional
    factory : callable, optional
        The module's class, or ``functools.partial(Class, **plain_arguments)``, with which loading builds it
        again. Needed to save it, except for Hugging Face models, which are built from their config.
    batch_size : int
        Rows predicted at once; halved as often as needed if the memory is short.
    device : str, optional
        The device that predicts. The module is moved there for each call and back afterwards, so that only
        one of many members is there at a time. By default it predicts on its own device.
    output : {"auto", "logits", "probabilities", "log_probabilities", "margin"}
        The kind of the outputs. ``auto`` reads a module that ends in a softmax as probabilities, and others
        as logits, unless the first batch could be probabilities. ``margin`` is one column, the logit of the
        second of two classes. Of the task multilabel ``auto``, ``logits`` (log-odds) or ``probabilities``
        (``auto`` where it ends in a sigmoid). Of the task regression ``auto`` or ``mean``: D numbers;
        ``mean_and_variance`` or ``mean_and_log_variance``: a pair of tensors [N, D], or one [N, 2 D].
    task : {"classification", "multilabel", "regression"}
        ``classes`` are the names of the labels, or of the numbers.

    Raises
    ------
    ValueError
        Parameters that are not initialised, or a model whose config declares another task.
        ``predict_logits`` raises it for inputs of another dtype, and for outputs that could be probabilities
        as well as logits, or have one column.

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
        task: Task = "classification",
    ) -> None:
        check_not_exported(name, module)
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module; got {class_path(type(module))}")
        if batch_size < 1:
            raise ValueError(f"batch_size: {name}: expected at least 1; got {batch_size}")
        self.module, self.name, self.batch_size = unwrapped(module), name, batch_size
        self.task = check_task(task)
        self.output = check_output(name, output, task)
        check_initialised("module", name, self.module)
        pretrained.check_task(name, self.module, output, task)
        self.device = None if device is None else torch.device(device)
        known = pretrained.class_names(self.module)
        self.classes, self._columns = align(name, None if len(known or ()) == 1 else known, classes)
        self.recipe = pretrained.recipe(self.module) if factory is None else module_recipe(factory)
        if factory is not None and self.recipe is None:
            raise ValueError(
                f"factory: {name}: expected a module class, or functools.partial of one with plain keyword "
                f"arguments; got {factory!r}"
            )
        # None until outputs show it.
        self._reading: Any = output if output != "auto" else "mean" if task == "regression" else None
        self._seen_its_end = False
        self._channels_last: bool | None = None  # whether it takes images so; None until a batch was tried
        self._masks = _takes_mask(self.module)

    @property
    def parameters(self) -> int:
        """Count of the parameters, without weights that a pruned module does not store."""
        absent = sum(getattr(part, "absent_numbers", 0) for part in self.module.modules())
        return sum(p.numel() for p in self.module.parameters()) - absent

    @property
    def bytes(self) -> int:
        """Bytes of the module's state."""
        return sum(t.nbytes for t in self.module.state_dict().values() if isinstance(t, Tensor))

    @property
    def predicts_on(self) -> torch.device:
        """The device that predicts, on which ``predict_tensor`` leaves the logits."""
        found = self.device or next(
            (t.device for t in (*self.module.parameters(), *self.module.buffers())), torch.device("cpu")
        )
        return torch.device("cuda", torch.cuda.current_device()) if found == torch.device("cuda") else found

    def predict_logits(self, inputs: Any) -> np.ndarray:
        """Logits, float32 [N, C], for an array [N, ...], or for a mapping of arrays, the module's keyword
        arguments."""
        if self.task == "regression":
            raise wrong_task(self.name, self.task, "predict_logits")
        return self._checked(self.ordered(self.raw(inputs)), count(inputs))

    def predict_moments(self, inputs: Any) -> Moments:
        """Means and variances, float64 [N, D], of a regressor; inputs as for ``predict_logits``."""
        if self.task != "regression":
            raise wrong_task(self.name, self.task, "predict_moments")
        found = split_moments(self.name, self._outputs(inputs, stay=False).double().numpy(), self._reading)
        return check_moments(found, self.name, count(inputs), self.classes)

    def predict_tensor(self, inputs: Any) -> Tensor:
        """Logits, float32 [N, C], on the device that predicts."""
        return self._checked(self.ordered(self._outputs(inputs, stay=True)), count(inputs))

    def _checked(self, logits: Logits, rows: int) -> Logits:
        return check_width(self.name, logits, rows, self.classes)

    def ordered(self, outputs: Logits) -> Logits:
        """The module's outputs as logits [N, C], in the order of ``classes``."""
        if self.task == "multilabel":
            return self._in_order(self._log_odds(outputs))
        if self._reading is None:
            self._reading = self._read(outputs)
        reading = self._reading or "logits"
        if reading != "logits" or outputs.ndim != 2 or outputs.shape[1] == 1:
            if isinstance(outputs, Tensor):
                values = as_logits(self.name, outputs.cpu().numpy(), reading)
                outputs = torch.from_numpy(values).to(outputs.device)
            else:
                outputs = as_logits(self.name, outputs, reading)
        return self._in_order(outputs)

    def _in_order(self, outputs: Logits) -> Logits:
        if self._columns is None or outputs.shape[1] != len(self._columns):
            return outputs
        return outputs[:, self._columns.tolist()]

    def _log_odds(self, outputs: Logits) -> Logits:
        if self._reading in (None, "logits") and outputs.ndim == 2:
            return outputs
        if isinstance(outputs, Tensor):
            found = as_log_odds(self.name, outputs.cpu().numpy(), self._reading or "logits")
            return torch.from_numpy(found).to(outputs.device)
        return as_log_odds(self.name, outputs, self._reading or "logits")

    def _read(self, outputs: Logits) -> Reading | None:
        """How to read the outputs of a module without a softmax at its end; None for too few rows.

        Any number of rows that are all distributions is refused, because logits don't sum to one by chance.
        """
        if outputs.ndim != 2 or outputs.shape[1] == 1:
            return None
        first = outputs[: self.batch_size]
        values = first.cpu().numpy() if isinstance(first, Tensor) else first
        distributions = len(values) > 0 and len(not_distributions(values)) == 0
        if not distributions and len(np.unique(values, axis=0)) < _FEW:
            return None
        if distributions or reading_of(self.name, values) == "probabilities":
            raise ValueError(
                f"output: {self.name}: expected a module that returns logits; all rows of this one's outputs "
                f"are probabilities. State their kind: TorchMember(module, name={self.name!r}, "
                "output='probabilities'), or output='logits'"
            )
        return "logits"

    def raw(self, inputs: Any) -> np.ndarray:
        """The module's outputs, float32 [N, C], before they are read as logits and put in order."""
        return self._outputs(inputs, stay=False).numpy()

    def _outputs(self, inputs: Any, stay: bool) -> Tensor:
        check_inputs(self.name, self.module, inputs)
        with predicting(self.module, self.device) as device, torch.no_grad():
            if self._reading is None and not self._seen_its_end and count(inputs):
                self._look_at_its_end(as_batch(self.module, take(inputs, slice(2)), device))
            parts = [
                part for x in batches(inputs, self.batch_size) for part in self._predict(x, device, stay)
            ]
        joined = torch.cat(parts)
        return joined if self.task == "regression" else joined.float()

    def _look_at_its_end(self, x: Any) -> None:
        """Read a module that ends in a softmax as probabilities, and refuse one that ends in a sigmoid; of
        multi-label ones the other way round."""
        end = ending(self._forward, x)
        if self.task == "multilabel":
            if end == "softmax":
                raise ValueError(
                    f"output: {self.name}: expected log-odds, or a sigmoid at its end, for the task "
                    "multilabel; the module ends in a softmax over its outputs"
                )
            self._reading, self._seen_its_end = "probabilities" if end == "sigmoid" else "logits", True
            return
        if end == "sigmoid":
            raise ValueError(
                f"output: {self.name}: the module ends in a sigmoid: each of its outputs is a probability by "
                "itself. For one output, output='probabilities' takes it as that of the second of two "
                "classes; several (multi-label) are of the task multilabel: TorchMember(module, "
                f"name={self.name!r}, task='multilabel')"
            )
        self._reading, self._seen_its_end = "probabilities" if end == "softmax" else None, True

    def _predict(self, inputs: Any, device: torch.device, stay: bool) -> list[Tensor]:
        try:
            logits = self._logits(as_batch(self.module, inputs, device))
            return [logits if stay else logits.cpu()]
        except (RuntimeError, IndexError, MemoryError) as error:
            if not is_out_of_memory(error):
                if isinstance(inputs, Mapping):
                    raise
                x = as_batch(self.module, inputs, torch.device("cpu"))
                refused = refusal("module", self.name, self.module, x) or _misfit(self.name, x, error)
                if refused is None:
                    raise
                raise refused from error
            if count(inputs) <= 1:
                raise MemoryError(
                    f"{self.name}: out of memory on {device} with a single row ({error}). It has "
                    f"{self.bytes / 2**20:,.0f} MiB of parameters: predict elsewhere with "
                    f"TorchMember(module, name={self.name!r}, device='cpu'), or free the device"
                ) from None
        if device.type == "cuda":
            torch.cuda.empty_cache()
        half = count(inputs) // 2  # after the except clause, whose error keeps tensors alive
        halves = take(inputs, slice(half)), take(inputs, slice(half, None))
        return self._predict(halves[0], device, stay) + self._predict(halves[1], device, stay)

    def _logits(self, x: Any) -> Tensor:
        if not isinstance(x, dict) and gains_by_channels_last(self.module, x):
            if self._channels_last is None and len(x):
                self._channels_last = same_in_channels_last(self._forward, x[:2])
            if self._channels_last:
                return self._forward(as_channels_last(x))
        return self._forward(x)

    def _forward(self, x: Any) -> Tensor:
        padding = getattr(getattr(self.module, "config", None), "pad_token_id", None)
        if isinstance(x, dict):
            output = self.module(**x)
        elif self._masks and padding is not None and not x.is_floating_point():
            output = self.module(x, attention_mask=(x != padding).long())
        else:
            output = self.module(x)
        if self.task == "regression":
            output = joined_moments(self.name, output, self._reading)
        try:
            return logits_of(output)
        except TypeError as error:
            raise TypeError(f"module: {self.name}: {error}") from None

    def fingerprint(self) -> str:
        """Digest of the weights and of the parts that `ensdistill.teachers.members.behaviour` names."""
        return digest(["torch", self.fingerprint_parts()])

    def fingerprint_parts(self) -> dict[str, str]:
        """Digests of the fingerprint's parts, by name; ``output`` as it is."""
        parts = {"weights": digest(self._state()), **behaviour(self.module), **own_source(self)}
        parts |= task_parts(self.task)
        if self.output != "auto":
            parts["output"] = self.output
        if self.classes is not None:
            parts["classes"] = digest(self.classes)
        return parts

    def saved_content(self) -> str:
        """Digest of the saved files' content, which no version of torch or of the module's code changes."""
        more: list[str] = [] if self.output in ("auto", "logits") else [self.output]
        more += task_parts(self.task).values()
        return digest(["torch", self.recipe or repr(self.module), self._state(), *more])

    def _state(self) -> dict[str, Any]:
        try:
            return state_data(self.module)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def save(self, folder: Path | str) -> None:
        """Write ``model.safetensors`` and ``member.json``.

        Raises
        ------
        ValueError
            It is unknown how the module is built, its factory builds another one, or it is quantised.
        """
        from safetensors.torch import save

        if self.recipe is None:
            kind = type(self.module).__name__
            raise ValueError(
                f"{self.name}: cannot be saved without a factory that builds it again: TorchMember(module, "
                f"name={self.name!r}, factory=functools.partial({kind}, argument=value, ...))"
            )
        self._check_plain()
        if "config" not in self.recipe:
            self._check_recipe(self.recipe)
        # clone(): tied weights share storage, which safetensors refuses.
        state = {
            name: value.detach().cpu().contiguous().clone()
            for name, value in self.module.state_dict().items()
        }
        write_bytes(Path(folder) / "model.safetensors", save(state))
        more: dict[str, Any] = {} if self.output == "auto" else {"output": self.output}
        if unsaved := unsaved_types(self.module):
            more["unsaved_buffers"] = unsaved
        more["needs"] = needed(["torch", *of_recipe(self.recipe)])
        write_description(folder, self, "torch", recipe=self.recipe, batch_size=self.batch_size, **more)

    def _check_plain(self) -> None:
        """Refuse quantised modules, whose numbers alone are not enough to rebuild them."""
        config = getattr(getattr(self.module, "config", None), "quantization_config", None)
        state = self.module.state_dict().items()
        odd = [k for k, v in state if not isinstance(v, Tensor) or v.is_quantized or type(v) is not Tensor]
        if odd or config is not None:
            found = (
                "its config has a quantization_config"
                if config is not None
                else f"{odd[0]} is no plain tensor"
            )
            raise ValueError(
                f"module: {self.name}: a quantised module can't be saved ({found}); save the module as it "
                "was before"
            )

    def _check_recipe(self, recipe: dict[str, Any]) -> None:
        """Refuse a factory that builds another module, because the saved files could not be loaded."""
        try:
            with torch.random.fork_rng(devices=[]):
                built = build_module(recipe, paths_of(recipe))
        except Exception as error:  # a constructor may raise any kind
            raise ValueError(f"factory: {self.name}: it can't build the module again: {error}") from error
        check_initialised("factory", self.name, built)
        states = (m.state_dict().items() for m in (self.module, built))
        here, there = ({k: (tuple(v.shape), v.dtype) for k, v in state} for state in states)
        # The floating type may differ: loading gives the module the saved one.
        shapes = [
            {k: (shape, t.is_floating_point or t) for k, (shape, t) in m.items()} for m in (here, there)
        ]
        if shapes[0] != shapes[1]:
            name = next(k for k in {**here, **there} if shapes[0].get(k) != shapes[1].get(k))
            words = [f"{m[name][1]} {list(m[name][0])}" if name in m else "missing" for m in (here, there)]
            differing_tensor = f"{name} is {words[0]} here and {words[1]} there"
            raise ValueError(f"factory: {self.name}: it builds another module: {differing_tensor}")
        if repr(built) != repr(self.module):
            raise ValueError(
                f"factory: {self.name}: it builds another module: {built!r} instead of {self.module!r}"
            )
        give_types(
            built,
            {name: dtype for name, (_, dtype) in here.items()} | named_types(unsaved_types(self.module)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # objects without content: the fingerprint warns about them
            one, other = behaviour(self.module), behaviour(built)
        # A counter, or the trace of a call, does no harm; so this is a warning.
        if differing := [part for part in {**one, **other} if one.get(part) != other.get(part)]:
            warnings.warn(
                f"factory: {self.name}: it builds a module with other parts ({', '.join(differing[:5])}): "
                "loaded, it may predict otherwise",
                stacklevel=3,
            )

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any], trusted: tuple[str, ...]) -> TorchMember:
        """A saved module, built from its recipe with trusted classes only."""
        from safetensors.torch import load

        recipe = description["recipe"]
        module = pretrained.build(recipe, trusted) if "config" in recipe else build_module(recipe, trusted)
        state = load((folder / "model.safetensors").read_bytes())
        buffers = named_types(description.get("unsaved_buffers", {}))
        give_types(module, {name: value.dtype for name, value in state.items()} | buffers)
        module.load_state_dict(state)
        options: dict[str, Any] = {
            "batch_size": int(description["batch_size"]),
            "output": description.get("output", "auto"),
        }
        options["task"] = description.get("task", "classification")
        member = cls(module.eval(), name=description["name"], classes=description["classes"], **options)
        member.recipe = recipe
        return member


def is_plain(member: Any) -> TypeGuard[TorchMember]:
    """Whether a member is a ``TorchMember`` whose class does not override the prediction."""
    methods = ("predict_logits", "predict_tensor", "raw", "ordered")
    return isinstance(member, TorchMember) and all(
        getattr(type(member), m) is getattr(TorchMember, m) for m in methods
    )


def check_initialised(argument: str, name: str, module: nn.Module) -> None:
    """Raise ValueError for a module with lazy parameters, which have no shape yet."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if lazy := [key for key, value in tensors if nn.parameter.is_lazy(value)]:
        raise ValueError(
            f"{argument}: {name}: expected initialised parameters; "
            f"{', '.join(lazy[:3])}{' ...' * (len(lazy) > 3)} of a lazy module have no shape before its "
            "first call: call the module with one batch, and build it again (factory) from layers with sizes"
        )


def _misfit(name: str, x: Tensor, error: Exception) -> ValueError | None:
    """The error for inputs of a shape that the module's layers do not take; None for other causes."""
    text = str(error)
    if not re.search(r"\b(shapes?|sizes?|dimensions?|dimensional|channels|elements|[234]D)\b", text):
        return None
    return ValueError(
        f"inputs: {name}: its layers take no inputs of shape {list(x.shape)} ({text}): expected the shape "
        "that it was trained on, with the samples along the first axis"
    )


def _takes_mask(module: nn.Module) -> bool:
    try:
        return "attention_mask" in inspect.signature(module.forward).parameters
    except ValueError:  # a scripted module
        return False


@contextmanager
def predicting(module: nn.Module, device: torch.device | None = None) -> Iterator[torch.device]:
    """Yield the device with the module on it and in eval mode; afterwards restore both, after errors too."""
    tensors = [*module.parameters(), *module.buffers()]
    home = next((t.device for t in tensors), torch.device("cpu"))
    modes = {m: m.training for m in module.modules()}
    if device is not None and len({t.device for t in tensors}) > 1:
        spread = f"{type(module).__name__} is spread over several, so it can't be moved"
        raise ValueError(f"device: expected a module on one device; {spread}")
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
