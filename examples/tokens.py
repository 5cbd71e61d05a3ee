"""Three small language models become one of a quarter of their size, on descriptions of Debian's packages.

    python -m examples.tokens [--seeds 1] [--steps 1500] [--share 1.0] [--out runs/tokens]

Trains a BPE tokenizer of 8 192 tokens and three GPTs, stores their next-token targets once, and trains the
small one by three losses: on the texts alone (direct), from the best teacher, and from all. It prints the
loss on held-out texts, in nats a token, after about ten minutes on two cores. With --share 0.3 students learn
only where the teachers are least sure. Longer descriptions come with
`apt-get update -o Acquire::Languages=en`.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from ensdistill import cache_targets
from ensdistill.data.tokens import TokenSequences
from ensdistill.hf import CachedDistillation
from ensdistill.teachers.token_scores import token_scores, top_positions
from ensdistill.teachers.tokens import LanguageEnsemble
from examples.make_packages import listed

LENGTH = 64  # tokens of a sequence: descriptions follow each other, each with an end
BATCH = 12  # sequences
JUDGED = 1000  # held-out sequences, at most
VOCABULARY = 8192
END = "<end>"


def keep_memory() -> None:
    """Keep freed blocks for the next step: glibc gives those of logits back, and the system's zeros for new
    ones took a third of the training's time."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 1 << 28)  # M_MMAP_THRESHOLD


def corpus() -> list[str]:
    """The descriptions, once each, in the order of their packages' names."""
    found = {}
    for fields in listed():
        found[fields["Package"]] = fields.get("Description-en") or fields.get("Description") or ""
    return list(dict.fromkeys(text for _, text in sorted(found.items()) if text))


def packed(texts: list[str]) -> tuple[TokenSequences, TokenSequences]:
    """Sequences to learn from, and a tenth of the texts held out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    order = np.random.default_rng(0).permutation(len(texts))
    held = set(order[: len(texts) // 10].tolist())
    parts: dict[bool, list[int]] = {True: [], False: []}
    tokenizer.train_from_iterator((text for i, text in enumerate(texts) if i not in held), trainer)
    for i, one in enumerate(tokenizer.encode_batch(texts)):
        parts[i in held] += [*one.ids, 0]
    whole = [
        [{"input_ids": ids[i : i + LENGTH]} for i in range(0, len(ids) - LENGTH, LENGTH)]
        for ids in (parts[False], parts[True])
    ]
    learned, judged = (TokenSequences(one, VOCABULARY) for one in whole)
    return learned, judged


def gpt(width: int, layers: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": LENGTH}
    nothing = {"bos_token_id": 0, "eos_token_id": 0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **nothing))


def train(model: Any, sequences: TokenSequences, steps: int, out: Path, seed: int, **more: Any) -> Any:
    arguments = TrainingArguments(
        str(out),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.01,
        seed=seed,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_steps=max(1, steps // 4),
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    Trainer(model, arguments, **more, train_dataset=sequences).train()
    return model.eval()


def plain(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of sequences of one length, without targets."""
    return {name: torch.tensor([one[name] for one in features]) for name in ("input_ids", "labels")}


def loss(members: list[Any], sequences: TokenSequences) -> float:
    """Nats a token of the members' mean probabilities."""
    return float(token_scores(LanguageEnsemble(members, batch_size=32), sequences, by="loss").mean())


def sampled(sequences: TokenSequences, count: int, seed: int) -> TokenSequences:
    """So many of the sequences, or all."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sequences))[:count])
    return TokenSequences([{"input_ids": sequences[i]["input_ids"]} for i in chosen.tolist()], VOCABULARY)


def small(seed: int) -> GPT2LMHeadModel:
    """A student."""
    return gpt(32, 2, 100 + seed)


def taught(seed: int, learned: TokenSequences, members: list[Any], options: argparse.Namespace) -> Any:
    """A student of some members, or of the texts alone where there are none."""
    student, out = small(seed), options.out / "student"
    if not members:
        return train(student, learned, options.steps, out, seed, data_collator=plain)
    ensemble = LanguageEnsemble(members)
    texts = learned if options.share == 1 else top_positions(ensemble, learned, share=options.share)
    cache = cache_targets(  # the first seed stores the predictions, others find them
        ensemble,
        texts.rows,
        options.out / f"targets-of-{len(members)}",
        lengths=texts.lengths,
        codec=options.codec,
        mixture_at=1.0,
        batch_size=64,
        overwrite=seed == 0,
    )
    print(f"  {cache.layout.bytes} bytes a token ({options.codec})", flush=True)
    distil = CachedDistillation(student, cache, alpha=options.alpha)
    return train(student, texts, options.steps, out, seed, **distil.arguments)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1, help="of students; they have the same teachers")
    parser.add_argument("--steps", type=int, default=1500, help="of each teacher; students have as many")
    parser.add_argument("--sequences", type=int, default=8_000, help="that models learn from, at most")
    parser.add_argument("--share", type=float, default=1.0, help="of a sequence's positions, by entropy")
    # Much of these teachers' mass is outside of 50 tokens, so unbiased draws teach more: docs/tokens.md.
    parser.add_argument("--codec", default="draws-50")
    parser.add_argument("--alpha", type=float, default=1.0, help="share of the targets; labels have the rest")
    parser.add_argument("--out", type=Path, default=Path("runs/tokens"))
    options = parser.parse_args(arguments)
    keep_memory()
    learned, judged = packed(corpus())
    learned, judged = sampled(learned, options.sequences, 0), sampled(judged, JUDGED, 0)
    print(f"{len(learned):,} sequences of {LENGTH} tokens, {len(judged):,} held out", flush=True)
    teachers = [
        train(gpt(96, 3, k), learned, options.steps, options.out / "teacher", k, data_collator=plain)
        for k in range(3)
    ]
    losses = [loss([one], judged) for one in teachers]
    best, ensemble = teachers[int(np.argmin(losses))], loss(teachers, judged)
    sizes = [sum(p.numel() for p in one.parameters()) for one in (best, small(0))]
    print(f"{sizes[0]:,} parameters a teacher, {sizes[1]:,} the student", flush=True)
    for seed in range(options.seeds):
        ways = {"direct": [], "best teacher's student": [best], "ensemble's student": teachers}
        found = {name: loss([taught(seed, learned, own, options)], judged) for name, own in ways.items()}
        found |= {f"teacher {k + 1}": one for k, one in enumerate(losses)} | {"ensemble": ensemble}
        print(f"seed {seed}:")
        for name, value in found.items():
            kept = (found["direct"] - value) / (found["direct"] - ensemble)
            print(f"  {name:24} {value:.4f}   {100 * kept:5.0f} % of the gain", flush=True)


if __name__ == "__main__":
    main()
