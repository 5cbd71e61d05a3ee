"""Augmentations of images, and their versions by seed, uid and view."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ensdistill.data.augmentation import (
    Augmentation,
    Chain,
    CropImages,
    FlipImages,
    JitterColours,
    ShiftImages,
    apply_to,
    changed_variants,
)
from ensdistill.data.versions import view_inputs

ALL = [
    ShiftImages(2),
    FlipImages(vertical=True),
    CropImages(area=(0.3, 0.9)),
    JitterColours(0.5, 0.5, 0.5, 0.2),
    Chain([ShiftImages(1), FlipImages(), JitterColours(), CropImages()]),
]


def images(count=6, channels=3, height=7, width=5, seed=0):
    return np.random.default_rng(seed).random((count, channels, height, width), np.float32)


@pytest.mark.parametrize("augment", ALL, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_shape_dtype_and_new_memory(augment, dtype):
    assert isinstance(augment, Augmentation)
    base = images() if dtype != np.uint8 else (images() * 255).astype(np.uint8)
    base = base.astype(dtype)
    kept = base.copy()
    draws = augment.draw(len(base), np.random.default_rng(1))
    made = apply_to(augment, base, draws)
    assert made.dtype == dtype
    assert made.shape == base.shape
    assert not np.shares_memory(made, base)
    np.testing.assert_array_equal(base, kept)
    assert (made != base).any()
    # Each sample is changed by its own draws alone.
    alone = np.concatenate([apply_to(augment, base[i : i + 1], draws[i : i + 1]) for i in range(len(base))])
    np.testing.assert_allclose(made, alone, rtol=1e-6, atol=1e-6)
    variants = augment.variants(base)
    np.testing.assert_array_equal(variants[0], base)
    assert len(variants) > 1
    assert all(one.dtype == dtype for one in variants)
    np.testing.assert_array_equal(augment.variants(base)[1], variants[1])


@pytest.mark.parametrize("augment", ALL, ids=lambda a: type(a).__name__)
def test_versions_depend_on_seed_uid_and_view_alone(augment):
    base, uids = images(), np.array([4, -9, 2**62, 7, 8, 1])
    made = view_inputs(augment, base, uids, view=1, seed=3)
    order = np.array([5, 0, 3])
    again = view_inputs(augment, base[order], uids[order], view=1, seed=3)
    np.testing.assert_allclose(made[order], again, rtol=1e-6, atol=1e-6)
    for other in ({"view": 2, "seed": 3}, {"view": 1, "seed": 4}):
        assert (view_inputs(augment, base, uids, **other) != made).any()


@pytest.mark.parametrize("augment", ALL, ids=lambda a: type(a).__name__)
def test_lists_of_images_and_tensors(augment):
    sizes = [(7, 5), (4, 9), (7, 5)]
    arrays = [
        (np.random.default_rng(i).random((*size, 3)) * 255).astype(np.uint8) for i, size in enumerate(sizes)
    ]
    uids = np.array([3, 1, 2])
    made = view_inputs(augment, arrays, uids, view=0, seed=0)
    pillow = view_inputs(augment, [Image.fromarray(one) for one in arrays], uids, view=0, seed=0)
    assert all(isinstance(one, Image.Image) and one.mode == "RGB" for one in pillow)
    for i, image in enumerate(arrays):
        first = np.ascontiguousarray(np.moveaxis(image, -1, 0))[None]
        alone = view_inputs(augment, first, uids[i : i + 1], view=0, seed=0)
        np.testing.assert_array_equal(made[i], np.moveaxis(alone[0], 0, -1))
        np.testing.assert_array_equal(np.asarray(pillow[i]), made[i])
        assert made[i].dtype == np.uint8
    base = torch.from_numpy(images())
    tensor = view_inputs(augment, base, np.arange(6), view=0, seed=0)
    np.testing.assert_array_equal(tensor.numpy(), view_inputs(augment, base.numpy(), np.arange(6), 0, 0))
    grey = [np.full((3, 3), 9, np.uint8), np.full((2, 4), 8, np.uint8)]
    assert [one.shape for one in view_inputs(augment, grey, uids[:2], 0, 0)] == [(3, 3), (2, 4)]
    for version in changed_variants(augment, arrays):
        assert [one.shape for one in version] == [(7, 5, 3), (4, 9, 3), (7, 5, 3)]
    assert view_inputs(augment, arrays[:0], uids[:0], 0, 0) == []


def test_other_samples_are_refused():
    with pytest.raises(
        TypeError, match=r"inputs: expected arrays, tensors or images, which ShiftImages .* got text"
    ):
        view_inputs(ShiftImages(), ["a"], np.array([0]), 0, 0)
    with pytest.raises(
        ValueError, match=r"FlipImages expects images \[N, channels, height, width\]; got \[2, 3\]"
    ):
        view_inputs(FlipImages(), np.zeros((2, 3)), np.arange(2), 0, 0)
    with pytest.raises(ValueError, match="channels last: permute them first"):
        view_inputs(CropImages(), np.zeros((2, 8, 8, 3)), np.arange(2), 0, 0)


def test_flips():
    base = images()
    flips = FlipImages(vertical=True)
    draws = flips.draw(4000, np.random.default_rng(0))
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.04)
    draws = np.array(
        [[False, False], [True, False], [False, True], [True, True], [True, False], [False, False]]
    )
    made = apply_to(flips, base, draws)
    np.testing.assert_array_equal(made[0], base[0])
    np.testing.assert_array_equal(made[1], base[1, :, :, ::-1])
    np.testing.assert_array_equal(made[2], base[2, :, ::-1])
    np.testing.assert_array_equal(made[3], base[3, :, ::-1, ::-1])
    assert len(FlipImages().variants(base)) == 2
    assert not FlipImages(horizontal=False, vertical=True).draw(50, np.random.default_rng(0))[:, 0].any()


def test_a_crop_is_a_part_of_the_image():
    # A ramp stays a ramp: its slope is the share of the side, its middle the part's.
    ramp = np.broadcast_to(np.arange(20, dtype=np.float64), (3, 1, 20, 20))
    draws = np.array([[0.5, 0.5, 0.0, 0.0], [1.0, 0.5, 0.5, 1.0], [0.25, 0.75, 1.0, 0.5]])
    made = apply_to(CropImages(), ramp, draws)[:, 0]
    inner = made[:, 3:-3, 3:-3]
    np.testing.assert_allclose(np.diff(inner, axis=2)[0], 0.5)
    np.testing.assert_allclose(np.diff(inner, axis=2)[2], 0.75)
    np.testing.assert_allclose(inner.mean((1, 2)), [4.5, 14.5, 9.5])
    draws = CropImages(area=(0.4, 0.6), ratio=(0.5, 2.0)).draw(3000, np.random.default_rng(0))
    area = draws[:, 0] * draws[:, 1]
    assert (area <= 0.6 + 1e-9).all()
    assert abs(area.mean() - 0.5) < 0.02
    assert ((draws > 0) & (draws <= 1)).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), hue=st.sampled_from([0.0, 0.5]), channels=st.sampled_from([1, 2, 3, 4]))
def test_colours_stay_in_range_and_opacity_stays(seed, hue, channels):
    base, augment = images(channels=channels, seed=seed), JitterColours(1, 1, 1, hue)
    made = apply_to(augment, base, augment.draw(6, np.random.default_rng(seed)))
    assert made.min() >= 0
    assert made.max() <= 1
    if channels in (2, 4):
        np.testing.assert_array_equal(made[:, -1], base[:, -1])
    same = apply_to(augment, base, np.array([[1.0, 1.0, 1.0, 0.0]] * 6))
    np.testing.assert_allclose(same, base, atol=1e-6)


def test_colours_against_their_definitions():
    base = images(count=1).astype(np.float64)
    grey = (base * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdims=True)

    def made(*draw):
        return apply_to(JitterColours(1, 1, 1, 0.5), base, np.array([draw]))

    np.testing.assert_allclose(made(0.5, 1, 1, 0), base / 2)
    np.testing.assert_allclose(made(1, 0, 1, 0), np.full_like(base, grey.mean()))
    np.testing.assert_allclose(made(1, 1, 0, 0), np.broadcast_to(grey, base.shape))
    red = np.zeros((1, 3, 2, 2))
    red[:, 0] = 0.6
    turned = apply_to(JitterColours(hue=0.5), red, np.array([[1.0, 1, 1, 1 / 3]]))[0, :, 0, 0]
    np.testing.assert_allclose(turned, [0, 0.6, 0], atol=1e-9)  # a third of the circle: green
    assert colorsys.rgb_to_hsv(*turned)[0] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"values in 0\.\.1 \(maximum\); got -0\.99"):
        apply_to(JitterColours(), base - 1, np.ones((1, 4)))


def test_a_chain_applies_its_steps_in_order():
    steps = [ShiftImages(2), FlipImages(vertical=True), CropImages()]
    base, chain = images(), Chain(steps)
    draws = chain.draw(6, np.random.default_rng(0))
    assert draws.shape == (6, 2 + 2 + 4)
    made = base
    for step, own in zip(
        steps, (draws[:, :2].astype(np.int64), draws[:, 2:4] > 0, draws[:, 4:]), strict=True
    ):
        made = apply_to(step, made, own)
    np.testing.assert_array_equal(apply_to(chain, base, draws), made)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlipImages(horizontal=False), "at least one of them"),
        (
            lambda: CropImages(area=(0.0, 1.0)),
            r"augment\.area: expected 0 < least <= largest <= 1; got 0.0, 1.0",
        ),
        (lambda: CropImages(ratio=(2.0, 1.0)), r"augment\.ratio"),
        (lambda: CropImages(versions=1), "versions"),
        (lambda: JitterColours(hue=0.6), r"augment\.hue: expected a number from 0 to 0.5; got 0.6"),
        (lambda: JitterColours(maximum=0), "positive maximum"),
        (lambda: Chain([]), "at least one step"),
    ],
)
def test_bad_settings(make, words):
    with pytest.raises(ValueError, match=words):
        make()
