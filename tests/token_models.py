"""Tiny language models with random weights, and sequences for them."""

import numpy as np
import pytest
import torch

from ensdistill.cache import cache_targets
from ensdistill.data.tokens import TokenSequences
from ensdistill.teachers.tokens import LanguageEnsemble

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


def cached(sequences, path):
    """The targets of two models."""
    ensemble = LanguageEnsemble([llama(1), llama(2)])
    options = {"codec": "topk5-20", "mixture_at": 2.0, "lengths": sequences.lengths}
    return cache_targets(ensemble, sequences.rows, path, **options)


def whole(ensemble, inputs):
    """The parts of an ensemble's predictions together; a part is valid until the next one."""
    return torch.cat([part.clone() for part in ensemble.predict_parts(inputs)], 1)


def bert(seed, hidden=16):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=C,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForMaskedLM(config)


def t5(seed, hidden=16):
    """Scales what it gives its output embeddings, which are those of its inputs."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=C,
        d_model=hidden,
        d_kv=8,
        d_ff=2 * hidden,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def bart(seed, hidden=16):
    """Adds a bias, which is 0, to its logits."""
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=C,
        d_model=hidden,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=2 * hidden,
        decoder_ffn_dim=2 * hidden,
        max_position_embeddings=64,
        dropout=0.0,
    )
    return transformers.BartForConditionalGeneration(config)


def masked_texts(count=8, seed=0):
    """A quarter of the tokens is replaced by the token 3."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = generator.integers(4, C, generator.integers(4, 20))
        hidden = generator.random(len(ids)) < 0.25
        hidden[0] = True
        labels = np.where(hidden, ids, -100)
        found.append({"input_ids": np.where(hidden, 3, ids).tolist(), "labels": labels.tolist()})
    return TokenSequences(found, C, kind="masked")


def pairs(count=8, seed=0):
    """Sources and targets of other lengths, the targets with padding."""
    generator = np.random.default_rng(seed)
    found = []
    for i in range(count):
        ids, answer = (generator.integers(4, C, generator.integers(3, 14)).tolist() for _ in range(2))
        found.append({"input_ids": ids, "labels": answer + [-100] * (i % 3)})
    return TokenSequences(found, C, kind="seq2seq")


def own_logits(model, sequences, place):
    """The logits [M, C] and labels [M] of a model for one sequence alone, at the positions that count."""
    one, counted = sequences[place], torch.from_numpy(sequences.counted[place])
    given = {"input_ids": torch.tensor([one["input_ids"]])}
    labels = torch.tensor(one["labels"])
    if sequences.kind == "seq2seq":
        whole_labels = torch.tensor([one["decoder_labels"]])
        found = model(**given, labels=whole_labels).logits[0]
    else:
        found = model(**given).logits[0]
    if sequences.kind == "causal":
        found, labels = found[:-1], labels[1:]
    counted = counted[: len(found)]
    return found[counted], labels[counted]


def trainer(folder, model, cache, sequences, **more):
    """A ``Trainer`` of six small steps whose student learns from the cache at its temperature."""
    arguments = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "remove_unused_columns": False,
        "report_to": [],
        "save_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **more,
    }
    from ensdistill.hf import CachedDistillation

    distil = CachedDistillation(model, cache, temperature=cache.temperature)
    args = transformers.TrainingArguments(**arguments)
    return transformers.Trainer(model, args, **distil.arguments, train_dataset=sequences)
