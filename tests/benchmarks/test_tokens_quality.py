"""The comparison of students of language models: its shares and intervals, and a comparison that was stopped."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from token_models import llama, texts

from benchmarks.tokens import command
from benchmarks.tokens.quality import AllClasses, Targets, by_sequence, compared
from ensdistill.teachers.tokens import LanguageEnsemble
from examples import tokens as example


def test_shares_of_the_gain_and_intervals():
    generator = np.random.default_rng(0)
    base = generator.uniform(3, 7, 200)
    chosen = [Targets("direct", "none"), Targets("all of it"), Targets("half of it"), Targets("worse")]
    students = [
        {
            "name": one.name,
            "seed": seed,
            "seconds": 2.0 + seed,
            "losses": (base + more + 0.01 * seed).tolist(),
        }
        for seed in range(3)
        for one, more in zip(chosen, (0.4, 0.0, 0.2, 0.5), strict=True)
    ]
    study = SimpleNamespace(losses=[base + 0.1], best=0, ensemble=base + 0.01)
    rows = {row["model"]: row for row in compared(study, students, chosen)}
    assert list(rows) == ["direct", "all of it", "half of it", "worse", "best member", "ensemble"]
    assert rows["direct"]["kept"] == 0
    assert rows["ensemble"]["kept"] == pytest.approx(1)
    assert rows["half of it"]["kept"] == pytest.approx(0.5)
    assert rows["worse"]["kept"] == pytest.approx(-0.25)
    assert rows["half of it"]["loss"] == pytest.approx(base.mean() + 0.21)
    assert rows["half of it"]["loss_by_seed"] == pytest.approx(base.mean() + 0.2 + 0.01 * np.arange(3))
    low, high = rows["half of it"]["kept_interval"]
    assert 0.45 < low <= 0.5 <= high < 0.55  # pairs of sequences: their own spread cancels
    low, high = rows["half of it"]["loss_interval"]
    assert high - low > 0.1
    assert rows["half of it"]["seconds"] == 3
    flat = [{**one, "losses": base.tolist()} for one in students]
    assert compared(study, flat, chosen)[1]["kept_interval"] is None  # no gain, of which nothing is a share


def test_losses_are_means_of_each_sequences_tokens():
    sequences, model = texts(3), llama(1)
    found = by_sequence(LanguageEnsemble([model]), sequences)
    for place in range(3):
        one = sequences[place]
        ids, labels = (torch.tensor([one[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            assert found[place] == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)


def test_online_members_give_their_mixture():
    models, student = [llama(1), llama(2)], llama(7)
    own = AllClasses(student, models)
    ids = torch.randint(0, 120, (2, 9), generator=torch.Generator().manual_seed(0))
    found = own.loss(student(input_ids=ids), ids)
    with torch.no_grad():
        p = torch.stack([one(input_ids=ids).logits.softmax(-1) for one in models]).mean(0)[:, :-1]
        log_q = student(input_ids=ids).logits.log_softmax(-1)[:, :-1]
    assert found.item() == pytest.approx((p * (p.log() - log_q)).sum(-1).mean().item(), rel=1e-4)
    found.backward()
    assert all(one.grad is None for one in models[0].parameters())


@pytest.fixture
def small(monkeypatch):
    """Tiny models, few texts and few kinds of targets."""
    gpt = example.gpt
    monkeypatch.setattr(example, "gpt", lambda width, layers, seed: gpt(width // 8, 1, seed))
    words = [f"word{i} of {i % 7} and {i % 5}" for i in range(400)]
    monkeypatch.setattr(example, "corpus", lambda: [" ".join(words[i : i + 30]) for i in range(0, 370, 5)])
    chosen = (Targets("direct", "none"), Targets("topk", codec="topk5-50", alpha=0.5), Targets("online"))
    monkeypatch.setattr(command, "TARGETS", chosen)
    return chosen


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(small, tmp_path, monkeypatch, capsys):
    words = ["--quality", "--steps", "2", "--seeds", "2", "--out", str(out := tmp_path / "r.json")]
    words += ["--work", str(tmp_path / "work")]
    train, steps = example.train, []

    def stops_at_eight(*arguments, **more):
        steps.append(None)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return train(*arguments, **more)

    monkeypatch.setattr(example, "train", stops_at_eight)
    with pytest.raises(KeyboardInterrupt):
        command.main(words, tmp_path)
    half = json.loads(out.read_text())[
        "quality"
    ]  # after three teachers and two students of two kinds of targets
    assert [row["model"] for row in half] == ["direct", "topk", "best member", "ensemble"]
    assert command.main(words, tmp_path) == 0
    assert len(steps) == 8 + 2
    result = json.loads(out.read_text())
    assert [len(row["loss_by_seed"]) for row in result["quality"]] == [2] * 5
    assert [row["loss_by_seed"] for row in result["quality"][:2]] == [row["loss_by_seed"] for row in half[:2]]
    assert result["quality"][1]["bytes_per_token"] == 112
    assert result["settings"]["seeds"] == 2
    assert "loss interval" in " ".join(capsys.readouterr().out.split())
    assert command.main(["--quality", "--steps", "3", *words[3:]], tmp_path) == 2
    assert "expected models of {'steps': 3" in capsys.readouterr().err.replace("\n", " ")
