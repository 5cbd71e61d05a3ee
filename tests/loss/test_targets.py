"""The classes of targets: decoding, combiners, rows, devices."""

from dataclasses import replace

import pytest
import torch
from closed_forms import decoded, make_codes, make_counts, make_logits, make_top_k

from ensdistill.functional import distillation_loss
from ensdistill.loss.encoders import top_k_targets
from ensdistill.loss.linear import linear_distillation_loss
from ensdistill.loss.modules import DistillationLoss
from ensdistill.loss.targets import Counts, EnsembleLogits, LogProbs, Probs, QuantizedLogits, TopK


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(3, 15, 31), (1, 1, 2), (2, 0, 10)])
def test_codes_decode_by_their_affine_map(shape, masked):
    targets = make_codes(*shape, seed=0, masked=masked)
    assert targets.shape == shape
    exact = decoded(targets)
    assert torch.equal(targets.to_logits(torch.float64), exact)
    logits = targets.to_logits()
    assert logits.dtype == torch.float32
    assert torch.equal(logits.isneginf(), exact.isneginf())
    # a product and a sum of numbers up to 20, each rounded
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=2 * 20 * 2.0**-24)


def test_code_zero_is_masked_only_where_the_scale_is_negative():
    codes = torch.tensor([[[0, 1, 255], [0, 1, 255]]], dtype=torch.uint8)
    logits = QuantizedLogits(codes, torch.tensor([[0.5, -0.5]]), torch.tensor([[-1.0, -1.0]])).to_logits()
    assert logits.tolist() == [[[-1.0, -0.5, 126.5], [-torch.inf, -0.5, 126.5]]]


@pytest.mark.parametrize("impl", ["fused", "reference"])
@pytest.mark.parametrize("kind", [EnsembleLogits, QuantizedLogits])
@pytest.mark.parametrize("combiner", ["prob", "logit", "log_prob"])
def test_targets_have_a_combiner_of_their_own(kind, combiner, impl):
    plain = (
        EnsembleLogits(make_logits(3, 9, 12, seed=1))
        if kind is EnsembleLogits
        else make_codes(3, 9, 12, seed=1)
    )
    target, student = replace(plain, combiner=combiner), make_logits(9, 12, seed=0)
    assert target.rows(2, 6).combiner == target.to("cpu").combiner == combiner
    wanted = {
        how: distillation_loss(student, plain, combiner=how, impl=impl)
        for how in ("prob", "logit", "log_prob")
    }
    assert torch.equal(distillation_loss(student, target, impl=impl), wanted[combiner])
    assert torch.equal(distillation_loss(student, plain, impl=impl), wanted["prob"])
    assert torch.equal(DistillationLoss(impl=impl)(student, target), wanted[combiner])
    for how, loss in wanted.items():  # an explicit combiner is used
        assert torch.equal(distillation_loss(student, target, combiner=how, impl=impl), loss)
    hidden, weight = torch.eye(9), student.T.contiguous()
    torch.testing.assert_close(linear_distillation_loss(hidden, weight, target), wanted[combiner])
    stored, _ = top_k_targets(target, 4)
    expected, _ = top_k_targets(plain, 4, combiner=combiner)
    assert torch.equal(stored.log_probs, expected.log_probs)
    with pytest.raises(
        ValueError, match=r"targets\.combiner: expected one of prob, logit, log_prob; got 'mean'"
    ):
        distillation_loss(student, replace(plain, combiner="mean"))


def test_sparse_targets_decode_to_log_probabilities():
    ids = torch.tensor([[2, 0, 2]])
    top = TopK(
        ids, torch.tensor([[0.5, 0.25, 0.0]]).log(), torch.tensor([0.25]).log(), classes=4
    )  # the last is padding
    torch.testing.assert_close(top.to_logits(), torch.tensor([[[0.25, 0.125, 0.5, 0.125]]]).log())
    torch.testing.assert_close(
        replace(top, tail_log_mass=None).to_logits().exp(), torch.tensor([[[0.25, 0, 0.5, 0]]])
    )
    counts = Counts(ids, torch.tensor([[3, 1, 0]]), classes=4)
    torch.testing.assert_close(
        counts.to_logits(torch.float64).exp(), torch.tensor([[[0.25, 0, 0.75, 0]]], dtype=torch.float64)
    )
    log_p = torch.log_softmax(make_logits(2, 3, 5, seed=1), -1)
    assert torch.equal(LogProbs(log_p[0]).to_logits(), log_p[:1])
    assert torch.equal(LogProbs(log_p, torch.ones(2)).to_logits(), log_p)
    for target in (top, counts):
        assert target.rows(0, 1).to_logits().shape == (1, 1, 4)
        with pytest.raises(
            ValueError, match=r"classes: .* lists some of the classes and was not told how many there are"
        ):
            replace(target, classes=None).to_logits()
        with pytest.raises(ValueError, match="targets: 4 classes, but the student has 5"):
            distillation_loss(torch.zeros(1, 5), target)


def test_a_constant_row_has_scale_zero():
    codes = torch.zeros(1, 1, 4, dtype=torch.uint8)
    assert QuantizedLogits(codes, torch.zeros(1, 1), torch.full((1, 1), 2.5)).to_logits().tolist() == [
        [[2.5] * 4]
    ]


def test_decoding_leaves_the_codes_alone():
    targets = make_codes(2, 3, 10, seed=0, masked=True)
    before = [x.clone() for x in (targets.codes, targets.scale, targets.offset)]
    targets.to_logits().zero_()
    assert all(
        torch.equal(x, y) for x, y in zip(before, (targets.codes, targets.scale, targets.offset), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_ensemble_logits_keep_the_given_tensors(dtype):
    logits = make_logits(3, 5, 10, seed=0, dtype=dtype)
    logits[0, 0, 0] = -torch.inf
    targets = EnsembleLogits(logits, weights=torch.tensor([1.0, 2.0, 3.0]))
    assert targets.shape == (3, 5, 10)
    assert targets.logits is logits
    assert targets.to_logits().dtype == torch.float32
    assert torch.equal(targets.to_logits(torch.float64), logits.double())


def test_targets_cannot_be_changed():
    with pytest.raises(AttributeError):
        EnsembleLogits(torch.zeros(1, 1, 2)).weights = torch.ones(1)
    with pytest.raises(AttributeError):
        make_codes(1, 1, 2, seed=0).scale = torch.ones(1, 1)


def every_kind(k, n, c):
    z = make_logits(k, n, c, seed=1)
    log_p, weights = torch.log_softmax(z / 2.0, -1), torch.linspace(1, 2, k)
    yield EnsembleLogits(z, weights)
    yield make_codes(k, n, c, seed=1)
    yield LogProbs(log_p, weights, 2.0)
    yield LogProbs(log_p[0], temperature=2.0)
    yield Probs(log_p.exp(), weights, 2.0)
    yield Probs(log_p[0].exp(), temperature=2.0)
    yield replace(make_top_k(n, c, 4, seed=1), temperature=2.0)
    yield replace(make_counts(n, c, 6, seed=1), temperature=2.0)


@pytest.mark.parametrize("kind", range(8))
def test_rows_are_views_with_all_other_fields(kind):
    target, student = list(every_kind(3, 9, 12))[kind], make_logits(9, 12, seed=0)
    part = target.rows(2, 6)
    assert type(part) is type(target)
    for name, whole in vars(target).items():
        found = getattr(part, name)
        if isinstance(whole, torch.Tensor) and name != "weights":
            assert found.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        else:
            assert found is whole
    assert part.shape[-2] == 4
    arguments = {"temperature": 2.0, "reduction": "none"}
    assert torch.equal(
        distillation_loss(student[2:6], part, **arguments),
        distillation_loss(student, target, **arguments)[2:6],
    )


@pytest.mark.parametrize("kind", range(8))
def test_targets_move_with_all_their_tensors(kind):
    target = list(every_kind(3, 9, 12))[kind]
    moved = target.to("meta")
    assert type(moved) is type(target)
    for name, before in vars(target).items():
        after = getattr(moved, name)
        if isinstance(before, torch.Tensor):
            assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
        else:
            assert after == before
    same = target.to(torch.device("cpu"))
    assert all(getattr(same, name) is x for name, x in vars(target).items())
    with pytest.raises(TypeError):
        target.to(torch.float64)  # which would not be the same targets


@pytest.mark.parametrize("kind", range(8))
def test_targets_equal_themselves_only(kind):
    one, other = (list(every_kind(3, 9, 12))[kind] for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other, one}) == 2
