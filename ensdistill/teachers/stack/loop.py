"""The training of a stack of models, or of a single plain one, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from ensdistill.common.checkpoint import load_checkpoint, save_checkpoint
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimization import Optimization
from ensdistill.common.random import BatchOrder, derive_seed, random_generator
from ensdistill.common.source import source_digest
from ensdistill.data.augmentation import Augmentation
from ensdistill.teachers.channels_last import as_channels_last
from ensdistill.teachers.members.logits import logits_of
from ensdistill.teachers.stack.dropout import OwnDropout, keys
from ensdistill.teachers.stack.objectives import Objective
from ensdistill.teachers.stack.status import Status, Watch
from ensdistill.teachers.stack.traits import Traits, traits

# Batches and draws are made, losses are checked and watchers called once per block; checkpoints lie between
# blocks.
BLOCK = 32


class Stopped(Exception):
    """A training ended because one beside it did."""


class Job:
    """The training of a stack of models, or of a single plain one.

    ``known`` are its traits, if they were found before. ``stop`` is for a training beside others on threads:
    the training raises
    :class:`Stopped` soon after it is set, and leaves torch's global generator alone, because all of them
    share it.
    """

    def __init__(
        self,
        models: list[nn.Module],
        names: list[str],
        seeds: list[int],
        rows: list[np.ndarray],
        inputs: Tensor,
        labels: Tensor,
        objective: Objective,
        optimization: Optimization,
        augment: Augmentation | None,
        augmented: list[int],
        captures: Sequence[int] = (),
        watch: Watch | None = None,
        stop: Event | None = None,
        known: Traits | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.models, self.names, self.seeds, self.rows, self.augmented = models, names, seeds, rows, augmented
        self.inputs, self.labels, self.objective = inputs, labels, objective
        # [models, N]: a row's weight over the mean weight of the model's rows, so that equal weights change
        # no bit.
        own = (
            None
            if weights is None
            else np.stack([weights / weights[r].mean() for r in rows]).astype(np.float32)
        )
        self.weights = None if own is None else torch.from_numpy(own).to(inputs.device)
        self.optimization, self.augment = optimization, augment if augmented else None
        self.orders = [
            BatchOrder(len(r), optimization.batch_size, s) for r, s in zip(rows, seeds, strict=True)
        ]
        self.single, self.watch, self.stop = len(models) == 1, watch, stop
        base = models[0].train()
        self.traits = known or traits(base, inputs, channels_last=self.single)
        self.dropout = OwnDropout() if self.traits.drops else None
        self.parameters: dict[str, Tensor]
        self.buffers: dict[str, Tensor]
        if self.single:
            self.parameters, self.buffers = dict(base.named_parameters()), dict(base.named_buffers())
        else:
            self.parameters, self.buffers = stack_module_state(models)
            self.stack = vmap(self._call, randomness="different")
        self.optimizer, self.scheduler = optimization.build(self.parameters.values())
        self.captures = {step: i for i, step in enumerate(captures)}
        state = {**self.parameters, **self.buffers}
        self.captured = {
            name: torch.zeros(len(captures), *v.shape, dtype=v.dtype, device=v.device)
            for name, v in state.items()
        }

    def _state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, looked up anew: a forward pass may have put others in the place of
        buffers."""
        if self.single:
            self.buffers = dict(self.models[0].named_buffers())
        state = {**self.parameters, **{f"buffer {name}": value for name, value in self.buffers.items()}}
        if self.captures:
            state |= {f"captured {name}": value for name, value in self.captured.items()}
        return state

    def run(
        self, checkpoint: Path | None, checkpoint_every: int, progress: Callable[[int], None] | None
    ) -> None:
        fingerprint = "" if checkpoint is None else self._fingerprint()
        step = saved = 0
        if checkpoint is not None:
            resumed = load_checkpoint(
                checkpoint,
                fingerprint=fingerprint,
                tensors=self._state(),
                optimizer=self.optimizer,
                scheduler=self.scheduler,
            )
            step = saved = resumed.step if resumed else 0
        steps = self.optimization.steps
        while step < steps:
            step = self.block(step // BLOCK, min(BLOCK, steps - step))
            if checkpoint is not None and (step - saved >= checkpoint_every or step == steps):
                save_checkpoint(
                    checkpoint,
                    step=step,
                    fingerprint=fingerprint,
                    tensors=self._state(),
                    optimizer=self.optimizer,
                    scheduler=self.scheduler,
                )
                saved = step
            if progress is not None:
                progress(step)
        self.optimizer.zero_grad()  # the last gradients are not needed
        if not self.single:
            self._unstack()

    def block(self, block: int, steps: int) -> int:
        """Train ``steps`` steps from the start of ``block``; the number of steps that are then done."""
        start, size, device = block * BLOCK, self.optimization.batch_size, self.inputs.device
        if self.stop is None:
            # For random numbers beside dropout. torch.manual_seed notes a traceback for devices that are not
            # in use yet: 0.5 ms.
            seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
            seed(derive_seed("dropout", self.seeds, block))
        key = (
            None
            if self.dropout is None
            else torch.from_numpy(keys(self.seeds, block, BLOCK)[:steps]).to(device)
        )
        positions = np.stack(
            [
                np.stack([r[order(start + i)] for i in range(steps)])
                for r, order in zip(self.rows, self.orders, strict=True)
            ],
            axis=1,
        )  # [steps, models, batch]
        index = torch.from_numpy(positions).to(device)
        if self.augment is not None:
            # Draws for a whole block, cut to its steps, so that they do not depend on how many steps there
            # are.
            drawn = [
                self.augment.draw(BLOCK * size, random_generator("augment", self.seeds[m], block))
                for m in self.augmented
            ]
            draws = torch.from_numpy(
                np.stack([d.reshape(BLOCK, size, *d.shape[1:])[:steps] for d in drawn], axis=1)
            ).to(device)
        losses, hits = [], []
        for i in range(steps):
            if self.stop is not None and self.stop.is_set():
                raise Stopped
            inputs = self.inputs[index[i].flatten()]
            if self.augment is not None:
                inputs = self._augmented(self.augment, inputs, draws[i].flatten(0, 1))
            labels = self.labels[index[i].flatten()]
            logits = self._logits(inputs, None if key is None else key[i])
            loss = self._losses(logits, labels, index[i])
            self.optimizer.zero_grad()
            loss.sum().backward()  # the sum, so that a model's gradient is the one it has alone
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.detach())
            if self.watch is not None:
                hits.append(self.objective.accuracies(logits.detach(), labels))
            if start + i + 1 in self.captures:
                self._capture(self.captures[start + i + 1])
        mean = torch.stack(losses)  # [steps, models]; one synchronisation per block
        bad = mean.isfinite().logical_not().nonzero().tolist()
        if bad:
            step, model = bad[0]
            raise FloatingPointError(
                f"{self.names[model]}: the loss is {losses[step][model].item()} at step {start + step} of "
                f"{self.optimization.steps}; "
                f"lower optimization.learning_rate ({self.optimization.learning_rate}) or look for extreme "
                "inputs"
            )
        if self.watch is not None:
            means = [value.double().mean(0).cpu().numpy() for value in (mean, torch.stack(hits))]
            self.watch(Status(tuple(self.names), start + steps, self.optimization.steps, *means))
        return start + steps

    def _augmented(self, augment: Augmentation, inputs: Tensor, draws: Tensor) -> Tensor:
        if len(self.augmented) == len(self.models):
            return augment.apply(inputs, draws)
        each = inputs.unflatten(0, (len(self.models), -1))  # a copy already: it was indexed
        each[self.augmented] = augment.apply(each[self.augmented].flatten(0, 1), draws).unflatten(
            0, (len(self.augmented), -1)
        )
        return inputs

    def _logits(self, inputs: Tensor, key: Tensor | None) -> Tensor:
        """[models, batch, C] for inputs [models * batch, ...]; key [models, 2]."""
        count = len(self.models)
        with nullcontext() if self.dropout is None else self.dropout:
            if self.single:
                if self.dropout is not None and key is not None:
                    self.dropout.begin(key[0])
                given = as_channels_last(inputs) if self.traits.channels_last else inputs
                logits = logits_of(self.models[0](given))[None]
            else:
                keys = torch.zeros(count, 2, dtype=torch.int32, device=inputs.device) if key is None else key
                logits = self.stack(self.parameters, self.buffers, inputs.unflatten(0, (count, -1)), keys)
        expected = (count, len(inputs) // count, self.objective.outputs)
        if logits.shape != expected:
            raise ValueError(
                f"{self.names[0]}: expected {self.objective.outputs} outputs per sample, "
                f"{self.objective.expectation}: {list(expected[1:])}; got {list(logits.shape[1:])}"
            )
        return logits

    def _call(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, key: Tensor
    ) -> Tensor:
        if self.dropout is not None:
            self.dropout.begin(key)
        return logits_of(functional_call(self.models[0], (parameters, buffers), (inputs,)))

    def _losses(self, logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """The mean loss of each model, [models]; ``rows`` [models, batch] are the positions of the rows."""
        loss = self.objective.losses(logits, labels)
        return loss.mean(1) if self.weights is None else (loss * self.weights.gather(1, rows)).mean(1)

    @torch.no_grad()
    def _capture(self, place: int) -> None:
        buffers = dict(self.models[0].named_buffers()) if self.single else self.buffers
        for name, value in {**self.parameters, **buffers}.items():
            self.captured[name][place] = value

    @torch.no_grad()
    def _unstack(self) -> None:
        for i, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.copy_(self.parameters[name][i])
            for name, buffer in model.named_buffers():
                buffer.copy_(self.buffers[name][i])

    def _fingerprint(self) -> str:
        start = {name: value.detach() for name, value in {**self.parameters, **self.buffers}.items()}
        augment = None if self.augment is None else [repr(self.augment), source_digest(type(self.augment))]
        model = [repr(self.models[0]), source_digest(type(self.models[0]))]
        data = [self.inputs, self.labels, self.rows, *([] if self.weights is None else [self.weights])]
        factors = [one for one in (self.objective.positive, self.objective.each) if one is not None]
        settings = [self.seeds, self.optimization, augment, self.augmented, *factors]
        return digest([model, start, *settings, data, torch.__version__])
