"""The engine of the student's training: accelerate places the model and scales gradients; they are averaged
over the processes here.

accelerate keeps its state once for the whole Python process, and reads the environment. A caller may use it,
too, with other settings. So the engine's ``Accelerator`` is made with a state of its own, and the caller's is
put back before training begins.

Gradients are not left to DistributedDataParallel. It arranges them anew after its first step, so that a sum
over three or more processes has other bits after a resume; it refuses models with parameters that a step does
not use; and its hooks stay on the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.optim import Optimizer

from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import student_settings
from ensdistill.common.processes import Processes
from ensdistill.student.inputs import Inputs, call

_STATES = (AcceleratorState, PartialState, GradientState)
# Variables by which launchers set accelerate up, or count processes, which the group has done already.
_PREFIXES = ("ACCELERATE_", "PMI_", "OMPI_", "MPI_", "MV2_")
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# A row whose variance is far too small has a gradient without bound, and Adam's averages keep it for
# thousands of steps: on diamonds' prices a training at a good rate ended there.
CLIP_OF_VARIANCES = 1.0


def clip_norm_of(optimization: Optimization, variances: bool) -> float | None:
    """The largest norm of a step's gradients; ``variances`` is whether the student predicts them."""
    stated = student_settings(optimization).clip_norm
    return CLIP_OF_VARIANCES if stated is None and variances else stated


_making = Lock()


def device_type(cpu: bool, mixed_precision: str) -> str:
    """The type of the device to train on: "cpu", or that of this machine's accelerator.

    Raises
    ------
    ValueError
        fp16 on the CPU.
    """
    accelerator = (
        None
        if cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        else torch.accelerator.current_accelerator(True)
    )
    kind = "cpu" if accelerator is None else accelerator.type
    if kind == "cpu" and mixed_precision == "fp16":
        raise ValueError(
            "mixed_precision: fp16 needs a GPU, because gradients are scaled there only; this training is "
            "on the CPU: "
            "choose 'no' or 'bf16', or pass cpu=False on a machine with a GPU"
        )
    return kind


@dataclass(frozen=True)
class Engine:
    """A model and its optimiser, ready to be trained.

    Parameters
    ----------
    device : torch.device
        Where the model is.
    model : Module
    optimizer : Optimizer
    precision : {"no", "bf16", "fp16"}
    group : Processes
    clip_norm : float or None
        The largest norm of all gradients.
    sharded : bool
        Whether the parameters are divided over the processes: then their gradients are, too, and are means
        already.
    """

    device: torch.device
    model: nn.Module
    optimizer: Optimizer
    precision: str
    group: Processes
    clip_norm: float | None
    sharded: bool
    _accelerator: Any
    _prepared: Any
    _run: Any

    def forward(self, inputs: Inputs) -> Tensor:
        """The model's outputs, computed in the engine's precision and given in float32."""
        dtype = _DTYPES.get(self.precision)
        # Entering autocast where it changes nothing takes 5 microseconds of a small student's step of 300.
        outside = dtype is None and not torch.is_autocast_enabled(self.device.type)
        with nullcontext() if outside else torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            outputs = call(self._run, inputs)
        return outputs if dtype is None else outputs.float()

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the parameters."""
        # Without a gradient scaler accelerate's backward and step only forward the call, for 0.3 ms of
        # look-ups each step: as much as a small student's whole step.
        if self._accelerator.scaler is None:
            loss.backward()
        else:
            self._accelerator.backward(loss)

    def step(self) -> bool:
        """Change the parameters by the mean of the processes' gradients; False where the gradient scaler left
        the step out."""
        self._average()
        if self.clip_norm is not None:
            # The norm is that of the whole batch's gradients, without the scaler's factor.
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if self._accelerator.scaler is None:
            self.optimizer.step()
            return True
        self._prepared.step()
        return not self._accelerator.optimizer_step_was_skipped

    def _average(self) -> None:
        """Give each parameter the mean of its gradients in all processes."""
        if self.group.count == 1 or self.sharded:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            some = [p for p in parameters if p.dtype == dtype]
            # A gradient that one process does not have counts as 0; one that none has stays away, as with a
            # single process.
            present = torch.tensor([float(p.grad is not None) for p in some], dtype=dtype, device=self.device)
            parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in some]
            means = self.group.mean(torch.cat([present, *parts]))
            used = (means[: len(some)] > 0).tolist()
            for p, use, mean in zip(
                some, used, means[len(some) :].split([p.numel() for p in some]), strict=True
            ):
                if use:
                    p.grad = mean.view(p.shape)

    @property
    def scaler(self) -> dict[str, Any] | None:
        """The state of the gradient scaler; None without one."""
        scaler = self._accelerator.scaler
        return None if scaler is None else dict(scaler.state_dict())

    def load_scaler(self, state: dict[str, Any] | None) -> None:
        if self._accelerator.scaler is not None and state is not None:
            self._accelerator.scaler.load_state_dict(state)


def start_engine(
    model: nn.Module,
    optimizer: Optimizer,
    precision: str,
    group: Processes,
    *,
    clip_norm: float | None = None,
    compiled: bool | str = False,
    sharded: bool = False,
) -> Engine:
    """Move a model to the group's device, and give all processes the parameters and buffers of process 0; a
    ``sharded`` one is there already.

    ``compiled`` is True, or the name of a backend, for a forward pass by :func:`torch.compile`; the model
    itself stays as it is.

    Raises
    ------
    ValueError
        The process group has no backend for that device.
    """
    kind = torch.device(group.device).type
    check_backend(group, kind)
    with _making, apart():
        accelerator = Accelerator(cpu=kind == "cpu", mixed_precision=precision)
        if not sharded:
            model.to(accelerator.device)
        prepared = accelerator.prepare_optimizer(optimizer)
    if not sharded:
        group.take_first([*model.parameters(), *model.buffers()])
    run: Any = model
    if compiled:
        backend = "inductor" if compiled is True else compiled
        try:
            run = torch.compile(model, backend=backend)
        except torch._dynamo.exc.InvalidBackend as error:
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"compile: {backend!r} is no backend of torch.compile: {known}") from error
    return Engine(
        accelerator.device, model, optimizer, precision, group, clip_norm, sharded, accelerator, prepared, run
    )


def check_backend(group: Processes, kind: str) -> None:
    """Raise ValueError unless the process group has a backend for a kind of device."""
    if group.count == 1:
        return
    backends = str(torch.distributed.get_backend_config())
    if kind not in [part.split(":")[0] for part in backends.split(",")]:
        raise ValueError(
            f"cpu: this training is on the {kind}, but torch's process group has only the backends "
            f"{backends}; "
            f"pass cpu={kind != 'cpu'}, or make the group with init_process_group('cpu:gloo,cuda:nccl')"
        )


@contextmanager
def apart(*, keep_variables: bool = False) -> Iterator[None]:
    """In here accelerate has no state yet, and the environment has no settings for it and no other
    processes. Variables that are set in here are gone afterwards, unless they are to be kept."""
    states, before = [vars(owner)["_shared_state"] for owner in _STATES], dict(os.environ)
    for owner in _STATES:
        # A new dict: the caller's objects have the old one as their __dict__, and keep it.
        owner._shared_state = {}
    for name in before:
        if name in _RANKS or name.startswith(_PREFIXES):
            del os.environ[name]
    try:
        yield
    finally:
        for owner, state in zip(_STATES, states, strict=True):
            owner._shared_state = state
        for name in set(os.environ) - set(before):
            if not keep_variables or name.startswith(_PREFIXES):
                del os.environ[name]
        os.environ.update(before)
