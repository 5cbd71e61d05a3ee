"""The pages on data, tasks and transfer sets: their Python runs, and their settings are read."""

from functools import partial

import numpy as np
import torch
import yaml
from docs_blocks import ROOT, blocks

from ensdistill import Ensemble, Optimization, StudentTrainer, cache_targets
from ensdistill.cli.classes import parse
from ensdistill.data import Digits
from ensdistill.data.transfer import Exchange, TransferSet
from ensdistill.job.config import CacheConfig, Config
from ensdistill.models import MLP
from ensdistill.student import OnlineTeachers


def test_the_example_runs():
    (code,) = blocks("data", "python")
    names = {}
    exec(compile(code, "docs/data.md", "exec"), names)
    assert names["logits"].shape == (300, 2)
    assert (names["logits"].argmax(1) == names["labels"]).mean() > 0.4


def test_ensembles_of_other_tasks_predict_as_the_page_shows():
    code, cached, _ = blocks("tasks", "python")
    names = {}
    exec(compile(code, "docs/tasks.md", "exec"), names)
    predicted = names["regressors"].predict(names["x"][:32])
    y, (low, high) = names["y"][names["test"]], (names["low"][:, 0], names["high"][:, 0])
    assert 0.8 < ((low <= y) & (y <= high)).mean() < 1
    assert (names["variance"] > 0).all()
    right = (names["p"] > 0.5) == names["labels"][names["test"]]
    assert (right.mean(0) > 0.65).all()
    exec(compile(cached, "docs/tasks.md", "exec"), names)
    assert np.allclose(names["predictions"], predicted, rtol=1e-5)
    assert names["target"].shape == (3, 32, 1)
    assert names["cache_of_labels"].task == "multilabel"


def test_a_csv_needs_few_lines(monkeypatch):
    monkeypatch.chdir(ROOT)
    (text,) = blocks("data", "yaml")
    assert len(text.strip().splitlines()) <= 12
    config = parse(Config, yaml.safe_load(text))
    split = config.split(0)
    assert split.classes == ("Adelie", "Chinstrap", "Gentoo")
    assert len(split.labelled) + len(split.test) == 344


def test_synthetic_rows_are_made_anew_as_the_page_shows(monkeypatch, tmp_path):
    (text,) = blocks("transfer", "yaml")
    settings = parse(CacheConfig, yaml.safe_load(text)["cache"])
    assert (settings.views, settings.transfer.synthetic) == (4, [Exchange(rows=80_000)])
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("transfer", "python")
    torch.manual_seed(0)
    factory = partial(MLP, inputs=64, hidden=[4], outputs=10)
    names = {
        "TransferSet": TransferSet,
        "Exchange": Exchange,
        "cache_targets": cache_targets,
        "OnlineTeachers": OnlineTeachers,
        "split": Digits(100, 0).split(0),
        "ensemble": Ensemble.from_members([factory()]),
        "trainer": StudentTrainer(Optimization(steps=32, batch_size=64)),
        "factory": factory,
    }
    exec(compile(code.replace("80_000", "80"), "docs/transfer.md", "exec"), names)
    assert names["cache"].views == 4
    assert names["trained"].cost.asked == 32 * 64
    assert "they predicted 2048 rows" in str(names["trained"].cost)
