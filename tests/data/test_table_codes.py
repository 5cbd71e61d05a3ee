"""Categories of many values as codes, and the network that embeds them."""

import numpy as np
import pandas as pd
import pytest
import torch

from ensdistill.common.completion import completed
from ensdistill.data.preprocess import TableDefaults, load_preprocess
from ensdistill.models import TabularMLP

GENERATOR = np.random.default_rng(0)
N = 400
FRAME = pd.DataFrame(
    {
        "city": np.array([f"city {i}" for i in range(30)])[GENERATOR.integers(0, 30, N)],
        "age": np.where(GENERATOR.random(N) < 0.1, np.nan, GENERATOR.normal(size=N)),
        "sex": np.array(["f", "m"])[GENERATOR.integers(0, 2, N)],
        "height": GENERATOR.normal(size=N),
    }
)


def test_codes_stand_last_and_are_counted(tmp_path):
    transformer = TableDefaults(codes=5, rare=12).fit(FRAME, seed=2**60)
    counts = FRAME["city"].value_counts()
    often = counts.index[counts >= 12]
    assert 0 < len(often) < 30
    assert transformer.cardinalities == (len(often) + 2,)  # the rare ones together, and those never seen
    assert transformer.numeric == 2
    numbers = transformer(FRAME)
    codes = numbers[:, -1]
    assert set(codes.tolist()) == set(range(len(often) + 1))
    assert len({*codes[~FRAME["city"].isin(often)].tolist()}) == 1
    unseen = FRAME[:1].assign(city="elsewhere")
    assert transformer(unseen)[0, -1] == -1
    transformer.save(tmp_path)
    loaded = load_preprocess(tmp_path)
    np.testing.assert_array_equal(loaded(FRAME), numbers)
    assert (loaded.cardinalities, loaded.numeric) == (transformer.cardinalities, 2)


@pytest.mark.parametrize("numbers", ["plain", "piecewise", "periodic"])
def test_the_network_is_completed_and_tells_cities_apart(numbers):
    transformer = TableDefaults(codes=5, rare=1).fit(FRAME)
    inputs = torch.from_numpy(transformer(FRAME))
    labels = torch.from_numpy((FRAME["city"].str[5:].astype(int) % 2).to_numpy().copy())
    torch.manual_seed(0)
    model = completed(TabularMLP, inputs.numpy(), 2, transformer)(numbers=numbers, hidden=(32,))
    assert model.categories[0].num_embeddings == 31
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.97
    unseen = torch.from_numpy(transformer(FRAME.assign(city="elsewhere")))
    assert model(unseen).isfinite().all()


def test_a_network_of_too_few_inputs_is_refused():
    with pytest.raises(ValueError, match="inputs: expected at least 3, 2 numbers and 1 categories; got 2"):
        TabularMLP(inputs=2, numeric=2, cardinalities=[4])
