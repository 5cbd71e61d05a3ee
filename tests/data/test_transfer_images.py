"""Sources for images: augmented versions, mixup and CutMix, of arrays, tensors and lists of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from ensdistill.data.augmentation import Chain, CropImages, FlipImages, JitterColours, ShiftImages
from ensdistill.data.transfer import Augmented, CutMix, Mixup, Munge


def pixels(count=12, seed=0):
    return (np.random.default_rng(seed).random((count, 6, 8, 3)) * 255).astype(np.uint8)


def seeded():
    return np.random.default_rng(0)


def containers():
    base = pixels()
    first = np.ascontiguousarray(np.moveaxis(base, -1, 1))
    return {
        "array": first,
        "tensor": torch.from_numpy(first),
        "floats": torch.from_numpy(first).bfloat16() / 256,
        "images": list(base),
        "pillow": [Image.fromarray(one) for one in base],
    }


@pytest.mark.parametrize("name", containers())
@pytest.mark.parametrize(
    "source",
    [
        Munge(rows=30),
        Mixup(rows=30),
        Mixup(rows=30, augment=FlipImages()),
        CutMix(rows=30),
        Augmented(ShiftImages(), rows=30),
        Augmented(Chain([CropImages(), JitterColours()]), rows=30),
    ],
    ids=lambda source: type(source).__name__,
)
def test_containers_stay_what_they_are(source, name):
    base = containers()[name]
    made, again = source.make(base, seeded()), source.make(base, seeded())
    assert type(made) is type(base)
    assert len(made) == 30
    for one, two in zip(made, again, strict=True):
        if name == "pillow":
            assert one.mode == "RGB"
            assert one.size == base[0].size
            assert one.tobytes() == two.tobytes()
        else:
            assert one.dtype == base[0].dtype
            assert one.shape == base[0].shape
            assert (one == two).all()
    if name in ("images", "pillow") and not isinstance(source, Augmented | CutMix):
        # The draws follow the order of the pixels, so only the container may differ here.
        other = source.make(list(pixels()), seeded())
        assert all((np.asarray(one) == two).all() for one, two in zip(made, other, strict=True))


def test_cutmix_takes_a_rectangle():
    base = np.stack([np.full((2, 10, 12), value, np.float32) for value in range(50)])
    made = CutMix(rows=400).make(base, seeded())
    inside = 0
    for image in made:
        found, counts = np.unique(image[0], return_counts=True)
        assert len(found) <= 2
        np.testing.assert_array_equal(image[0], image[1])
        if len(found) == 2:
            # One of the two values fills the rectangle that bounds it.
            rectangles = 0
            for value, count in zip(found, counts, strict=True):
                rows, columns = np.nonzero(image[0] == value)
                rectangles += (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == count
            assert rectangles >= 1
            inside += 1
    assert inside > 300
    half = CutMix(rows=300, alpha=1e7).make(
        np.stack([np.zeros((1, 100, 80)), np.ones((1, 100, 80))]), seeded()
    )
    cut = half.mean((1, 2, 3))
    cut = np.minimum(cut, 1 - cut)  # the second image may be either
    assert cut.max() == pytest.approx(0.5, abs=0.02)  # where the rectangle lies within the image
    shares = [np.mean(CutMix(rows=600, alpha=a).make(base[:2], seeded()) == 0) for a in (0.1, 5.0)]
    np.testing.assert_allclose(shares, 0.5, atol=0.1)


def test_augmented_versions_of_images_of_different_sizes():
    base = [np.full((4, 4), 9, np.uint8), np.full((3, 5, 1), 7, np.uint8), np.full((4, 4), 8, np.uint8)]
    made = Augmented(ShiftImages(1), rows=24).make(base, seeded())
    assert sorted({image.shape for image in made}) == [(3, 5, 1), (4, 4)]
    assert len({(image.shape, image.tobytes()) for image in made}) == 24
    with pytest.raises(ValueError, match="at most 24"):
        Augmented(ShiftImages(1), rows=25).make(base, seeded())
    assert len(Augmented(CropImages(), rows=25).make(base, seeded())) == 25


def test_images_that_cannot_be_mixed():
    sizes = [np.zeros((4, 4), np.uint8), np.zeros((3, 4), np.uint8)]
    for source in (Munge(rows=2), Mixup(rows=2), CutMix(rows=2)):
        with pytest.raises(
            ValueError, match=r"images of one size.*image 0 has \[4, 4\] and image 1 \[3, 4\]"
        ):
            source.make(sizes, seeded())
    with pytest.raises(ValueError, match=r"cutmix: expected images .* got \[3, 2\]"):
        CutMix(rows=2).make(np.zeros((3, 2)), seeded())
    with pytest.raises(TypeError, match="cutmix: expected images; got text"):
        CutMix(rows=2).make(["a"], seeded())
    with pytest.raises(ValueError, match="cutmix: alpha"):
        CutMix(rows=2, alpha=0)
