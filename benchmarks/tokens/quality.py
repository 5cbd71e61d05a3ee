"""How much of three language models' gain a small one keeps, by the targets that it learns from.

Teachers, caches and students stand in a folder as soon as each is done, so that a stopped study goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.tokens.models import MEMBERS
from ensdistill.cache import TargetCache, cache_targets
from ensdistill.common.files import read_json, write_json
from ensdistill.common.fingerprint import digest
from ensdistill.data.tokens import TokenSequences
from ensdistill.hf import CachedDistillation
from ensdistill.report.bootstrap import interval, ratio_interval, resampled_means
from ensdistill.teachers.token_scores import token_scores
from ensdistill.teachers.tokens import LanguageEnsemble
from examples import tokens as example


@dataclass(frozen=True)
class Targets:
    """What a student learns from.

    Parameters
    ----------
    name : str
    members : {"none", "best", "all"}
    codec : str, optional
        Of the cache. Without one the members predict in each step, and the student learns from all classes.
    alpha : float
        The targets' share in the loss; the labels have the rest.
    """

    name: str
    members: str = "all"
    codec: str | None = None
    alpha: float = 1.0


TARGETS = (
    Targets("direct", "none"),
    Targets("best member's student, draws-50", "best", "draws-50"),
    Targets("ensemble's student, draws-50", codec="draws-50"),
    Targets("ensemble's student, topk5-50, labels .3", codec="topk5-50", alpha=0.7),
    Targets("ensemble's student, all classes"),
    Targets("ensemble's student, topk5-50", codec="topk5-50"),
)


class AllClasses:
    """The KL of members that predict in each step: the same targets as of a cache of all classes.

    Parameters
    ----------
    student : PreTrainedModel
        Its inputs are also the members'.
    members : sequence of PreTrainedModel
    """

    def __init__(self, student: nn.Module, members: Sequence[Any]) -> None:
        self.members = list(members)
        student.register_forward_pre_hook(self._keep_inputs, with_kwargs=True)

    def _keep_inputs(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.ids = kwargs["input_ids"]

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The mean over the positions that predict a token of the sequence."""
        with torch.no_grad():
            log_p = [one(input_ids=self.ids).logits[:, :-1].log_softmax(-1) for one in self.members]
            log_mean = torch.logsumexp(torch.stack(log_p), 0) - np.log(len(log_p))
        log_q = outputs["logits"][:, :-1].log_softmax(-1)
        return F.kl_div(log_q.flatten(0, 1), log_mean.flatten(0, 1), reduction="batchmean", log_target=True)


class Study:
    """Models in a folder, each made once. :meth:`teach` comes first.

    Parameters
    ----------
    folder : Path
    texts : list of str
    steps, sequences, judged : int
        Steps of each model; sequences to learn from and held out.
    note : callable
        Called with a line after each model.

    Raises
    ------
    ValueError
        The folder has models of other texts or numbers.
    """

    def __init__(
        self,
        folder: Path,
        texts: list[str],
        steps: int,
        sequences: int,
        judged: int,
        note: Callable[[str], None],
    ) -> None:
        self.folder, self.steps, self.note = folder, steps, note
        learned, held = example.packed(texts)
        self.learned, self.held = example.sampled(learned, sequences, 0), example.sampled(held, judged, 0)
        self.settings = {
            "steps": steps,
            "sequences": len(self.learned),
            "held_out": len(self.held),
            "texts": digest([self.learned.ids, self.held.ids]),
        }
        before = read_json(folder / "settings.json")
        if before not in (None, self.settings):
            raise ValueError(
                f"{folder}: expected models of {self.settings}; got {before}: choose another folder, or "
                "remove it"
            )
        write_json(folder / "settings.json", self.settings)

    def teach(self) -> None:
        """Train the members that are not there."""
        self.members = [self._teacher(k) for k in range(MEMBERS)]
        self.losses = [self._judged(f"teacher-{k}", [one]) for k, one in enumerate(self.members)]
        self.ensemble = self._judged("ensemble", self.members)
        self.best = int(np.argmin([one.mean() for one in self.losses]))

    def student(self, targets: Targets, seed: int) -> dict[str, Any]:
        """The held-out losses [sequences], and the seconds of the training, of one seed's student."""
        path = self.folder / "students" / f"{digest(asdict(targets))[:12]}-{seed}.json"
        if (found := read_json(path)) is not None:
            return dict(found)
        begin = time.perf_counter()
        model = self._trained(targets, seed)
        seconds = time.perf_counter() - begin
        losses = by_sequence(LanguageEnsemble([model], batch_size=32), self.held)
        found = {**asdict(targets), "seed": seed, "seconds": seconds, "losses": losses.tolist()}
        write_json(path, found)
        self.note(f"  {targets.name}, seed {seed}: {losses.mean():.4f} ({seconds:.0f} s)")
        return found

    def cache(self, targets: Targets) -> TargetCache:
        """The targets' cache, written unless it is there."""
        assert targets.codec is not None
        return cache_targets(
            LanguageEnsemble(self._members(targets)),
            self.learned.rows,
            self.folder / f"{targets.members}-{targets.codec}",
            lengths=self.learned.lengths,
            codec=targets.codec,
            mixture_at=1.0,
            batch_size=64,
        )

    def _members(self, targets: Targets) -> list[Any]:
        return {"none": [], "best": [self.members[self.best]], "all": self.members}[targets.members]

    def _trained(self, targets: Targets, seed: int) -> Any:
        student = example.small(seed)
        more: dict[str, Any] = {"data_collator": example.plain}
        if targets.codec is not None:
            more = CachedDistillation(student, self.cache(targets), alpha=targets.alpha).arguments
        elif members := self._members(targets):
            more["compute_loss_func"] = AllClasses(student, members).loss
        return example.train(student, self.learned, self.steps, self.folder / "trainer", seed, **more)

    def _teacher(self, k: int) -> Any:
        from transformers import GPT2LMHeadModel

        path = self.folder / f"teacher-{k}"
        if not path.exists():
            begin = time.perf_counter()
            model = example.gpt(96, 3, k)
            out = self.folder / "trainer"
            example.train(model, self.learned, self.steps, out, k, data_collator=example.plain)
            shutil.rmtree(part := self.folder / "part", ignore_errors=True)
            model.save_pretrained(part)
            part.rename(path)
            self.note(f"  teacher {k + 1} of {MEMBERS} ({time.perf_counter() - begin:.0f} s)")
        return GPT2LMHeadModel.from_pretrained(path).eval()

    def _judged(self, name: str, members: list[Any]) -> np.ndarray:
        path = self.folder / f"{name}.json"
        if (found := read_json(path)) is None:
            found = by_sequence(LanguageEnsemble(members, batch_size=32), self.held).tolist()
            write_json(path, found)
        return np.array(found)


def by_sequence(ensemble: LanguageEnsemble, sequences: TokenSequences) -> np.ndarray:
    """The mean loss of each sequence's tokens, float64 [N]."""
    scores = token_scores(ensemble, sequences, by="loss").astype(np.float64)
    sums: np.ndarray = np.add.reduceat(scores, np.cumsum(sequences.lengths) - sequences.lengths)
    return sums / sequences.lengths


def compared(
    study: Study, students: Sequence[dict[str, Any]], chosen: Sequence[Targets]
) -> list[dict[str, Any]]:
    """A row for each model: its loss, and the share of the gain that it keeps, with intervals of 95 %.

    The gain is that of the ensemble over the direct student. Intervals are those of a bootstrap over the
    students' seeds and held-out sequences, which all models share; teachers are the same for all seeds.

    Parameters
    ----------
    study : Study
    students : sequence of dict
        As :meth:`Study.student` returns them, of each of the targets and seeds.
    chosen : sequence of Targets
        The first are those of the direct student.
    """
    seeds = sorted({one["seed"] for one in students})
    fixed = {"best member": study.losses[study.best], "ensemble": study.ensemble}
    names = [one.name for one in chosen]
    losses = {(one["name"], one["seed"]): np.array(one["losses"]) for one in students}
    values = [np.stack([*(losses[name, seed] for name in names), *fixed.values()], 1) for seed in seeds]
    draws, means = resampled_means(values), np.array([one.mean(0) for one in values])
    gain, gains = draws[:, 0] - draws[:, -1], means[:, 0] - means[:, -1]
    rows = []
    for column, name in enumerate([*names, *fixed]):
        kept = (means[:, 0] - means[:, column]).sum() / gains.sum()
        row: dict[str, Any] = {"model": name, "loss": float(means[:, column].mean())}
        row |= {"loss_interval": list(interval(draws[:, column])), "kept": float(kept)}
        bounds = ratio_interval(draws[:, 0] - draws[:, column], gain)
        row["kept_interval"] = None if bounds is None else list(bounds)
        row["loss_by_seed"] = means[:, column].tolist()
        rows.append(row)
    for row, targets in zip(rows, chosen, strict=False):
        own = [one["seconds"] for one in students if one["name"] == targets.name]
        row |= {"codec": targets.codec, "alpha": targets.alpha, "seconds": float(np.median(own))}
        if targets.codec is not None:
            cache = study.cache(targets)
            row |= {"bytes_per_token": cache.layout.bytes, "kl": cache.manifest["statistics"]["kl"]["mean"]}
    return rows
