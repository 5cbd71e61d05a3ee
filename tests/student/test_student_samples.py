"""Students of raw samples: frames, strings, fields, images and lazy data, prepared by a preprocess of their own."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from ensdistill import Optimization, StudentTrainer
from ensdistill.cache import CacheMismatch, cache_targets
from ensdistill.data import Rows
from ensdistill.data.parquet import ParquetSamples
from ensdistill.data.preprocess import HashedNgrams, ImageTransform, default_transformer
from ensdistill.models import MLP

N = 60
NUMBERS = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
UIDS, LABELS = np.arange(N), np.arange(N) % 3
OPTIMIZATION = Optimization(steps=40, batch_size=16, learning_rate=0.01)


class Known:
    """An ensemble whose logits are the first three of the numbers that a function finds in a batch."""

    names, classes, weights, combiner = ("a",), ("x", "y", "z"), np.ones(1), "prob"

    def __init__(self, numbers):
        self.numbers = numbers

    def predict_logits(self, batch):
        return np.asarray(self.numbers(batch), np.float32)[None, :, :3]

    def fingerprint(self):
        return {"members": ["a"]}


class Items(Dataset):
    def __init__(self, changed=None):
        self.changed = changed

    def __len__(self):
        return N

    def __getitem__(self, i):
        return NUMBERS[i] + (i == self.changed), int(LABELS[i])


class OfFields(nn.Module):
    """Takes its inputs by name, and returns an object with logits."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(50, 8), nn.Linear(9, 3)

    def forward(self, ids, number):
        class Output:
            logits = self.layer(torch.cat([self.embedding(ids).mean(1), number], 1))

        return Output()


def distilled(inputs, factory, folder, numbers, **options):
    rows = Rows(inputs, UIDS, LABELS)
    cache = cache_targets(Known(numbers), rows, folder, codec="fp32", batch_size=16, shard_rows=32)
    return StudentTrainer(OPTIMIZATION).distill(factory, rows, cache, seed=0, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lazy_data_set_trains_the_same_student_as_an_array(workers, tmp_path):
    factory = partial(MLP, 4, [8], 3)
    expected = distilled(NUMBERS, factory, tmp_path / "a", lambda batch: batch, watch=NUMBERS[:7])
    found = distilled(
        Items(), factory, tmp_path / "b", lambda batch: batch, watch=NUMBERS[:7], workers=workers
    )
    np.testing.assert_array_equal(found.losses, expected.losses)
    np.testing.assert_array_equal(found.watched, expected.watched)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_changes_after_the_cache_was_made_ends_the_training(workers, tmp_path):
    rows = Rows(Items(), UIDS, LABELS)
    cache = cache_targets(Known(lambda batch: batch), rows, tmp_path, codec="fp32")
    with pytest.raises(CacheMismatch, match=r"uid 33 .* items change between reads"):
        StudentTrainer(OPTIMIZATION).distill(
            partial(MLP, 4, [8], 3), Rows(Items(33), UIDS, LABELS), cache, workers=workers
        )


def test_parquet_is_shuffled_group_by_group(tmp_path):
    frame = pd.DataFrame(NUMBERS, columns=list("abcd"))
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=10)
    preprocess = default_transformer(frame)
    sizes = []

    class Counting(StudentTrainer):
        def training_step(self, model, batch, loss):
            sizes.append(len({uid // 10 for uid in batch.uids.tolist()}))
            return super().training_step(model, batch, loss)

    samples = ParquetSamples(tmp_path / "rows.parquet", cached_bytes=1)  # one group at a time
    assert samples.buffer == 1
    rows = Rows(samples, UIDS, LABELS)
    cache = cache_targets(Known(lambda batch: batch.to_numpy()), rows, tmp_path / "c", codec="fp32")
    Counting(OPTIMIZATION).distill(partial(MLP, 4, [8], 3), rows, cache, preprocess=preprocess)
    assert max(sizes) <= 4  # a batch of 16 rows from groups of 10


def test_a_student_of_a_frame_has_its_own_preprocess(tmp_path):
    frame = pd.DataFrame({"n": NUMBERS[:, 0], "city": np.array(["Rom", "Oslo", None])[LABELS]})
    preprocess = default_transformer(frame, rare=1)
    width = preprocess(frame[:2]).shape[1]

    def logits(batch):
        return np.eye(3)[batch["city"].map({"Rom": 0, "Oslo": 1}).fillna(2).astype(int)] * 6

    trained = distilled(
        frame, partial(MLP, width, [16], 3), tmp_path, logits, preprocess=preprocess, watch=frame
    )
    assert (trained.watched[-1].argmax(1) == LABELS).mean() > 0.95
    with pytest.raises(TypeError, match=r"rows\.inputs: expected numbers .* kind 'table': name a preprocess"):
        distilled(frame, partial(MLP, width, [16], 3), tmp_path, logits)


def test_a_student_of_texts_learns_words(tmp_path):
    texts = [f"some {word} text {i}" for i, word in enumerate(np.array(["red", "green", "blue"])[LABELS])]

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = nn.EmbeddingBag(513, 16, padding_idx=0), nn.Linear(16, 3)

        def forward(self, ids):
            return self.layer(self.embedding(ids))

    def logits(batch):
        return [[8 * ("red" in t), 8 * ("green" in t), 8 * ("blue" in t)] for t in batch]

    preprocess = HashedNgrams(buckets=512, length=16)
    trained = StudentTrainer(replace(OPTIMIZATION, steps=150)).distill(
        Words,
        rows := Rows(texts, UIDS, LABELS),
        cache_targets(Known(logits), rows, tmp_path, codec="fp32"),
        preprocess=preprocess,
        watch=texts,
    )
    assert (trained.watched[-1].argmax(1) == LABELS).all()
    trainer = StudentTrainer(replace(OPTIMIZATION, steps=150))
    direct = trainer.direct(Words, rows, classes=3, preprocess=preprocess, watch=texts)
    assert (direct.watched[-1].argmax(1) == LABELS).all()


def test_fields_are_keyword_arguments(tmp_path):
    fields = {"ids": (LABELS[:, None] + [[3, 4, 5]]).astype(np.int32), "number": NUMBERS[:, :1]}
    trained = distilled(
        fields, OfFields, tmp_path, lambda batch: np.eye(3)[batch["ids"][:, 0] - 3] * 6, watch=fields
    )
    assert (trained.watched[-1].argmax(1) == LABELS).mean() > 0.8
    with pytest.raises(ValueError, match=r"MLP: does not take inputs by name, of the shapes {'ids': \[3\]"):
        distilled(fields, partial(MLP, 4, [8], 3), tmp_path, lambda batch: NUMBERS[: len(batch["ids"])])


def test_token_ids_stay_integers(tmp_path):
    ids = np.random.default_rng(0).integers(1, 50, (N, 10))

    def factory():
        return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(80, 3))

    trained = distilled(ids, factory, tmp_path, lambda batch: batch / 10, watch=ids)
    assert trained.losses[-1] < trained.losses[0] / 2


def test_images_of_unlike_sizes_are_scaled_in_workers(tmp_path):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (6 + i % 3, 8, 3)).astype(np.uint8) for i in range(N)]
    preprocess = ImageTransform(size=4)
    width = preprocess(images[:2]).reshape(2, -1).shape[1]
    trained = distilled(
        images,
        partial(MLP, width, [8], 3),
        tmp_path,
        lambda batch: np.zeros((len(batch), 3)),
        preprocess=preprocess,
    )
    assert np.isfinite(trained.losses).all()


def test_rows_of_weight_zero_have_no_part():
    half = LABELS < 2
    rows = Rows(NUMBERS, UIDS, LABELS, weights=half.astype(float))
    trainer = StudentTrainer(replace(OPTIMIZATION, steps=300))
    trained = trainer.direct(partial(MLP, 4, [16], 3), rows, classes=3, watch=NUMBERS)
    assert (trained.watched[-1].argmax(1) == 2).mean() < 0.05


def test_weights_of_the_loss_are_those_of_the_rows(tmp_path):
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    rows = Rows(NUMBERS, UIDS, LABELS, weights)
    cache = cache_targets(Known(lambda batch: batch), rows, tmp_path, codec="fp32")
    seen = []

    def loss(outputs, targets, labels, batch):
        np.testing.assert_allclose(batch.weights, weights[batch.uids] / weights.mean(), rtol=1e-6)
        seen.append(batch.step)
        return (outputs.square().mean(1) * batch.weights).mean()

    StudentTrainer(OPTIMIZATION, loss=loss).distill(partial(MLP, 4, [8], 3), rows, cache)
    assert seen == list(range(40))
