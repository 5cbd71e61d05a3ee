"""ODS and ConfODS against the paper's equation, by finite differences."""

import numpy as np
import pytest
import torch

from ensdistill.data import Rows, Split
from ensdistill.data.transfer import Diversity, Mixup, TransferSet


class Members:
    """Two small functions with gradients, as an ensemble gives them."""

    def __init__(self, count=2, inputs=4, classes=3):
        generator = torch.Generator().manual_seed(0)
        self.weights = [torch.randn(inputs, classes, generator=generator).double() for _ in range(count)]

    def differentiable(self):
        return [lambda x, w=w: torch.tanh(x.double() @ w) * 2 for w in self.weights]


def base(rows=6, inputs=4):
    return np.random.default_rng(1).normal(size=(rows, inputs))


def probabilities(members, k, x, temperature):
    return (members.differentiable()[k](torch.from_numpy(x)) / temperature).softmax(-1).numpy()


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_perturbation_is_that_of_the_paper(confidence, temperature):
    members, x, step = Members(count=1), base(), 0.01
    source = Diversity(rows=6, step=step, temperature=temperature, confidence=confidence)
    made = source.make(x, np.random.default_rng(0), members)
    # The same draws: the member of each row, then w of each class.
    generator = np.random.default_rng(0)
    generator.integers(1, size=6)
    w = generator.uniform(-1, 1, (6, 3))
    gradient, h = np.zeros_like(x), 1e-5
    for place in range(x.shape[1]):
        shift = h * np.eye(x.shape[1])[place]
        up, down = (probabilities(members, 0, x + sign * shift, temperature) for sign in (1, -1))
        gradient[:, place] = (w * (up - down)).sum(1) / (2 * h)
    expected = step * np.sqrt(4) * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    if confidence:
        expected *= probabilities(members, 0, x, temperature).max(1, keepdims=True)
    np.testing.assert_allclose(made - x, expected, rtol=1e-6, atol=1e-9)


def test_rows_come_from_all_members_and_all_rows():
    members, x = Members(count=3), base()
    source = Diversity(rows=60, step=0.5, confidence=False)
    made = source.make(x, np.random.default_rng(0), members)
    moved = made - x[np.arange(60) % 6]
    np.testing.assert_allclose(np.sqrt((moved**2).mean(1)), 0.5)
    np.testing.assert_array_equal(made, source.make(x, np.random.default_rng(0), members))
    assert len(np.unique(made.round(9), axis=0)) == 60
    cut = Diversity(rows=60, step=0.5, low=-1.0, high=1.0).make(
        x.clip(-1, 1), np.random.default_rng(0), members
    )
    assert np.abs(cut).max() == 1


def test_a_row_without_a_gradient_stays():
    class Flat:
        def differentiable(self):
            return [lambda x: x[:, :2] * 0]

    x = base()
    np.testing.assert_array_equal(Diversity(rows=6).make(x, np.random.default_rng(0), Flat()), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_transfer_set_passes_the_ensemble(dtype):
    x = base(30).astype(dtype)
    rows = [
        Rows(x[p], np.arange(30)[p], np.arange(30)[p] % 3)
        for p in (slice(0, 10), slice(10, 20), slice(20, 30))
    ]
    split = Split(rows[0], rows[1].without_labels(), rows[2], ("a", "b", "c"))
    made = TransferSet(synthetic=[Mixup(rows=5), Diversity(rows=7)]).build(split, 0, Members())
    assert made.origin == (("labelled", 10), ("pool", 10), ("mixup", 5), ("diversity", 7))
    assert made.rows.inputs.dtype == dtype
    with pytest.raises(ValueError, match=r"transfer\.synthetic\.1 \(Diversity\): expected an ensemble"):
        TransferSet(synthetic=[Mixup(rows=5), Diversity(rows=7)]).build(split, 0)


@pytest.mark.parametrize(
    ("x", "ensemble", "error", "words"),
    [
        (np.zeros((3, 2), np.uint8), Members(), TypeError, "floating-point inputs, .* got uint8"),
        (["a"], Members(), TypeError, "floating-point inputs, .* got text"),
        (base(), object(), ValueError, r"an ensemble with the method differentiable\(\).* got object"),
    ],
)
def test_inputs_and_ensembles_that_do_not_fit(x, ensemble, error, words):
    with pytest.raises(error, match=words):
        Diversity(rows=2).make(x, np.random.default_rng(0), ensemble)
    with pytest.raises(ValueError, match="positive step and temperature"):
        Diversity(rows=2, step=0)


def test_a_member_without_gradients():
    class Constant:
        def differentiable(self):
            return [lambda x: torch.ones(len(x), 3, requires_grad=True)]

    with pytest.raises(ValueError, match="a member's outputs have no gradient"):
        Diversity(rows=2).make(base(), np.random.default_rng(0), Constant())
