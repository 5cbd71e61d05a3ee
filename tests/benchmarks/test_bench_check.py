"""The benchmark refuses wrong outputs of every contender, and lets right ones pass."""

import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.kernels import liger, quack
from ensdistill.bench import check as checking
from ensdistill.bench import race
from ensdistill.bench.cases import MULTILABEL, TEMPERATURE, Case
from ensdistill.bench.check import NAIVE, WrongOutput, both, check, check_forward
from ensdistill.bench.contenders import Contender, _function, _settings, contenders
from ensdistill.bench.inputs import make_inputs
from ensdistill.bench.measure import Cpu
from ensdistill.bench.plain import plain_loss, tensors
from ensdistill.bench.truth import Errors, errors, tolerance
from ensdistill.functional import distillation_loss
from ensdistill.loss.targets import EnsembleLogits

CPU = torch.device("cpu")
FLOAT = ("float32", "float32")
CASES = [
    Case(8, 12, 1, *FLOAT),
    Case(20, 37, 3, *FLOAT),
    Case(8, 12, 2, "bfloat16", "bfloat16"),
    Case(8, 12, 1, "float16", "float16"),
    Case(8, 12, 2, "float32", "uint8"),
    Case(8, 12, 2, "bfloat16", "uint8"),
    Case(8, 200, 1, "float32", "topk"),
    *(Case(8, 12, k, *FLOAT, divergence=d) for k in (1, 2) for d in ("reverse_kl", "jsd", "tvd")),
    *(Case(8, 12, k, *FLOAT, divergence=MULTILABEL) for k in (1, 2)),
    Case(8, 12, 1, *FLOAT, labels=True),
    Case(4096, 5, 1, *FLOAT, layout="map"),
    Case(8, 12, 3, *FLOAT, statistics=True),
    Case(16, 40, 1, *FLOAT, hidden=6),
    Case(16, 40, 1, "float32", "topk", hidden=6),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
WRONG = {
    "loss": lambda loss, g: (loss * 1.001, g),
    "factor": lambda loss, g: (loss, [x * TEMPERATURE for x in g]),
    "hole": lambda loss, g: (
        loss,
        [x.reshape(-1).index_fill(0, torch.arange(5), 0.0).view(x.shape) for x in g],
    ),
    "nan": lambda loss, g: (
        loss,
        [x.where(torch.arange(x.numel()).view(x.shape) != 3, torch.nan) for x in g],
    ),
    "nan loss": lambda loss, g: (loss * torch.nan, g),
}


def eager_only(case):
    """Without those that torch.compile makes: a compilation takes seconds, and one test elsewhere is about
    it."""
    return [c for c in contenders(case, CPU) if c.kind not in ("compile", "specification")]


@each_case
def test_truth_is_the_specification(case):
    inputs = make_inputs(case, CPU)
    exact = [x.detach().double().requires_grad_() for x in inputs.leaves]
    logits = F.linear(*exact) if case.hidden else exact[0]
    class_dim = 1 if case.layout == "map" else -1
    loss = _function(case)(
        logits, inputs.targets, inputs.labels, class_dim=class_dim, impl="reference", **_settings(case)
    )
    gradients = torch.autograd.grad(loss, exact)
    right, wrong = ("a", "a"), ("b", "b")
    found, truth = errors(
        case,
        inputs,
        {right: (loss.detach(), gradients), wrong: (loss.detach() + 1, [1.01 * g for g in gradients])},
    )
    assert truth.loss == pytest.approx(loss.item(), rel=1e-12)
    # Listed masses and tail are float32 and sum to one within its rounding, which the two treat differently.
    assert found[right].gradient < (2e-7 if case.targets == "topk" else 1e-12)
    assert found[wrong].loss == pytest.approx(1)
    assert 1e-5 < found[wrong].gradient < 1.1e-2


@each_case
def test_everybody_is_right(case):
    found = eager_only(case)
    judged = check(case, make_inputs(case, CPU), found)
    assert judged.left_out == {}
    assert judged.racing == found
    assert judged.errors.keys() == {c.name for c in found}


@each_case
@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_a_wrong_output_of_ours_ends_the_run(case, damage, monkeypatch):
    found = eager_only(case)
    mine = found[0].loss
    monkeypatch.setattr(
        checking,
        "both",
        lambda loss, inputs: damage(*both(loss, inputs)) if loss is mine else both(loss, inputs),
    )
    with pytest.raises(WrongOutput, match=r"^C=\d+ K=\d .*: fused \(\w+\) is wrong by .* allowed are"):
        check(case, make_inputs(case, CPU), found)


@pytest.mark.parametrize("damage", WRONG.values(), ids=WRONG)
def test_a_wrong_output_of_others_leaves_them_out(damage, monkeypatch):
    found = eager_only(CASES[0])
    (theirs,) = [c.loss for c in found if c.form == "log_target"]
    monkeypatch.setattr(
        checking,
        "both",
        lambda loss, inputs: damage(*both(loss, inputs)) if loss is theirs else both(loss, inputs),
    )
    judged = check(CASES[0], make_inputs(CASES[0], CPU), found)
    assert [c.form for c in found if c not in judged.racing] == ["log_target"]
    assert judged.left_out.keys() == {"eager (log_target)"}


@pytest.mark.parametrize(("times", "out"), [(3, set()), (5, {"eager (log_target)"})])
def test_others_may_be_a_little_further_off_than_ours(times, out, monkeypatch):
    found, inputs = eager_only(CASES[0]), make_inputs(CASES[0], CPU)
    (theirs,) = [c.loss for c in found if c.form == "log_target"]
    judged = check(CASES[0], inputs, found)
    off = torch.tensor(judged.truth.loss + times * judged.allowed.loss, dtype=torch.float64)
    monkeypatch.setattr(
        checking, "both", lambda loss, x: (off, both(loss, x)[1]) if loss is theirs else both(loss, x)
    )
    assert check(CASES[0], inputs, found).left_out.keys() == out


def test_the_measure_of_all_others_must_be_right_itself():
    found = [
        replace(c, loss=lambda x: 2 * F.kl_div(x.leaves[0], x.leaves[0].detach(), reduction="sum"))
        if c.name == NAIVE
        else c
        for c in eager_only(CASES[0])
    ]
    with pytest.raises(WrongOutput, match=r"eager \(kl_div\) is wrong"):
        check(CASES[0], make_inputs(CASES[0], CPU), found)


def test_plain_by_products_are_ours():
    case = Case(8, 12, 3, *FLOAT, statistics=True)
    inputs = make_inputs(case, CPU)
    _, plain = plain_loss(case)(*tensors(inputs))
    _, ours = distillation_loss(*inputs.leaves, inputs.targets, statistics=True, **_settings(case))
    torch.testing.assert_close(plain, torch.stack([*vars(ours).values()]), rtol=1e-5, atol=1e-6)


def failing(error):
    def loss(inputs):
        raise error

    return loss


def test_kernels_that_are_not_built_are_named_without_a_crash():
    first, *rest = eager_only(CASES[0])
    unbuilt = replace(first, loss=failing(NotImplementedError("no jsd\nException raised from")))
    judged = check(CASES[0], make_inputs(CASES[0], CPU), [unbuilt, *rest])
    assert judged.left_out == {first.title: "not implemented: no jsd"}
    assert judged.racing == rest
    with pytest.raises(RuntimeError, match="out of memory"):
        check(
            CASES[0],
            make_inputs(CASES[0], CPU),
            [replace(first, loss=failing(RuntimeError("out of memory"))), *rest],
        )
    theirs = Contender("liger", "kl_div", failing(RuntimeError("out of memory")))
    assert check(CASES[0], make_inputs(CASES[0], CPU), [first, *rest, theirs]).left_out == {
        "liger (kl_div)": "RuntimeError: out of memory"
    }


def test_the_loss_without_a_gradient_is_checked_too():
    case, inputs = CASES[1], make_inputs(CASES[1], CPU)
    judged = check(case, inputs, eager_only(case))
    for c in judged.racing:
        check_forward(case, c, inputs, judged)
        with pytest.raises(WrongOutput, match="without a gradient gives the loss"):
            check_forward(case, replace(c, loss=lambda x, loss=c.loss: loss(x) + 1e-3), inputs, judged)


def test_tolerance_is_near_the_rounding():
    case = Case(8, 1000, 2, *FLOAT)
    inputs = make_inputs(case, CPU)
    plain = next(c for c in contenders(case, CPU) if c.name == NAIVE)
    found, truth = errors(case, inputs, {NAIVE: both(plain.loss, inputs)})
    allowed = tolerance(found[NAIVE], case, truth)
    assert allowed.gradient < 4e-6
    assert allowed.loss < 4e-6 * max(1, truth.loss)
    assert tolerance(Errors(0.0, 0.0), replace(case, student="bfloat16"), truth).gradient == pytest.approx(
        2**-8, rel=1e-3
    )


def kl(p, log_p, log_q):
    return (p * (log_p - log_q)).sum() / len(p)


def jsd(beta, log_q, log_p):
    """Liger's, as its documentation defines it: 0 is the forward KL, 1 the reverse."""
    if beta in (0, 1):
        return kl(log_p.exp(), log_p, log_q) if beta == 0 else kl(log_q.exp(), log_q, log_p)
    log_m = (beta * log_p.exp() + (1 - beta) * log_q.exp()).log()
    return beta * kl(log_p.exp(), log_p, log_m) + (1 - beta) * kl(log_q.exp(), log_q, log_m)


def linear_jsd(beta, temperature, hidden, weight, teacher_hidden, teacher_weight, labels):
    return jsd(
        beta,
        F.log_softmax(hidden @ weight.t() / temperature, -1),
        F.log_softmax(teacher_hidden @ teacher_weight.t() / temperature, -1),
    )


STAND_INS = {  # Liger's modules, in plain torch: they need a GPU themselves
    "kl_div": SimpleNamespace(LigerKLDIVLoss=lambda reduction: partial(F.kl_div, reduction=reduction)),
    "tvd": SimpleNamespace(LigerTVDLoss=lambda: lambda q, p: (q - p).abs().sum() / 2 / len(q)),
    "jsd": SimpleNamespace(LigerJSD=lambda beta: partial(jsd, beta)),
    "fused_linear_jsd": SimpleNamespace(
        LigerFusedLinearJSD=lambda beta, temperature: partial(linear_jsd, beta, temperature)
    ),
}


@each_case
def test_liger_computes_the_same_loss(case, monkeypatch):
    monkeypatch.setattr(liger, "_module", STAND_INS.get)
    inputs = make_inputs(case, CPU)
    offered = [Contender("liger", form, loss) for form, loss in liger.losses(case)]
    assert check(case, inputs, [*eager_only(case), *offered]).left_out == {}
    one = case.members == 1 and isinstance(inputs.targets, EnsembleLogits)
    softmax = case.divergence != MULTILABEL
    assert bool(offered) == (
        one and softmax and not case.labels and not case.statistics and case.layout == "rows"
    )
    assert liger.Liger().contenders(case, CPU) == []


class Offering:
    """Peers that offer the same contenders for every case."""

    def __init__(self, *offered):
        self.offered = offered

    def contenders(self, case, device):
        return list(self.offered)

    def why_not(self, device):
        return "stand-in: left out"


@each_case
def test_quack_is_an_anchor(case, monkeypatch):
    """Checked against its own truth, timed with its own bytes, and in no ratio to ours."""
    monkeypatch.setattr(quack, "_function", lambda: F.cross_entropy)
    monkeypatch.setattr(quack, "_labels", lambda case, device: torch.arange(case.rows) % case.classes)
    monkeypatch.setattr(
        race,
        "contenders",
        lambda case, device, peers: [*eager_only(case), *peers[0].contenders(case, device)],
    )
    offered = quack.Quack().contenders(case, torch.device("cuda"))
    assert bool(offered) == (case.members == 1 and case.targets == case.student and not case.family)
    if not offered:
        return
    place = Cpu()
    place.cache_bytes = 0
    rows, left_out = race.run_case(case, place, 2, 0.0, [Offering(*offered)])
    assert left_out == []
    (row,) = [r for r in rows if r["implementation"] == "quack" and r["mode"] == race.MODES[0]]
    assert row["error"] is row["ratio_to_floor"] is None
    assert row["bytes"] == case.rows * (2 * case.classes * getattr(torch, case.student).itemsize + 8)
    assert all("quack" not in r["speedup"] for r in rows)
    wrong = replace(offered[0], loss=lambda inputs: 1.01 * offered[0].loss(inputs))
    rows, left_out = race.run_case(case, place, 2, 0.0, [Offering(wrong)])
    assert [(x["who"], "wrong by" in x["why"]) for x in left_out] == [("quack (cross_entropy)", True)]
    assert all(r["implementation"] != "quack" for r in rows)


def test_peers_take_part():
    case = CASES[0]
    extra = Contender("theirs", "kl_div", eager_only(case)[0].loss)
    assert contenders(case, CPU, [Offering(extra)]).count(extra) == 1


def test_quack_is_found_by_its_name(monkeypatch):
    gpu, peer = torch.device("cuda"), quack.Quack()
    monkeypatch.setitem(sys.modules, "quack", None)  # as if it weren't installed
    assert "isn't installed" in peer.why_not(gpu)
    assert "needs a GPU" in peer.why_not(CPU)
    assert peer.contenders(CASES[0], gpu) == []
    monkeypatch.setitem(sys.modules, "quack", SimpleNamespace(cross_entropy=F.cross_entropy))
    assert peer.why_not(gpu) is None
    assert peer.contenders(CASES[0], CPU) == []
