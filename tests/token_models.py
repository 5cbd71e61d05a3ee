"""Tiny language models with random weights, and sequences for them."""

import numpy as np
import pytest
import torch

from ensdistill.data.tokens import TokenSequences

transformers = pytest.importorskip("transformers")
C = 120


def llama(seed, hidden=16, vocabulary=C, scale=3.0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data *= scale
    return model


def gemma(seed):
    """With a soft cap of its logits."""
    torch.manual_seed(seed)
    config = transformers.Gemma2Config(
        vocab_size=C,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return transformers.Gemma2ForCausalLM(config)


def texts(count=12, seed=0, **more):
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        ids = generator.integers(0, C, generator.integers(4, 20)).tolist()
        prompt = {"labels": [-100] * 2 + ids[2:]} if i % 3 == 0 else {}
        found.append({"input_ids": ids, **prompt, **more})
    return TokenSequences(found, C)


def whole(ensemble, inputs):
    """The parts of an ensemble's predictions together; a part is valid until the next one."""
    return torch.cat([part.clone() for part in ensemble.predict_parts(inputs)], 1)
