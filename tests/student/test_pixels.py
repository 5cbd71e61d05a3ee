"""Segmentation networks of one piece: what a user tries first, what it says, and what works."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill import Optimization, Rows, StudentTrainer, cache_targets
from ensdistill.functional import distillation_loss
from ensdistill.student.shared import HeadSet, distill_sets
from ensdistill.teachers.positions import PositionEnsemble

IMAGES = np.random.default_rng(0).normal(size=(16, 2, 6, 5)).astype(np.float32)
ROWS = Rows(IMAGES, np.arange(16), np.full(16, -100))


class Segmenter(nn.Module):
    """[N, 2, H, W] to logits [N, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(1)
    made = [Segmenter() for _ in range(2)]
    for one in made:
        with torch.no_grad():
            one.last.weight *= 5
    return made


@pytest.fixture(scope="module")
def cache(teachers, tmp_path_factory):
    ensemble = PositionEnsemble(teachers, ["sky", "road", "tree"])
    folder = tmp_path_factory.mktemp("pixels") / "targets"
    return cache_targets(ensemble, ROWS, folder, lengths=ensemble.lengths(ROWS), codec="fp32")


def test_a_network_of_one_piece_learns_every_pixel(teachers, cache):
    own = HeadSet(ROWS, cache, nn.Identity, class_dim=1, held_out=0.0)
    found = distill_sets(Segmenter, {"road": own}, Optimization(120, 8, 0.02))
    module = found.modules["road"].trunk
    assert isinstance(module, Segmenter)
    with torch.no_grad():
        x = torch.from_numpy(IMAGES)
        p = sum(one(x).double().softmax(1) for one in teachers) / 2
        q = module(x).double().softmax(1)
    assert found.reports["road"].kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-3)
    assert found.reports["road"].kl < 0.3 * found.losses["road"][0]
    with pytest.raises(ValueError, match=r"^name: road: expected a set with one target for each row"):
        found.member("road")


def test_a_loop_of_ones_own_has_the_loss_of_the_maps(teachers, cache):
    torch.manual_seed(2)
    student, x = Segmenter(), torch.from_numpy(IMAGES[[3, 1]])
    maps = student(x)
    stored = distillation_loss(maps.movedim(1, -1).flatten(0, -2), cache.gather(np.array([3, 1])))
    with torch.no_grad():
        outputs = torch.stack([one(x) for one in teachers])
    online = distillation_loss(maps, outputs, class_dim=1)
    torch.testing.assert_close(stored, online, rtol=1e-4, atol=1e-6)
    stored.backward()
    gradient = student.last.weight.grad.clone()
    student.zero_grad()
    distillation_loss(student(x), outputs, class_dim=1).backward()
    torch.testing.assert_close(gradient, student.last.weight.grad, rtol=1e-3, atol=1e-6)


def test_the_trainer_of_rows_leads_to_the_one_of_positions(cache):
    with pytest.raises(ValueError, match=r"several positions of each row.*distill_sets, in a HeadSet with"):
        StudentTrainer(Optimization(2, 8, 0.01)).distill(Segmenter, ROWS, cache)
