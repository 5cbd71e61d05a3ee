"""Which students can be divided over processes, decided by one process; tests/crash divides them."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill import Optimization, Rows, StudentTrainer
from ensdistill.common.divided import check_shards
from ensdistill.models import MLP
from ensdistill.student.module_patterns import chosen
from ensdistill.student.sharding import copied

ROWS = Rows(
    np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), np.arange(40), np.arange(40) % 3
)


class Blocks(nn.Module):
    def __init__(self, tied=False, scale=False):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)
        self.last = nn.Linear(4, 4, bias=False)
        if tied:
            self.last.weight = self.blocks[1].weight
        self.scale = nn.Parameter(torch.ones(() if scale else 1))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x)) * self.scale


def trained(factory, **settings):
    trainer = StudentTrainer(Optimization(steps=3, batch_size=8), **settings)
    return trainer.direct(factory, ROWS, classes=3)


@pytest.mark.parametrize("shard", [True, "1", ["blocks.*"]])
def test_one_process_trains_the_same_bits(shard):
    factory = Blocks if "blocks.*" in np.atleast_1d(shard) else partial(MLP, 4, [8], 3)
    divided, plain = trained(factory, shard=shard).module, trained(factory).module
    for name, value in plain.state_dict().items():
        assert torch.equal(divided.state_dict()[name], value), name


@pytest.mark.parametrize("shard", [3, [""], None])
def test_what_is_no_pattern_is_refused(shard):
    with pytest.raises(TypeError, match=r"^shard: expected patterns of module names"):
        StudentTrainer(shard=shard)


def test_no_pattern_is_neither_true_nor_false():
    with pytest.raises(ValueError, match=r"^shard: expected True, False, or patterns .*; got \[\]"):
        StudentTrainer(shard=[])


@pytest.mark.parametrize(
    ("shard", "settings", "message"),
    [
        ("layers.*", {}, "shard: 'layers.*' matches no module of Blocks; it has blocks, blocks.0"),
        ("blocks", {}, "shard: blocks (ModuleList) is never called, so nothing would gather its parameters; "
         "choose the modules in it: 'blocks.*'"),
        (True, {"scale": True}, "shard: the parameter scale is a number without a dimension"),
        ("blocks.*", {"tied": True}, "shard: blocks.1.weight and last.weight are one parameter, but blocks.1 and "
         "the model are gathered at different times"),
    ],
)  # fmt: skip
def test_students_that_cannot_be_divided_are_refused_by_one_process_too(shard, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        trained(partial(Blocks, **settings), shard=shard)


def test_a_parameter_of_two_modules_that_are_gathered_together_is_no_error():
    module = trained(partial(Blocks, tied=True), shard="head").module
    assert module.last.weight is module.blocks[1].weight


def test_a_copy_has_other_numbers_and_the_same_ties():
    model = Blocks(tied=True)
    model.last.weight.note = "kept"
    made = copied(model, torch.zeros_like)
    assert made.last.weight is made.blocks[1].weight is not model.last.weight
    assert made.last.weight.note == "kept"
    assert list(made.state_dict()) == list(model.state_dict())
    assert all((p == 0).all() for p in made.parameters())
    assert not all((p == 0).all() for p in model.parameters())


def test_an_outer_module_is_chosen_before_those_inside_of_it():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert list(chosen("shard", model, ["*"])) == ["0", "1"]


def test_shards_that_are_missing_or_cut_are_named(tmp_path):
    folder = tmp_path / "c.shards-000000032"
    folder.mkdir()
    (folder / "shard-1.safetensors").write_bytes(b"12345")
    record = {"folder": folder.name, "files": {"shard-1.safetensors": 5}}
    assert check_shards(tmp_path / "c", record) == folder
    (folder / "shard-1.safetensors").write_bytes(b"123")
    with pytest.raises(
        ValueError, match=r"^checkpoint: .*c needs .*shard-1.safetensors of 5 bytes, and it has 3"
    ):
        check_shards(tmp_path / "c", record)
    (folder / "shard-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"and there is none; copy checkpoints with their folder of shards"):
        check_shards(tmp_path / "c", record)
