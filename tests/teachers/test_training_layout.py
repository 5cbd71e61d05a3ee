"""Images in trainings: their channels are innermost in memory, and the values are the same."""

import functools

import pytest
import torch
from test_training_strategies import difference, states, train
from torch import nn

from ensdistill.data import Digits
from ensdistill.data.augmentation import ShiftImages
from ensdistill.teachers.channels_last import as_channels_last
from ensdistill.teachers.stack.traits import traits


@pytest.fixture(scope="module")
def digits():
    return Digits().split(seed=0).labelled


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Layout(nn.Module):
    """Remembers how the first convolution's output lies in memory."""

    def __init__(self, channels=1, flat="flatten"):
        super().__init__()
        self.first, self.last, self.flat, self.seen = (
            nn.Conv2d(channels, 4, 3),
            nn.Linear(144, 10),
            flat,
            set(),
        )

    def forward(self, x):
        x = self.first(x)
        if torch.is_grad_enabled():
            self.seen.add(x.stride(1) == 1)
        if self.flat == "assert":
            assert x.is_contiguous()
        if self.flat == "strides":  # as a kernel that ignores strides
            return self.last(x.as_strided((len(x), 144), (144, 1)))
        return self.last(x.flatten(1) if self.flat == "flatten" else x.view(len(x), -1))


@pytest.mark.parametrize("way", ["one_by_one", "side_by_side"])
def test_images_are_laid_out_with_channels_innermost_and_models_are_not(digits, way):
    if way == "one_by_one":  # operations on two threads wait for each other wherever a core has other work
        torch.set_num_threads(1)
    models = train(digits, Layout, [1, 2], way=way, augment=ShiftImages())
    assert all(model.seen == {True} for model in models)
    assert all(p.is_contiguous() for model in models for p in model.parameters())
    for flat in ("view", "assert", "strides"):
        contiguous = train(
            digits, functools.partial(Layout, flat=flat), [1, 2], way=way, augment=ShiftImages()
        )
        assert all(model.seen == {False} for model in contiguous)
        assert max(difference(a, b) for a, b in zip(states(models), states(contiguous), strict=True)) < 1e-4
    torch.set_num_threads(1)
    stacked = train(digits, Layout, [1, 2], way="stacked", augment=ShiftImages())
    assert max(difference(a, b) for a, b in zip(states(models), states(stacked), strict=True)) < 1e-4
    torch.set_num_threads(2)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_the_same_values_in_another_order(channels):
    x = torch.randn(4, channels, 5, 6)
    last = as_channels_last(x)
    assert torch.equal(last, x)
    assert last.stride() == (channels * 30, 1, 6 * channels, channels)
    assert nn.Conv2d(channels, 2, 3)(last).is_contiguous(memory_format=torch.channels_last)
    assert traits(nn.Conv2d(channels, 2, 3), x).channels_last
    for slower in (
        nn.Sequential(nn.Conv2d(channels, 4, 3), nn.GroupNorm(2, 4)),
        nn.Conv2d(channels, 2 * channels, 3, groups=channels),
    ):
        assert traits(slower, x).channels_last == (channels == 1 and isinstance(slower, nn.Conv2d))
