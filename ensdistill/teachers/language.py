"""What a Hugging Face language model predicts at a position, and its output embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensdistill.data.tokens import IGNORED, Kind

PROBED = 64  # positions that compare the output embeddings with the model itself


def output_columns(argument: str, model: Any) -> int:
    """The number of a language model's logits.

    Raises
    ------
    TypeError
        The model has no output embeddings; names the argument.
    """
    find = getattr(model, "get_output_embeddings", None)
    if (head := None if find is None else find()) is None:
        raise TypeError(
            f"{argument}: expected a language model of transformers, with output embeddings; got "
            f"{type(model).__name__}: classifiers are members of ensdistill.Ensemble"
        )
    # The weight of a quantised layer may be packed, or a function.
    return int(getattr(head, "out_features", None) or head.weight.shape[0])


def check_sequences(model: Any, name: str, vocabulary: int, batch: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError for a token that the vocabulary has not, or a sequence longer than a model reads."""
    largest = max(int(np.max(batch[part])) for part in ("input_ids", "labels") if part in batch)
    if largest >= vocabulary:
        raise ValueError(
            f"sequences: expected ids of the models' vocabulary of {vocabulary}; got {largest}: they are of "
            "another tokenizer"
        )
    places = getattr(model.config, "max_position_embeddings", None)
    longest = max(int(np.max(batch[part])) for part in ("size", "label_size") if part in batch)
    if isinstance(places, int) and longest > places > 0:
        raise ValueError(
            f"sequences: expected at most {places} tokens, as {name} has positions; got {longest}: divide "
            "the longer ones"
        )


def kind_of(model: Any) -> Kind:
    """Whether a model predicts the next token, masked ones, or a decoder's.

    Parameters
    ----------
    model : PreTrainedModel
        Possibly with PEFT adapters.
    """
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(own.config, "is_encoder_decoder", False):
        return "seq2seq"
    return "masked" if type(own).__name__.endswith("ForMaskedLM") else "causal"


def model_inputs(model: Any, kind: Kind, batch: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The arguments of a model for rows of :class:`~ensdistill.data.tokens.TokenSequences`."""
    longest = int(batch["size"].max())
    ids = torch.from_numpy(batch["input_ids"][:, :longest].astype(np.int64))
    mask = torch.arange(longest) < torch.from_numpy(batch["size"].astype(np.int64))[:, None]
    given = {"input_ids": ids, "attention_mask": mask.long()}
    if kind == "seq2seq":
        sizes = torch.from_numpy(batch["label_size"].astype(np.int64))
        labels = torch.from_numpy(batch["labels"][:, : int(sizes.max())].astype(np.int64))
        labels[torch.arange(labels.shape[1]) >= sizes[:, None]] = IGNORED
        given["decoder_input_ids"] = decoder_inputs(model, labels)
    return given


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """The labels [N, L] behind the token with which the model's decoder begins; -100 is padding."""
    found: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
    return found


def probe_inputs(model: Any, kind: Kind, device: torch.device, vocabulary: int) -> dict[str, Tensor]:
    """A sequence that compares the output embeddings with the model itself."""
    ids = torch.arange(PROBED, device=device)[None] % vocabulary
    given = {"input_ids": ids}
    return given if kind != "seq2seq" else {**given, "decoder_input_ids": decoder_inputs(model, ids)}


def head_is_all(model: Any, given: Mapping[str, Tensor]) -> bool:
    """Whether a model's logits are its output embeddings' outputs, without a soft cap or a scale.

    Only some positions of the first sequence are computed. The model has to be in eval mode.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    seen: list[tuple[Tensor, Tensor]] = []
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    try:
        with torch.no_grad():
            found = model(**{name: part[:1, :PROBED] for name, part in given.items()}).logits
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0][0].shape[:-1] != found.shape[:-1]:
        return False
    return seen[0][1].shape == found.shape and torch.equal(seen[0][1], found)


@contextmanager
def without_head(model: Any) -> Iterator[list[Tensor]]:
    """While it lasts, the output embeddings keep their inputs in the list, and make no logits."""
    head, seen = model.get_output_embeddings(), list[Tensor]()
    replaced = vars(head).get("forward")

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden.new_zeros(1, 1, 1)

    head.forward = keep
    try:
        yield seen
    finally:
        del head.forward
        if replaced is not None:
            head.forward = replaced
