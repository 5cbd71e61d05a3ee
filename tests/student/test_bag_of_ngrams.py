"""`BagOfNgrams`: the sum of embeddings by the square root of their number."""

import pytest
import torch

from ensdistill.models import BagOfNgrams


def test_the_sum_is_divided_by_the_root_of_the_number_of_ngrams_without_padding():
    torch.manual_seed(0)
    model = BagOfNgrams(buckets=50, width=5, outputs=3).double()
    rows = [[7, 3, 3, 9], [12], [4, 50]]
    ids = torch.zeros(3, 6, dtype=torch.int64)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    vectors = torch.stack([model.embeddings.weight[own].sum(0) / len(own) ** 0.5 for own in rows])
    torch.testing.assert_close(model(ids), model.head(vectors), rtol=1e-12, atol=1e-12)


def test_evidence_repeated_counts_by_the_root_of_two():
    model = BagOfNgrams(buckets=50, width=5, outputs=3)
    bare = torch.zeros_like(model.head[-1].bias)
    model.head[-1].bias.data.copy_(bare)
    once, twice = model(torch.tensor([[8, 3, 0, 0]])), model(torch.tensor([[8, 3, 8, 3]]))
    torch.testing.assert_close(twice, once * 2**0.5)


def test_an_empty_text_has_the_bias_alone():
    model = BagOfNgrams(buckets=50, width=5, outputs=3)
    torch.testing.assert_close(model(torch.zeros(2, 4, dtype=torch.int64))[1], model.head[-1].bias)


def test_vectors_start_small_and_padding_at_zero():
    weight = BagOfNgrams(buckets=500, width=16).embeddings.weight.detach()
    assert weight[0].abs().max() == 0
    assert weight.abs().max() <= 1 / 16
    assert weight[1:].abs().mean() > 0.4 / 16  # uniform: half of the bound


def test_half_precision_stays_half_precision():
    model = BagOfNgrams(buckets=50, width=8, outputs=3).to(torch.bfloat16)
    assert model(torch.tensor([[8, 3, 0]])).dtype == torch.bfloat16


def test_weights_of_a_mean_are_refused():
    with pytest.raises(RuntimeError, match=r"embeddings\.weight"):
        BagOfNgrams(50, 8).load_state_dict({"embedding.weight": torch.zeros(51, 8)}, strict=True)
