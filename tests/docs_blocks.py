"""The code blocks of the pages, and the names that a page's fragments use without defining them."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ensdistill import Ensemble, Optimization, StudentTrainer, TargetCache, cache_targets
from ensdistill.data import Digits
from ensdistill.data.augmentation import ShiftImages
from ensdistill.data.transfer import Exchange, TransferSet
from ensdistill.models import MLP
from ensdistill.student import OnlineTeachers, Validation

ROOT = Path(__file__).parents[1]


def blocks(page, language):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(page, sources, names, **changed):
    """Execute the blocks one after the other, each text of ``changed`` in the place of its key."""
    for source in sources:
        for old, new in changed.items():
            source = source.replace(old, new)
        exec(compile(source, f"docs/{page}.md", "exec"), names)
    return names


class Encoded(nn.Module):
    """A student whose first layer has the name that the page's groups of parameters use."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, inputs):
        return self.head(torch.relu(self.encoder(inputs.flatten(1))))


def setting(folder):
    """What "Training a student" begins with: a tiny ensemble, its cache, and a student."""
    split = Digits(labelled=100, pool=0).split(seed=0)
    torch.manual_seed(0)
    ensemble = Ensemble.from_members([MLP(64, [8], 10), MLP(64, [8], 10)])
    rows = split.labelled
    classes = (Optimization, StudentTrainer, TargetCache, TransferSet, Exchange, OnlineTeachers, ShiftImages)
    return {
        "__name__": "docs",
        **{one.__name__: one for one in (*classes, Validation)},
        "cache_targets": cache_targets,
        "split": split,
        "ensemble": ensemble,
        "rows": rows,
        "cache": cache_targets(ensemble, rows, folder / "cache"),
        "factory": partial(MLP, 64, [8], 10),
        "optimization": Optimization(steps=64, batch_size=50, learning_rate=0.01),
        "trainer": StudentTrainer(Optimization(steps=64, batch_size=50, learning_rate=0.01)),
        "validation": split.test,
        "probabilities": np.asarray(ensemble.predict_proba(split.test.inputs)),
    }
