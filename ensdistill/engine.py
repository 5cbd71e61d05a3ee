"""The engine of the student's training, which is accelerate: device, gradient scaler, gradients averaged over the processes.

accelerate keeps its state once for the whole Python process, and reads the environment. A caller may use it, too, with other
settings. So the engine's ``Accelerator`` is made with a state of its own, and the caller's is put back before training begins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from torch import Tensor, nn
from torch.optim import Optimizer

from ensdistill.processes import Processes

_STATES = (AcceleratorState, PartialState, GradientState)
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Variables by which launchers set accelerate up, or say which process this is.
_PREFIXES = ("ACCELERATE_", "PMI_", "OMPI_", "MPI_", "MV2_")
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_making = Lock()


def device_type(cpu: bool, mixed_precision: str) -> str:
    """The type of the device to train on: "cpu", or that of this machine's accelerator.

    Raises
    ------
    ValueError
        fp16 on the CPU.
    """
    accelerator = None if cpu or parse_flag_from_env("ACCELERATE_USE_CPU") else torch.accelerator.current_accelerator(True)
    kind = "cpu" if accelerator is None else accelerator.type
    if kind == "cpu" and mixed_precision == "fp16":
        raise ValueError(
            "mixed_precision: fp16 needs a GPU, because gradients are scaled there only; this training is on the CPU: "
            "choose 'no' or 'bf16', or pass cpu=False on a machine with a GPU"
        )
    return kind


@dataclass(frozen=True)
class Engine:
    """A model and its optimiser, ready to be trained.

    Parameters
    ----------
    device : torch.device
    model : Module
        To be called in training: its gradients are the mean over the processes.
    optimizer : Optimizer
    precision : {"no", "bf16", "fp16"}
    """

    device: torch.device
    model: nn.Module
    optimizer: Optimizer
    precision: str
    _accelerator: Any
    _prepared: Any

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's outputs in float32, computed in the engine's precision."""
        dtype = _DTYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            outputs: Tensor = self.model(inputs)
        return outputs if dtype is None else outputs.float()

    def step(self, loss: Tensor) -> bool:
        """Change the parameters by the loss's gradients; False where the gradient scaler left the step out."""
        self.optimizer.zero_grad()
        # Without a gradient scaler accelerate's backward and step only forward the call, for 0.3 ms of look-ups each step:
        # as much as a small student's whole step.
        if self._accelerator.scaler is None and self._accelerator.distributed_type in _PLAIN:
            loss.backward()
            self.optimizer.step()
            return True
        self._accelerator.backward(loss)
        self._prepared.step()
        return not self._accelerator.optimizer_step_was_skipped

    @property
    def scaler(self) -> dict[str, Any] | None:
        """The state of the gradient scaler; None without one."""
        scaler = self._accelerator.scaler
        return None if scaler is None else dict(scaler.state_dict())

    def load_scaler(self, state: dict[str, Any] | None) -> None:
        if self._accelerator.scaler is not None and state is not None:
            self._accelerator.scaler.load_state_dict(state)


def start_engine(model: nn.Module, optimizer: Optimizer, precision: str, group: Processes) -> Engine:
    """Move a model to the group's device, and have its gradients averaged over the group.

    Raises
    ------
    ValueError
        The process group has no backend for that device.
    """
    kind = torch.device(group.device).type
    _check_backend(group, kind)
    # Buffers are left to the trainer: DDP would give all processes those of the first before every step.
    # It may put gradients into other buckets after the first step, unless it looks for unused parameters.
    # Sums over three or more processes would then have other bits after a resume.
    kwargs = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    with _making, _apart(group, kind):
        accelerator = Accelerator(cpu=kind == "cpu", mixed_precision=precision, kwargs_handlers=[kwargs])
        wrapped, prepared = accelerator.prepare(model, optimizer)
    _unmark(model)
    return Engine(accelerator.device, wrapped, optimizer, precision, accelerator, prepared)


def _check_backend(group: Processes, kind: str) -> None:
    if group.count == 1:
        return
    backends = str(torch.distributed.get_backend_config())
    if kind not in [part.split(":")[0] for part in backends.split(",")]:
        raise ValueError(
            f"cpu: this training is on the {kind}, but torch's process group has only the backends {backends}; "
            f"pass cpu={kind != 'cpu'}, or make the group with init_process_group('cpu:gloo,cuda:nccl')"
        )


def _unmark(model: nn.Module) -> None:
    """Undo accelerate's changes of the model itself, so that it answers, and can be prepared by others, as any model."""
    vars(model).pop("_is_accelerate_prepared", None)
    if "_original_forward" in vars(model):  # for mixed precision; the engine's own forward takes care of that
        own = vars(model).pop("_original_forward")
        del model.forward
        if getattr(own, "__func__", None) is not type(model).forward:
            model.forward = own


@contextmanager
def _apart(group: Processes, kind: str) -> Iterator[None]:
    """In here accelerate has no state yet, and an environment that names nothing but ``group`` and the device."""
    states, before = [vars(owner)["_shared_state"] for owner in _STATES], dict(os.environ)
    for owner in _STATES:
        # A new dict: the caller's objects have the old one as their __dict__, and keep it.
        owner._shared_state = {}
    for name in before:
        if name in _RANKS or (name.startswith(_PREFIXES) and name != "ACCELERATE_TORCH_DEVICE"):
            del os.environ[name]
    if kind == "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else "cpu:1" in process 1, and tensors are copied to and fro
    if group.count > 1:
        local = before.get("LOCAL_RANK", str(torch.cuda.current_device() if kind == "cuda" else group.rank))
        ranks = (group.rank, group.count, local, group.count)
        os.environ.update({name: str(value) for name, value in zip(_RANKS, ranks, strict=True)})
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate sets torch's threads
    try:
        yield
    finally:
        for owner, state in zip(_STATES, states, strict=True):
            owner._shared_state = state
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
