"""Training from a cache of tokens' targets in Hugging Face's ``Trainer``, or TRL's ``SFTTrainer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ensdistill.cache import TargetCache
from ensdistill.cache.verifying import hashes_of
from ensdistill.common.files import read_json, write_json
from ensdistill.data.token_rows import sequence_hash
from ensdistill.data.tokens import IGNORED, Kind
from ensdistill.functional import distillation_loss, linear_distillation_loss
from ensdistill.loss.settings import LossSettings, settings_of
from ensdistill.loss.targets import Counts, TopK
from ensdistill.teachers.language import (
    decoder_inputs,
    head_is_all,
    kind_of,
    output_columns,
    probe_inputs,
)
from ensdistill.teachers.tokens import described_tokenizer

KEY = "distillation"
FILE = "ensdistill.json"


class CachedDistillation:
    """The targets of a cache in the loss of a language model, without changing its trainer.

    While the model trains, its logits are never made as a whole: its output embeddings take part in the loss
    (:func:`~ensdistill.functional.linear_distillation_loss`), where that gives the model's own logits. Then
    ``outputs.logits`` holds the mean of the losses. Batches without a uid, those of an evaluation, have the
    cross entropy of their labels.

    Parameters
    ----------
    model : PreTrainedModel
        A language model of the members' kind, possibly with PEFT adapters.
    cache : TargetCache
        Of :class:`~ensdistill.data.tokens.TokenSequences`, which are the trainer's data set.
    tokenizer : tokenizer, optional
        Compared with that of the members.
    pad_token_id : int
    settings, **keywords : LossSettings, or its fields
        Such as ``temperature`` and ``alpha``; by default targets alone.

    Raises
    ------
    ValueError, TypeError
        Another vocabulary or tokenizer than the cache's, names both; or no language model.

    Examples
    --------
    >>> from transformers import Trainer, TrainingArguments  # doctest: +SKIP
    >>> distil = CachedDistillation(model, cache, alpha=0.9)  # doctest: +SKIP
    >>> args = TrainingArguments("out", remove_unused_columns=False)  # doctest: +SKIP
    >>> trainer = Trainer(model, args, **distil.arguments, train_dataset=texts)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        cache: TargetCache,
        *,
        tokenizer: Any = None,
        pad_token_id: int = 0,
        settings: LossSettings | None = None,
        **keywords: Any,
    ) -> None:
        self.cache, self.pad = cache, pad_token_id
        self.settings = replace(settings_of(settings, keywords), reduction="sum")
        if not cache.manifest["sequences"]:
            raise ValueError("cache: expected one of sequences; got one with a target for each sample")
        self.classes, columns = len(cache.classes), output_columns("model", model)
        self.head: Any = model.get_output_embeddings()  # type: ignore[operator]
        if columns < self.classes:
            raise ValueError(
                f"model: expected the cache's vocabulary, {self.classes} tokens; its output embeddings have "
                f"{columns}: the student has another tokenizer than the members"
            )
        made = cache.manifest["fingerprint"]["ensemble"]
        if made.get("kind", kind_of(model)) != kind_of(model):
            raise ValueError(f"model: expected a {made['kind']} one, as the members; got {kind_of(model)}")
        if tokenizer is not None:
            _check_tokenizer(cache, tokenizer)
        for hook in list(model._forward_pre_hooks.values()):  # of a notebook's cell that runs again
            if isinstance(before := getattr(hook, "__self__", None), CachedDistillation):
                before.remove()
        self.model, self.kind = model, kind_of(model)
        plain = type(self.head).forward is nn.Linear.forward  # an adapter has more than the weight
        self.fused = plain and columns == self.classes and _probed(model, self.kind, self.head)
        self._batch: Mapping[str, Any] | None = None
        self._mean: Tensor | None = None
        self._handle = model.register_forward_pre_hook(self._take, with_kwargs=True)
        if self.fused:
            self._whole, self._replaced = self.head.forward, vars(self.head).get("forward")
            # Compiled by inductor, the kept mean left hidden states without a gradient; choosing positions
            # divides the graph here in any case.
            self.head.forward = torch.compiler.disable(self._loss_or_logits)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``Trainer``: ``data_collator``, ``compute_loss_func`` and ``callbacks``."""
        return {
            "data_collator": self.collate,
            "compute_loss_func": self.loss,
            "callbacks": [SameTargets(self.cache)],
        }

    def remove(self) -> None:
        """Make the model as it was before; another ``CachedDistillation`` of it does the same."""
        self._handle.remove()
        if self.fused:
            del self.head.forward
            if self._replaced is not None:
                self.head.forward = self._replaced

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of sequences, padded, with their targets where they have a ``uid``."""
        labels = _padded(
            [one["labels"] if "labels" in one else one["input_ids"] for one in features], IGNORED
        )
        if self.kind == "causal":
            labels[:, 0] = IGNORED  # no token predicts the first one
        batch: dict[str, Any] = {
            "input_ids": _padded([one["input_ids"] for one in features], self.pad),
            "attention_mask": _padded([[1] * len(one["input_ids"]) for one in features], 0),
            "labels": labels,
        }
        if self.kind == "seq2seq":
            read = _padded([one.get("decoder_labels", one["labels"]) for one in features], IGNORED)
            batch["decoder_input_ids"] = decoder_inputs(self.model, read)
        with_uid = ["uid" in one for one in features]
        if not any(with_uid):
            return batch
        if not all(with_uid):
            raise ValueError("features: expected a uid of each, or of none")
        uids, counted = np.array([one["uid"] for one in features], np.int64), (labels != IGNORED).numpy()
        return {**batch, KEY: {"labels": labels, **self._stored(features, uids, counted)}}

    def _stored(
        self, features: Sequence[Mapping[str, Any]], uids: np.ndarray, counted: np.ndarray
    ) -> dict[str, Tensor]:
        """The cache's targets, if they were made from these sequences."""
        lengths, counts = self.cache.lengths(uids), counted.sum(1)
        if (wrong := np.flatnonzero(counts != lengths)).size:
            at = int(wrong[0])
            raise ValueError(
                f"features: expected {lengths[at]} tokens to predict in the sequence of uid {uids[at]}, as "
                f"in the cache; got {counts[at]}: it is truncated, or its labels are others than the "
                "cache's; to evaluate on other sequences pass eval_dataset=texts.without_uids()"
            )
        records = self.cache.gather_records(uids)
        known = hashes_of(self.cache, records, lengths)
        for one, uid, row, expected in zip(features, uids, counted, known, strict=True):
            if self._hash(one, row) != int(expected):
                raise ValueError(
                    f"features: expected the sequence from which the cache was made under the uid {uid}; got "
                    "other tokens or labels: of another tokenizer, another prompt, or another order of the "
                    "data set; to evaluate on other sequences pass eval_dataset=texts.without_uids()"
                )
        return _tensors(self.cache.target_of(records))

    def _hash(self, one: Mapping[str, Any], counted: np.ndarray) -> int:
        places, source = np.flatnonzero(counted), one.get("source")
        if self.kind == "causal":  # a position's label is that of the next
            return sequence_hash(np.asarray(one["input_ids"]), places - 1, source=source)
        labels = np.asarray(one["labels"])
        read = np.asarray(one.get("decoder_labels", labels)) if self.kind == "seq2seq" else labels[places]
        return sequence_hash(np.asarray(one["input_ids"]), places, read[read != IGNORED], source)

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The mean loss over the tokens of the whole (accumulated) batch."""
        batch, self._batch = self._batch, None
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        if batch is None and self.model.training:
            raise ValueError(
                "batch: expected targets in training; got none, because its sequences have no uid: train on "
                "the TokenSequences of the cache, with remove_unused_columns=False"
            )
        if batch is None:
            chosen, own = self._counted(labels)
            rows = logits[:, : chosen.shape[1]][chosen].float()
            found = nn.functional.cross_entropy(rows, own, reduction="sum")
        elif self.fused:
            # Some models add a bias to each class, which the probe found to be 0. Mixed precision of FSDP2
            # rounds outputs: the gradient passes through them, and the value is the one before.
            mean = logits.flatten()[0].float()
            assert self._mean is not None
            found = (mean + (self._mean - mean.detach())) * (labels != IGNORED).sum()
        else:
            chosen, own = self._counted(batch["labels"])
            rows = logits[:, : chosen.shape[1]][chosen][:, : self.classes]
            found = distillation_loss(rows, self._targets(batch), own, settings=self.settings)
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return found / count

    def _take(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self._batch = kwargs.pop(KEY, None)
        return args, kwargs

    def _loss_or_logits(self, hidden: Tensor) -> Tensor:
        """In place of the head's logits: the mean of the losses, [1, 1, 1], where targets are at hand."""
        if self._batch is None:
            whole: Tensor = self._whole(hidden)
            return whole
        chosen, own = self._counted(self._batch["labels"])
        found = (
            linear_distillation_loss(
                hidden[:, : chosen.shape[1]][chosen],
                self.head.weight,
                self._targets(self._batch),
                own,
                bias=self.head.bias,
                settings=self.settings,
            )
            / chosen.sum()
        )
        self._mean = found.detach()
        return found.reshape(1, 1, 1)

    def _counted(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Where a label is to be predicted, bool [N, L], or of causal models [N, L - 1]; and these [M]."""
        own = labels[:, 1:] if self.kind == "causal" else labels
        chosen = own != IGNORED
        return chosen, own[chosen]

    def _targets(self, batch: Mapping[str, Any]) -> Any:
        temperature = float(self.cache.temperature or 1.0)
        if "counts" in batch:
            return Counts(batch["ids"], batch["counts"], temperature, self.classes)
        log_probs, tail = (_as_floats(batch[name]) for name in ("log_probs", "tail_log_mass"))
        return TopK(batch["ids"], log_probs, tail, temperature, self.classes)


class SameTargets(TrainerCallback):
    """Refuses to resume a training with another cache than it began with, and to train copies of the model in
    threads.

    Parameters
    ----------
    cache : TargetCache
    """

    def __init__(self, cache: TargetCache) -> None:
        self.own = {"fingerprint": cache.manifest["fingerprint"], "codec": cache.manifest["codec"]}

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if args.n_gpu > 1:  # DataParallel's threads share one batch of targets
            raise ValueError(
                f"args: expected a process for each GPU; got one with {args.n_gpu}: start it by torchrun or "
                "accelerate launch, or let it see one GPU (CUDA_VISIBLE_DEVICES)"
            )
        file = Path(args.output_dir) / FILE
        if state.global_step > 0 and file.is_file() and (before := read_json(file)) != self.own:
            raise ValueError(
                f"{file}: the training that is resumed learned from targets of other members, sequences or "
                f"codec ({before.get('codec')}); got {self.own['codec']}: begin in another output_dir"
            )
        if state.is_world_process_zero:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, self.own)


def _padded(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """Int64 [N, L]."""
    padded = torch.full((len(sequences), max(map(len, sequences))), value)
    for row, one in zip(padded, sequences, strict=True):
        row[: len(one)] = torch.as_tensor(one)
    return padded


def _tensors(targets: Any) -> dict[str, Tensor]:
    if not isinstance(targets, (TopK, Counts)):
        raise ValueError(
            "cache: expected topk-N, topkB-N, counts-N or draws-N, which hold few classes of each token; got "
            f"{type(targets).__name__}"
        )
    parts = {name: part for name, part in vars(targets).items() if isinstance(part, Tensor)}
    return {name: _as_integers(part) if part.is_floating_point() else part for name, part in parts.items()}


def _as_integers(floats: Tensor) -> Tensor:
    """The bits of float32 numbers. Mixed precision of FSDP2 rounds a model's floating inputs:
    log-probabilities would lose all but three digits."""
    return floats.float().view(torch.int32)


def _as_floats(integers: Tensor) -> Tensor:
    return integers.view(torch.float32)


def _check_tokenizer(cache: TargetCache, tokenizer: Any) -> None:
    known = cache.manifest["fingerprint"]["ensemble"].get("tokenizer")
    if known is None:
        return
    own = described_tokenizer(tokenizer)
    if wrong := [name for name in own if own[name] != known.get(name)]:
        raise ValueError(
            f"tokenizer: expected that of the cache's members; its {wrong[0].replace('_', ' ')} is another: "
            "targets are by token, so cache them again with this tokenizer"
        )


def _probed(model: Any, kind: Kind, head: Any) -> bool:
    """Whether the model's logits are its output embeddings' outputs, without a soft cap or a scale, and the
    whole weight is at hand there: FSDP2 gathers it, tensor parallelism does not."""
    training, divided = model.training, []
    handle = head.register_forward_pre_hook(lambda module, inputs: divided.append(_is_divided(module.weight)))
    try:
        model.eval()
        whole = head_is_all(model, probe_inputs(model, kind, head.weight.device, len(head.weight)))
        return whole and not any(divided)
    finally:
        handle.remove()
        model.train(training)


def _is_divided(weight: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)
