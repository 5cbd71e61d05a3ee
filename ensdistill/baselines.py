"""*Direct*: the student's architecture on hard labels, made as strong as the labelled rows allow, because every claim is measured
against it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensdistill.calibration import fit_temperature, log_mixture, negative_log_likelihood
from ensdistill.config import DistillConfig, StudentConfig
from ensdistill.data import Rows, Split, derive_seed
from ensdistill.describe import describe
from ensdistill.files import read_json, write_json
from ensdistill.fingerprint import digest
from ensdistill.stages import Progress, keep
from ensdistill.student import StudentTrainer
from ensdistill.training import train_stack


def train_baselines(
    student: StudentConfig, settings: DistillConfig, split: Split, seed: int, folder: Path, report: Progress
) -> dict[str, Any]:
    """Train *direct* and *direct with label smoothing*, and fit the temperature of *direct with temperature scaling*.

    With and without the augmentation is decided by the NLL on held-out folds of the labelled rows; the temperature is fitted on
    the same predictions. The test rows have no say.

    Returns
    -------
    dict
        ``augmented`` (bool), ``temperature``, and ``held_out_nll`` with and without augmentation.
    """
    inputs = digest(
        [
            [describe(student.model), describe(student.baseline), describe(settings.augment)],
            [settings.folds, settings.label_smoothing, settings.mixed_precision],
            [split.labelled, split.test.inputs, seed, torch.__version__, torch.get_num_threads()],
        ]
    )
    choice = read_json(folder / "choice.json")
    if not isinstance(choice, dict) or choice.get("inputs") != inputs:
        variants = ["plain"] if settings.augment is None else ["plain", "augmented"]
        held_out = _held_out(student, settings, split, variants, seed, folder / "folds", partial(report, "folds"))
        labels = split.labelled.labels
        losses = {name: negative_log_likelihood(log_mixture(z[None], np.ones(1)), labels) for name, z in held_out.items()}
        best = min(losses, key=lambda name: losses[name])
        choice = {"inputs": inputs, "best": best, "temperature": fit_temperature(held_out[best], labels), "held_out_nll": losses}
        write_json(folder / "choice.json", choice)
        shutil.rmtree(folder / "folds", ignore_errors=True)
    augmented = choice["best"] == "augmented"
    for kind, smoothing in (("direct", 0.0), ("direct_label_smoothing", settings.label_smoothing)):
        trainer = StudentTrainer(replace(student.baseline, label_smoothing=smoothing), mixed_precision=settings.mixed_precision)
        train = partial(
            trainer.direct,
            student.model,
            split.labelled,
            classes=len(split.classes),
            seed=seed,
            augment=settings.augment if augmented else None,
            watch=split.test.inputs,
            progress=partial(report, kind.replace("_", " ")),
        )
        keep(student, folder / kind, split, train, inputs)
    return {"augmented": augmented, "temperature": choice["temperature"], "held_out_nll": choice["held_out_nll"]}


def _held_out(
    student: StudentConfig,
    settings: DistillConfig,
    split: Split,
    variants: list[str],
    seed: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """For each variant the logits [N, C] of the labelled rows by models that did not see them."""
    from sklearn.model_selection import StratifiedKFold

    rows: Rows = split.labelled
    splitter = StratifiedKFold(settings.folds, shuffle=True, random_state=derive_seed("direct folds", seed) % 2**32)
    parts = list(splitter.split(np.zeros(len(rows)), rows.labels))
    jobs = [(name, i) for name in variants for i in range(settings.folds)]
    # All folds of all variants as one stack: small models cost their steps' overhead, which a stack pays once.
    models = train_stack(
        student.model,
        rows.inputs,
        rows.labels,
        classes=len(split.classes),
        seeds=[derive_seed("direct fold", seed, i) for _, i in jobs],
        rows=[parts[i][0] for _, i in jobs],
        names=[f"direct, {name}, fold {i + 1}" for name, i in jobs],
        optimization=student.baseline,
        augment=settings.augment,
        augmented=[name == "augmented" for name, _ in jobs],
        checkpoint=folder,
        progress=progress,
    )
    logits = {name: np.zeros((len(rows), len(split.classes)), np.float32) for name in variants}
    for model, (name, i) in zip(models, jobs, strict=True):
        held = parts[i][1]
        with torch.no_grad():
            logits[name][held] = model(torch.from_numpy(rows.inputs[held])).float().numpy()
    return logits
