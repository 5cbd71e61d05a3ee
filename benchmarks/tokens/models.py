"""Texts, teachers and a student: small GPTs that learn this repository's own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.data.tokens import TokenSequences
from ensdistill.teachers.tokens import LanguageEnsemble
from examples import tokens as example

MEMBERS = 3
BATCH = 12  # sequences of a step
LARGE = (32_768, 151_936)  # vocabularies whose models have random weights
SPREAD = 8.0  # of these weights: their predictions have about the entropy of real ones


def texts(root: Path) -> list[str]:
    """The paragraphs of the repository's pages and sources, once each."""
    folders = (root / name for name in ("docs", "ensdistill", "examples", "benchmarks", "tests"))
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in (".md", ".py"))
    parts = [part for file in files for part in file.read_text(encoding="utf-8").split("\n\n")]
    return list(dict.fromkeys(part for part in parts if len(part) > 20))


def train(model: Any, sequences: TokenSequences, steps: int, seed: int) -> Any:
    """A model after so many steps on the texts alone."""
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = generator.integers(0, len(sequences), BATCH)
        ids = torch.from_numpy(sequences.ids[chosen].astype(np.int64))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def teachers(sequences: TokenSequences, steps: int) -> list[Any]:
    return [train(example.gpt(96, 3, k), sequences, steps, k) for k in range(MEMBERS)]


def student() -> Any:
    return example.gpt(32, 2, 100)


def synthetic(vocabulary: int, count: int) -> tuple[LanguageEnsemble, TokenSequences]:
    """Members of a large vocabulary with random weights, and random sequences for them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    members = []
    for k in range(MEMBERS):
        torch.manual_seed(k)
        sizes = {"n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": example.LENGTH}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **sizes))
        model.get_output_embeddings().weight.data *= SPREAD
        members.append(model.eval())
    ids = np.random.default_rng(0).integers(0, vocabulary, (count, example.LENGTH))
    return LanguageEnsemble(members), TokenSequences([{"input_ids": one} for one in ids], vocabulary)
