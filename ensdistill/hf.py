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
from ensdistill.common.files import read_json, write_json
from ensdistill.data.tokens import IGNORED, Kind
from ensdistill.functional import distillation_loss, linear_distillation_loss
from ensdistill.loss.settings import LossSettings, settings_of
from ensdistill.loss.targets import Counts, TopK
from ensdistill.teachers.language import decoder_inputs, head_is_all, kind_of, probe_inputs
from ensdistill.teachers.tokens import described_tokenizer

KEY = "distillation"
FILE = "ensdistill.json"


class CachedDistillation:
    """The targets of a cache in the loss of a language model, without changing its trainer.

    While the model trains, its logits are never made as a whole: its output embeddings take part in the loss
    (:func:`~ensdistill.functional.linear_distillation_loss`), where that gives the model's own logits. Then
    ``outputs.logits`` holds the sum of the losses. Batches without a uid, those of an evaluation, have the
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
    ValueError
        Another vocabulary or tokenizer than the cache's; names both.

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
        self.classes = len(cache.classes)
        self.head: Any = model.get_output_embeddings()  # type: ignore[operator]
        columns = self.head.weight.shape[0]
        if columns < self.classes:
            raise ValueError(
                f"model: expected the cache's vocabulary, {self.classes} tokens; its output embeddings have "
                f"{columns}: the student has another tokenizer than the members"
            )
        if tokenizer is not None:
            _check_tokenizer(cache, tokenizer)
        self.model, self.kind = model, kind_of(model)
        plain = type(self.head).forward is nn.Linear.forward  # an adapter has more than the weight
        self.fused = plain and columns == self.classes and _probed(model, self.kind, self.head)
        self._batch: Mapping[str, Any] | None = None
        model.register_forward_pre_hook(self._take, with_kwargs=True)
        if self.fused:
            self._whole = self.head.forward
            self.head.forward = self._loss_or_logits

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``Trainer``: ``data_collator``, ``compute_loss_func`` and ``callbacks``."""
        return {
            "data_collator": self.collate,
            "compute_loss_func": self.loss,
            "callbacks": [SameTargets(self.cache)],
        }

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
        uids = np.array([one["uid"] for one in features], np.int64)
        counts = (labels != IGNORED).sum(1).numpy()
        stored = self.cache.lengths(uids)
        if (wrong := np.flatnonzero(counts != stored)).size:
            at = int(wrong[0])
            raise ValueError(
                f"features: expected {stored[at]} tokens to predict in the sequence of uid {uids[at]}, as in "
                f"the cache; got {counts[at]}: it is truncated, or its labels are others than the cache's"
            )
        return {**batch, KEY: {"labels": batch["labels"], **_tensors(self.cache.gather(uids))}}

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The mean loss over the tokens of the whole (accumulated) batch."""
        batch, self._batch = self._batch, None
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        if batch is None:
            chosen, own = self._counted(labels)
            rows = logits[:, : chosen.shape[1]][chosen].float()
            found = nn.functional.cross_entropy(rows, own, reduction="sum")
        elif self.fused:
            found = logits.flatten()[0]  # some models add a bias to each class, which the probe found to be 0
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
        """In place of the head's logits: the sum of the losses, [N, L, 1], where targets are at hand."""
        if self._batch is None:
            whole: Tensor = self._whole(hidden)
            return whole
        chosen, own = self._counted(self._batch["labels"])
        found = linear_distillation_loss(
            hidden[:, : chosen.shape[1]][chosen],
            self.head.weight,
            self._targets(self._batch),
            own,
            bias=self.head.bias,
            settings=self.settings,
        )
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
        return TopK(batch["ids"], batch["log_probs"], batch["tail_log_mass"], temperature, self.classes)


class SameTargets(TrainerCallback):
    """Refuses to resume a training with another cache than it began with.

    Parameters
    ----------
    cache : TargetCache
    """

    def __init__(self, cache: TargetCache) -> None:
        self.own = {"fingerprint": cache.manifest["fingerprint"], "codec": cache.manifest["codec"]}

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
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
    return {name: part for name, part in vars(targets).items() if isinstance(part, Tensor)}


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
    """Whether the model's logits are its output embeddings' outputs, without a soft cap or a scale."""
    training = model.training
    try:
        model.eval()
        return head_is_all(model, probe_inputs(model, kind, head.weight.device, len(head.weight)))
    finally:
        model.train(training)
