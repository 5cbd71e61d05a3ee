"""Preprocessing: the numbers of the libraries that define it, one result for a sample whatever stands beside
it, saved and loaded."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from ensdistill.common.files import read_json, write_json
from ensdistill.data.preprocess import HashedNgrams, ImageTransform, Tokens, load_preprocess

TEXTS = ["the quick brown fox", "", "a naïve façade, the fox's", "the " * 40, "日本語 text"]


def images(count=4):
    generator = np.random.default_rng(0)
    sizes = [(9, 12), (20, 7), (8, 8), (31, 40)][:count]
    return [generator.integers(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]


def tokenizer():
    tokens = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    )
    tokens.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokens


def every_preprocess():
    return {
        "image": (ImageTransform(size=6, resize=7, mean=(0.5, 0.4, 0.3), std=(0.2,)), images()),
        "ngrams": (HashedNgrams(buckets=500, length=12, words=3, characters=(3, 4)), TEXTS),
        "tokens": (Tokens(tokenizer(), length=10), TEXTS),
    }


def as_numpy(result):
    return {
        name: np.asarray(part)
        for name, part in (result if isinstance(result, dict) else {"": result}).items()
    }


@pytest.mark.parametrize("name", every_preprocess())
def test_a_sample_has_one_result_whatever_stands_beside_it(name):
    preprocess, batch = every_preprocess()[name]
    whole = as_numpy(preprocess(batch))
    for row, sample in enumerate(batch):
        for part, values in as_numpy(preprocess([sample])).items():
            np.testing.assert_array_equal(values[0], whole[part][row])


@pytest.mark.parametrize("name", every_preprocess())
def test_it_is_loaded_as_it_was_saved(name, tmp_path):
    preprocess, batch = every_preprocess()[name]
    preprocess.save(tmp_path / "p")
    loaded = load_preprocess(tmp_path / "p")
    assert type(loaded) is type(preprocess)
    assert loaded.fingerprint() == preprocess.fingerprint()
    for part, values in as_numpy(loaded(batch)).items():
        np.testing.assert_array_equal(values, as_numpy(preprocess(batch))[part])


def test_the_fingerprint_changes_with_the_result():
    plain = [
        ImageTransform(size=6),
        ImageTransform(size=7),
        ImageTransform(size=6, std=(2.0,)),
        HashedNgrams(),
        HashedNgrams(words=1),
    ]
    other = tokenizer()
    other.add_tokens(["fox"])
    made = [*plain, Tokens(tokenizer()), Tokens(tokenizer(), length=9), Tokens(other)]
    assert len({preprocess.fingerprint() for preprocess in made}) == len(made)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"format": 2}, "format 2.*upgrade"),
        ({"class_path": "os.path.join"}, r"trusted=\['os.path.join'\]"),
        ({"class_path": "ensdistill.data.preprocess.base.importlib"}, "class of a preprocess.*'importlib'"),
        ({"class_path": "ensdistill.data.preprocess.modules.torch"}, "class of a preprocess.*'torch'"),
        ({"class_path": "ensdistill.data.preprocess.base.Preprocess"}, "class of a preprocess.*'Preprocess'"),
        ({"class_path": "ensdistill.data.preprocess.base.load_preprocess"}, "class of a preprocess"),
        ({"class_path": "ensdistill.data.preprocess.nowhere.Mine"}, "nowhere.Mine can't be imported"),
    ],
)
def test_a_saved_one_that_is_not_ours_is_refused(tmp_path, damage, words):
    ImageTransform().save(tmp_path)
    write_json(tmp_path / "preprocess.json", read_json(tmp_path / "preprocess.json") | damage)
    with pytest.raises(ValueError, match=words):
        load_preprocess(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocess.json"):
        load_preprocess(tmp_path / "nowhere")


def test_images_are_resized_as_pillow_does():
    for pixels in images():
        height, width = pixels.shape[:2]
        scale = 8 / min(height, width)
        small = Image.fromarray(pixels).resize(
            (max(8, round(width * scale)), max(8, round(height * scale))), Image.Resampling.BILINEAR
        )
        left, top = (small.width - 6) // 2, (small.height - 6) // 2
        expected = np.asarray(small.crop((left, top, left + 6, top + 6))).transpose(2, 0, 1)
        found = ImageTransform(size=6, resize=8)([pixels])[0] * 255
        # Pillow rounds to whole levels after each of two passes.
        assert np.abs(found.numpy() - expected).max() <= 1.01


def test_images_without_a_size_are_scaled_alone():
    pixels = images(1)[0]
    expected = (pixels.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.25
    for batch in ([pixels], [Image.fromarray(pixels)], pixels[None], torch.from_numpy(pixels[None])):
        np.testing.assert_allclose(
            ImageTransform(mean=(0.5,), std=(0.25,))(batch)[0], expected, rtol=1e-6, atol=1e-6
        )
    first = ImageTransform(mean=(0.5,), std=(0.25,), layout="channels_first")(pixels.transpose(2, 0, 1)[None])
    np.testing.assert_allclose(first[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "batch", "words"),
    [
        (ImageTransform, images(), r"size: expected a size, because the images are of 4 sizes"),
        (
            lambda: ImageTransform(mean=(0.1, 0.2)),
            images(1),
            r"mean: expected one number, or one for each of the images' 3 channels; got 2",
        ),
        (ImageTransform, np.zeros((2, 4, 4)), r"inputs: expected uint8 images"),
        (lambda: ImageTransform(size=4, resize=3), None, r"resize: expected at least size, 4"),
        (lambda: ImageTransform(std=(0.0,)), None, r"std: expected positive numbers"),
        (lambda: HashedNgrams(buckets=0), None, r"buckets: expected at least 1"),
        (HashedNgrams, np.zeros((2, 2)), r"inputs: expected a list of strings; got a batch of kind 'array'"),
        (lambda: Tokens("nowhere.json"), None, r"tokenizer: expected a tokenizer.json.*'nowhere.json'"),
    ],
)
def test_bad_settings_and_inputs(make, batch, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()(batch)


def test_tokens_are_those_of_the_library_and_leave_it_alone():
    own = tokenizer()
    found = Tokens(own, length=10)(TEXTS)
    assert own.padding is None
    assert own.truncation is None
    for row, text in enumerate(TEXTS):
        ids = own.encode(text).ids
        cut = ids if len(ids) <= 10 else [*ids[:9], 3]  # [SEP] ends a text that is cut, too
        assert found["input_ids"][row].tolist() == cut + [0] * (10 - len(cut))
        assert found["attention_mask"][row].sum() == len(cut)


def test_ngrams_of_a_text():
    grams = HashedNgrams(buckets=10**9, length=9, words=2, characters=(3, 3))
    ids = grams(["Red fox", "red", "fox red"])
    # Two words, one pair, "<re" "red" "ed>" "<fo" "fox" "ox>"; one word and its three.
    assert (ids > 0).sum(1).tolist() == [9, 4, 9]
    assert ids[0, 0] == ids[1, 0] == ids[2, 1]
    assert ids[0, 2] != ids[2, 2]
    assert set(ids[1, 1:4].tolist()) <= set(ids[0].tolist())


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (1, 1, 4)])
@pytest.mark.parametrize("settings", [{}, {"mean": (0.3,), "std": (0.7,)}, {"std": (1.5,)}])
def test_images_of_one_size_are_normalised_as_each_alone(shape, settings):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(3)]
    mean, std = (torch.tensor(settings.get(name, (value,))) for name, value in (("mean", 0.0), ("std", 1.0)))
    channels = [torch.from_numpy(image.reshape(*shape[:2], -1)).permute(2, 0, 1) for image in images]
    expected = torch.stack([(image / 255 - mean) / std for image in channels])
    for batch in (images, tuple(images), np.stack(images)):
        got = ImageTransform(**settings)(batch)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        # The layout decides the kernels of convolutions, and so a model's last bits.
        assert got.stride() == expected.contiguous().stride()
