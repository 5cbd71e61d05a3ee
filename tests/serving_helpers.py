"""Small students of every kind of samples, untrained, for tests of serving."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pandas as pd
import torch

from ensdistill.data.preprocess import HashedNgrams, ImageTransform, default_transformer
from ensdistill.data.samples import as_samples, form
from ensdistill.models import CNN, MLP, BagOfNgrams
from ensdistill.student.serving import Student
from ensdistill.teachers.members import Preprocessed, TorchMember


def member(factory, preprocess=None, classes=None):
    torch.manual_seed(0)
    one = TorchMember(factory(), name="student", factory=factory, output="logits", classes=classes)
    return one if preprocess is None else Preprocessed(one, preprocess)


def form_of(samples):
    return form(as_samples(samples))


def frame(rows=40, seed=0):
    """Numbers with gaps, whole numbers, texts with gaps, booleans."""
    random = np.random.default_rng(seed)
    age = random.normal(40, 9, rows).round(1)
    age[::7] = np.nan
    city = random.choice(np.array(["Rom", "Oslo", None], object), rows, p=[0.5, 0.4, 0.1])
    return pd.DataFrame(
        {"age": age, "rooms": random.integers(1, 9, rows), "city": city, "own": random.random(rows) > 0.5}
    )


@cache
def scaler():
    return default_transformer(frame())


def of_table(labels=("no", "yes"), **more):
    table, scaled = frame(), scaler()
    factory = partial(MLP, inputs=scaled(table).shape[1], hidden=[8], outputs=len(labels))
    return Student(member(factory, scaled), [str(label) for label in labels], labels, form_of(table), **more)


def of_array(labels=("a", "b", "c"), **more):
    x = np.zeros((2, 3), np.float32)
    factory = partial(MLP, inputs=3, hidden=[4], outputs=len(labels))
    return Student(member(factory), [str(label) for label in labels], labels, form(x), **more)


def of_images(**more):
    images = [np.zeros((8, 8), np.uint8)]
    factory = partial(CNN, image=[1, 8, 8], channels=[4], outputs=2)
    return Student(member(factory, ImageTransform()), ("a", "b"), ("a", "b"), form_of(images), **more)


def of_texts(**more):
    factory = partial(BagOfNgrams, buckets=100, outputs=2)
    return Student(member(factory, HashedNgrams(100, 8)), ("1", "2"), (1, 2), form_of(["a text"]), **more)
