"""Arguments of model classes that follow from the data."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ensdistill.common.completion import completed
from ensdistill.data.preprocess import HashedNgrams
from ensdistill.models import CNN, MLP


class Bag(nn.Module):
    def __init__(self, buckets, outputs, width=4):
        super().__init__()
        self.embedding, self.head = (
            nn.EmbeddingBag(buckets + 1, width, padding_idx=0),
            nn.Linear(width, outputs),
        )

    def forward(self, ids):
        return self.head(self.embedding(ids))


def test_numbers_of_inputs_and_classes_are_filled_in():
    model = completed(partial(MLP, hidden=[8]), torch.zeros(2, 3, 4), 5)
    assert model.keywords == {"hidden": [8], "inputs": 12, "outputs": 5}
    assert model()(torch.zeros(2, 3, 4)).shape == (2, 5)


def test_the_shape_of_images_is_filled_in():
    model = completed(partial(CNN, channels=[4]), np.zeros((2, 3, 6, 8), np.float32), 4)
    assert model()(torch.zeros(2, 3, 6, 8)).shape == (2, 4)


def test_the_largest_id_comes_from_the_preprocess():
    preprocess = HashedNgrams(buckets=50, length=6)
    ids = preprocess(["a text", "another one"])
    model = completed(Bag, ids, 3, preprocess)
    assert model()(torch.from_numpy(ids)).shape == (2, 3)
    assert completed(Bag, ids, 3).keywords == {"outputs": 3}


def test_given_arguments_stay():
    model = partial(MLP, inputs=7, outputs=2)
    assert completed(model, np.zeros((1, 5)), 3) is model
    assert completed(partial(MLP, 7), np.zeros((1, 5)), 2).keywords == {"outputs": 2}


@pytest.mark.parametrize("model", [MLP, lambda: MLP(5, [4], 3), partial(nn.Linear, 5, 3)])
def test_a_model_without_anything_to_add_is_the_same_object(model):
    # 64 inputs and 10 classes are the defaults of MLP.
    assert completed(model, np.zeros((1, 64)), 10) is model
