"""A job's student with an optimiser, a schedule, groups, accumulation and first weights from its settings."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from job_helpers import fingerprints, job_file, succeed, write_job
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from ensdistill.cache import TargetCache
from ensdistill.cli.settings import load_config
from ensdistill.common.describe import describe
from ensdistill.common.fingerprint import digest
from ensdistill.common.optimization import Optimization
from ensdistill.common.optimizers import ParameterGroup, StudentOptimization
from ensdistill.job.check import check_job
from ensdistill.job.run_folder import RunFolder
from ensdistill.job.student_config import StudentConfig
from ensdistill.models import MLP
from ensdistill.student import StudentTrainer
from ensdistill.teachers.members import load_member

SMALL = "distill.students.small"
OPTIMIZATION = {
    "steps": 30,
    "batch_size": 32,
    "learning_rate": 0.1,
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}},
    "schedule": {"class_path": "torch.optim.lr_scheduler.MultiStepLR", "init_args": {"milestones": [20, 25]}},
    "groups": [{"parameters": "*bias", "weight_decay": 0.0, "learning_rate": 2}],
    "clip_norm": 0.5,
    "accumulate": 4,
}


class EndsWithAParameter(nn.Module):
    """A network without a linear layer."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))

    def forward(self, x):
        return x.flatten(1) @ self.weight


def config_of(folder, **change):
    return load_config(["--config", str(write_job(folder, {f"{SMALL}.{k}": v for k, v in change.items()}))])


def test_yaml_makes_the_optimization_that_python_makes(tmp_path):
    made = config_of(tmp_path, optimization=OPTIMIZATION).distill.students["small"].optimization
    expected = StudentOptimization(
        steps=30,
        batch_size=32,
        learning_rate=0.1,
        optimizer=partial(SGD, momentum=0.9),
        schedule=partial(MultiStepLR, milestones=[20, 25]),
        groups=[ParameterGroup("*bias", 2.0, 0.0)],
        clip_norm=0.5,
        accumulate=4,
    )
    assert digest(made) == digest(expected)
    assert made.optimizer.keywords == {"momentum": 0.9}
    model = MLP(64, [8], 10)
    assert made.build_for(model)[0].defaults == expected.build_for(model)[0].defaults


def test_a_student_without_extras_has_the_digests_of_a_plain_optimization():
    plain, own = Optimization(steps=30, weight_decay=0.02, schedule="cosine"), StudentOptimization(steps=30)
    assert describe(own) == describe(plain)
    assert digest(own) == digest(plain)
    assert own == plain
    assert hash(own) == hash(plain)
    changed = StudentOptimization(steps=30, schedule="cosine", accumulate=2)
    assert len({digest(plain), digest(changed)}) == 2
    assert describe(changed) != describe(plain)
    assert changed != plain
    assert StudentConfig(MLP, plain).optimization == plain
    assert StudentConfig(MLP, plain).trained_by == []


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"optimization": {**OPTIMIZATION, "accumulate": 5}},
            r"accumulate: expected a divisor .*choose 4 or 8",
        ),
        (
            {"optimization": {**OPTIMIZATION, "groups": [{"parameters": "head.*"}]}},
            r"groups: 'head\.\*' matches no",
        ),
        (
            {"method": {"kd": 1, "hydra": 1}, "model": f"{__name__}.EndsWithAParameter"},
            "model: expected a network that ends with an nn.Linear",
        ),
        ({"recompute_modules": ["blocks.*"]}, r"recompute_modules: 'blocks\.\*' matches no module"),
        (
            {"weights": "WEIGHTS"},
            r"weights: .*3\.weight is float32 \[9, 8\], the student's float32 \[10, 8\]",
        ),
    ],
    ids=["accumulate", "groups", "heads", "recompute", "weights"],
)
def test_a_job_refuses_them_before_it_begins(change, match, tmp_path):
    if "weights" in change:
        change = {"weights": str(tmp_path / "start.safetensors")}
        save_file(dict(MLP(64, [8], 9).state_dict()), change["weights"])
    with pytest.raises(ValueError, match=rf"{SMALL}\..*{match}"):
        check_job(RunFolder(config_of(tmp_path, **change)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": "none.safetensors"}, r"weights: expected a safetensors file; there is none at none"),
        ({"optimization": {"optimizer": "torch.nn.Linear"}}, r"torch\.nn\.Linear is no Optimizer"),
        (
            {"optimization": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}}},
            r"set optimization\.learning_rate",
        ),
        (
            {"optimization": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentun": 1}}}},
            "no such setting.*momentum",
        ),
        ({"compile": True, "recompute_modules": ["1"]}, "recompute_modules: not together with compile"),
    ],
    ids=["weights", "no optimizer", "lr", "misspelt", "both"],
)
def test_settings_that_are_wrong_by_themselves_are_refused(change, match, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){match}"):
        config_of(tmp_path, **change)


def test_members_do_not_have_these_settings(tmp_path):
    file = write_job(tmp_path, {"teachers.members.0.init_args.optimization.clip_norm": 1.0})
    with pytest.raises(ValueError, match=r"(?s)clip_norm.*no such setting"):
        load_config(["--config", str(file)])


def test_a_job_trains_the_student_and_its_baseline_by_them(copy, tmp_path):
    torch.manual_seed(3)
    start = tmp_path / "start.safetensors"
    save_file(dict(MLP(64, [8], 10).state_dict()), start)
    before = fingerprints(copy)
    change = {
        f"{SMALL}.optimization": OPTIMIZATION,
        f"{SMALL}.weights": str(start),
        f"{SMALL}.recompute_modules": ["1"],
    }
    file = write_job(copy.parents[1], change)
    assert file == job_file(copy)
    succeed("distill", file)
    after = fingerprints(copy)
    assert {name for name in after if after[name] != before[name]} == {
        "seed-0/direct/small",
        "seed-0/distill/small",
    }

    config, seed = load_config(["--config", str(file)]), copy / "seed-0"
    student, inputs = config.distill.students["small"], config.split(0).test.inputs[:50]
    trainer, threads = StudentTrainer(student.optimization), torch.get_num_threads()
    torch.set_num_threads(1)
    cache, rows = TargetCache.open(seed / "cache" / "targets"), RunFolder(config).transfer(0)
    again = trainer.distill(student.model, rows, cache, seed=0, weights=load_file(start))
    torch.set_num_threads(threads)
    kept = load_member(seed / "distill" / "small" / "student")
    with torch.no_grad():
        np.testing.assert_array_equal(
            kept.predict_logits(inputs), again.module(torch.from_numpy(inputs)).numpy()
        )
    # New weights, or another step, are another unit.
    save_file({name: value + 1 for name, value in load_file(start).items()}, start)
    run = RunFolder(load_config(["--config", str(file)]))
    redone = {str(unit) for unit in run.units("report") if not run.is_finished(unit)}
    assert redone == {"seed 0 · distill small", "seed 0 · direct small"}
