"""Conversations as token ids, by a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ASSISTANT = "assistant"
IGNORED = -100


def conversation(place: int, messages: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """``input_ids`` and ``labels`` of a conversation; labels of -100 except those of the assistant's tokens.

    Parameters
    ----------
    place : int
        Of the conversation, for errors.
    messages : sequence of dict
        With ``role`` and ``content``.
    tokenizer : tokenizer
        With a ``chat_template``.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ValueError(
            f"tokenizer: expected one with a chat template; {type(tokenizer).__name__} has none: set its "
            "chat_template to that of the members"
        )
    answers = [i for i, one in enumerate(messages) if one["role"] == ASSISTANT]
    if not answers:
        roles = [one["role"] for one in messages]
        raise ValueError(
            f"conversations: expected a message of the role {ASSISTANT}; conversation {place} has {roles}"
        )
    if isinstance(template, str) and "generation %}" in template.replace("-%}", "%}"):
        found = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, spoken = list(found["input_ids"]), list(map(bool, found["assistant_masks"]))
    else:
        ids = _ids(messages, tokenizer)
        spoken = [False] * len(ids)
        for i in answers:
            before, after = _ids(messages[:i], tokenizer, prompt=True), _ids(messages[: i + 1], tokenizer)
            if ids[: len(after)] != after or after[: len(before)] != before:
                raise ValueError(
                    f"conversations: expected a chat template that only appends; in conversation {place} the "
                    f"tokens before the end of message {i} depend on what follows: mark the assistant's "
                    "tokens by {% generation %} in the template, or divide the conversation"
                )
            spoken[len(before) : len(after)] = [True] * (len(after) - len(before))
    return {
        "input_ids": ids,
        "labels": [token if own else IGNORED for token, own in zip(ids, spoken, strict=True)],
    }


def _ids(messages: Sequence[Mapping[str, Any]], tokenizer: Any, *, prompt: bool = False) -> list[int]:
    if not messages and not prompt:
        return []
    found = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, add_generation_prompt=prompt
    )
    return list(found["input_ids"])
