"""The Gaussian distillation loss: against torch's own divergence, the law of total variance, and samples of the mixture."""

import pytest
import torch
from closed_forms import make_logits
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import Normal, kl_divergence

from ensdistill.functional import gaussian_distillation_loss, gaussian_moments


def make(k=3, n=4, d=2, dtype=torch.float64):
    mean, log_v = make_logits(n, d, seed=0, dtype=dtype), make_logits(n, d, seed=1, dtype=dtype, spread=1)
    means, variances = (
        make_logits(k, n, d, seed=2, dtype=dtype),
        make_logits(k, n, d, seed=3, dtype=dtype).exp(),
    )
    return mean, log_v, means, variances


def test_it_is_the_divergence_from_the_moments():
    mean, log_v, means, variances = make()
    weights = torch.tensor([0.0, 1.0, 3.0])
    m, v = gaussian_moments(means, variances, weights=weights)
    expected = kl_divergence(Normal(m, v.sqrt()), Normal(mean, (log_v / 2).exp())).sum(-1)
    found = gaussian_distillation_loss(mean, log_v, means, variances, weights=weights, reduction="none")
    torch.testing.assert_close(found, expected)
    rows = torch.tensor([1.0, 0.0, 2.0, 0.5])
    for reduction, divisor in (("mean", 4), ("sum", 1)):
        found = gaussian_distillation_loss(
            mean, log_v, means, variances, weights=weights, sample_weights=rows, reduction=reduction
        )
        torch.testing.assert_close(found, (rows * expected).sum() / divisor)


def test_moments_are_those_of_samples():
    means, variances, weights = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [4.0]]), [1.0, 3.0]
    random = torch.Generator().manual_seed(0)
    which = (torch.rand(200_000, generator=random) < 0.75).long()
    x = means[which, 0] + variances[which, 0].sqrt() * torch.randn(200_000, generator=random)
    mean, variance = gaussian_moments(means, variances, weights=weights)
    assert mean.item() == pytest.approx(x.mean().item(), abs=0.03)
    assert variance.item() == pytest.approx(x.var().item(), rel=0.02)


def test_zero_at_the_moments_and_nowhere_less():
    mean, log_v, means, variances = make(dtype=torch.float32)
    m, v = gaussian_moments(means, variances)
    assert gaussian_distillation_loss(m, v.log(), means, variances).abs() < 1e-6
    assert (gaussian_distillation_loss(mean, log_v, means, variances, reduction="none") > 0).all()
    near = gaussian_distillation_loss(m, v.log() + 1e-3, means, variances, reduction="none")
    torch.testing.assert_close(near, torch.full((4,), 2 * 1e-6 / 4), rtol=2e-3, atol=0)


def test_the_order_of_members_and_outputs_and_equal_members_have_no_effect():
    mean, log_v, means, variances = make()
    weights = torch.tensor([0.2, 0.5, 0.3])
    expected = gaussian_distillation_loss(mean, log_v, means, variances, weights=weights, reduction="none")
    order, turned = torch.tensor([2, 0, 1]), [1, 0]
    parts = (part[order][..., turned] for part in (means, variances))
    found = gaussian_distillation_loss(
        mean[:, turned], log_v[:, turned], *parts, weights=weights[order], reduction="none"
    )
    torch.testing.assert_close(found, expected)
    one = gaussian_distillation_loss(mean, log_v, means[:1], variances[:1])
    same = [part[:1].expand(3, -1, -1) for part in (means, variances)]
    torch.testing.assert_close(gaussian_distillation_loss(mean, log_v, *same, weights=weights), one)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_beta_scales_the_gradient_of_the_mean_alone(beta):
    mean, log_v, means, variances = (part.requires_grad_() for part in make())
    plain = gaussian_distillation_loss(mean, log_v, means, variances)
    of_mean, of_log_v = torch.autograd.grad(plain, (mean, log_v))
    scaled = gaussian_distillation_loss(mean, log_v, means, variances, beta=beta)
    torch.testing.assert_close(scaled, plain)
    found = torch.autograd.grad(scaled, (mean, log_v))
    torch.testing.assert_close(found, (of_mean * (beta * log_v.detach()).exp(), of_log_v))
    if beta == 1:  # half the squared error's
        error = mean.detach() - gaussian_moments(means, variances)[0]
        torch.testing.assert_close(found[0], error / len(mean))


def test_members_that_agree_ask_for_the_least_variance():
    mean, log_v = torch.zeros(1, 1), torch.full((1, 1), 1e-4).log()
    assert gaussian_distillation_loss(mean, log_v, torch.zeros(3, 1, 1), min_variance=1e-4) == 0
    alone = gaussian_distillation_loss(mean, log_v, torch.zeros(1, 1, 1), min_variance=1e-2)
    assert alone.item() == pytest.approx((100 - 1 - torch.tensor(100.0).log().item()) / 2, rel=1e-5)


def test_gradients():
    mean, log_v, means, variances = make()

    def loss(m, v):
        return gaussian_distillation_loss(m, v, means, variances, sample_weights=[1.0, 0.0, 2.0, 1.0])

    inputs = (mean.requires_grad_(), log_v.requires_grad_())
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


def test_rows_and_members_of_weight_zero_are_not_looked_at():
    mean, log_v, means, variances = make()
    arguments = {"weights": [1.0, 0.0, 1.0], "sample_weights": [1.0, 0.0, 1.0, 1.0]}
    expected = gaussian_distillation_loss(mean, log_v, means, variances, **arguments)
    means[1], variances[1] = torch.nan, torch.nan
    mean[1], means[:, 1], log_v[1] = torch.nan, torch.nan, torch.nan
    leaf = mean.requires_grad_()
    loss = gaussian_distillation_loss(leaf, log_v, means, variances, **arguments)
    loss.backward()
    assert loss == expected
    assert torch.equal(leaf.grad[1], torch.zeros(2, dtype=torch.float64))
    assert leaf.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    mean, log_v, means, variances = make(dtype=torch.bfloat16)
    loss = gaussian_distillation_loss(mean, log_v, means, variances)
    assert loss.dtype == torch.float32
    exact = gaussian_distillation_loss(*(x.double() for x in (mean, log_v, means, variances)))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean": [0.0]}, TypeError, "mean: expected a Tensor"),
        (
            {"log_variance": torch.zeros(4, 3)},
            ValueError,
            r"log_variance: expected the shape of mean, \[4, 2\]",
        ),
        ({"teacher_means": torch.zeros(4, 2)}, ValueError, r"teacher_means: expected \[K, 4, 2\]"),
        (
            {"teacher_variances": torch.zeros(3, 4)},
            ValueError,
            "teacher_variances: expected the shape of teacher_me",
        ),
        (
            {"teacher_variances": -torch.ones(3, 4, 2)},
            ValueError,
            "teacher_variances: expected numbers of at least 0",
        ),
        ({"weights": [1.0]}, ValueError, "weights: expected one for each of the 3 members"),
        (
            {"sample_weights": [1.0]},
            ValueError,
            "sample_weights: expected one for each of the student's rows",
        ),
        ({"beta": 1.5}, ValueError, r"^beta: expected a number from 0 to 1; got 1.5"),
        ({"min_variance": 0}, ValueError, "min_variance: expected a finite number above 0; got 0"),
        ({"reduction": "batchmean"}, ValueError, "reduction: expected one of mean, sum, none"),
    ],
)
def test_bad_input_is_named(change, error, message):
    mean, log_v, means, variances = make(dtype=torch.float32)
    arguments = {"mean": mean, "log_variance": log_v, "teacher_means": means, "teacher_variances": variances}
    with pytest.raises(error, match=message):
        gaussian_distillation_loss(**arguments | change)
