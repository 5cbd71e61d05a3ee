"""Measures tokens cached in a second, bytes of a token, and each codec's loss by an independent computation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cache.stores import remove
from ensdistill.cache import TargetCache, cache_targets
from ensdistill.data.tokens import TokenSequences
from ensdistill.loss.targets import Counts, TopK
from ensdistill.teachers.tokens import LanguageEnsemble

CODECS = ("topk-50", "topk-128", "topk4-50", "topk5-50", "topk4-128", "topk5-128", "counts-12", "draws-12")
FEW = ("topk-50", "topk5-50", "counts-12", "draws-12")
AGREE = 1e-4  # nats by which the two computations of a mean KL may differ, beside a thousandth of it
BLOCK = 32  # sequences whose full targets exist at once


class WrongTargets(Exception):
    """A cache holds other targets than it certifies, or than its teachers predict."""


def written(
    ensemble: LanguageEnsemble, sequences: TokenSequences, codec: str, folder: Path
) -> tuple[TargetCache, float]:
    """The cache, and the seconds that it took."""
    begin = time.perf_counter()
    cache = cache_targets(
        ensemble,
        sequences.rows,
        folder,
        lengths=sequences.lengths,
        codec=codec,
        mixture_at=1.0,
        batch_size=64,
    )
    return cache, time.perf_counter() - begin


def rates(
    ensemble: LanguageEnsemble,
    sequences: TokenSequences,
    codecs: Sequence[str],
    rounds: int,
    folder: Path,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A row for each codec: tokens a second (the median of rounds, in which codecs take turns), and bytes."""
    seconds: dict[str, list[float]] = {codec: [] for codec in codecs}
    asking, size = [], {}
    tokens = int(sequences.lengths.sum())
    for _ in ensemble.predict_parts(sequences.rows.inputs[np.arange(1)]):
        pass  # compares each model's output embeddings with its logits, once
    for round_ in range(rounds):
        begin = time.perf_counter()
        for _ in ensemble.predict_parts(sequences.rows.inputs[np.arange(len(sequences))]):
            pass
        asking.append(time.perf_counter() - begin)
        for codec in codecs:
            cache, spent = written(ensemble, sequences, codec, folder / "rate")
            seconds[codec].append(spent)
            size[codec] = cache.layout.bytes
            remove(folder / "rate")
        note(f"  caching, {ensemble.vocabulary:,} tokens: round {round_ + 1} of {rounds}")
    return [
        {
            "vocabulary": ensemble.vocabulary,
            "members": len(ensemble.members),
            "codec": codec,
            "tokens_per_s": tokens / median(spent),
            "of_it_teachers": median(asking) / median(spent),
            "bytes_per_token": size[codec],
        }
        for codec, spent in seconds.items()
    ]


def losses(
    ensemble: LanguageEnsemble, sequences: TokenSequences, codecs: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
    """A row for each codec: the mean and largest KL to the full mixture, computed in doubles here.

    Of top-k targets KL(mixture ‖ stored), of draws KL(drawn shares ‖ mixture).

    Raises
    ------
    WrongTargets
        A cache's own mean differs.
    """
    found = []
    for codec in codecs:
        cache, _ = written(ensemble, sequences, codec, folder / "loss")
        parts = []
        for uids, log_p in mixtures(ensemble, sequences):
            stored = cache.gather(uids)
            if isinstance(stored, Counts):
                shares = torch.zeros_like(log_p).scatter_add_(-1, stored.ids.long(), stored.counts.double())
                shares /= shares.sum(-1, keepdim=True)
                parts.append((torch.special.xlogy(shares, shares) - shares * log_p.clamp(-1e30)).sum(-1))
            else:
                assert isinstance(stored, TopK)
                log_q = reconstructed(stored, log_p.shape[-1])
                parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
        kl = torch.cat(parts)
        certified = cache.manifest["statistics"]["kl"]["mean"]
        if abs(float(kl.mean()) - certified) > AGREE + 1e-3 * certified:
            raise WrongTargets(
                f"{codec}: the manifest has a mean KL of {certified:.6g} nats; another computation "
                f"{float(kl.mean()):.6g}"
            )
        found.append({"codec": codec, "kl_mean": float(kl.mean()), "kl_max": float(kl.max())})
        remove(folder / "loss")
    return found


def mixtures(ensemble: LanguageEnsemble, sequences: TokenSequences) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Uids of some sequences, and the members' mean log-probabilities, float64 [M, C], by whole models."""
    for start in range(0, len(sequences), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(sequences)))
        ids = torch.from_numpy(sequences.ids[rows].astype(np.int64))
        counted = torch.from_numpy(sequences.counted[rows])
        log_p: Tensor | None = None
        with torch.no_grad():
            for model in ensemble.models:
                own = model(input_ids=ids).logits[counted].double().log_softmax(-1)
                log_p = own if log_p is None else torch.logaddexp(log_p, own)
        assert log_p is not None
        yield sequences.uids[rows], log_p - np.log(len(ensemble.models))


def reconstructed(stored: TopK, classes: int) -> Tensor:
    """The stored rows' log-probabilities, float64 [M, C]: the mass of the rest is spread evenly."""
    tail = stored.tail_log_mass.double()[:, None] - np.log(classes - stored.ids.shape[-1])
    log_q = tail.expand(-1, classes).clone().scatter_(-1, stored.ids.long(), stored.log_probs.double())
    return log_q - torch.logsumexp(log_q, -1, keepdim=True)
