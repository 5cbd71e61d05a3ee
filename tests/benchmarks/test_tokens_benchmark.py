"""The benchmark of language models: its own computations, and caches and steps that it refuses to time."""

import json

import numpy as np
import pytest
import torch
from token_models import C, llama

from benchmarks.tokens import caching, command, memory, paper, training
from ensdistill.loss.targets import TopK
from ensdistill.teachers.tokens import LanguageEnsemble


def equal_length():
    """Sequences of ten tokens, as those of the benchmark are of one length."""
    from ensdistill.data.tokens import TokenSequences

    ids = np.random.default_rng(0).integers(0, C, (14, 10))
    return TokenSequences([{"input_ids": one} for one in ids], C)


def test_rates_and_losses_of_codecs(tmp_path):
    ensemble, sequences = LanguageEnsemble([llama(1), llama(2)]), equal_length()
    notes = []
    rows = caching.rates(ensemble, sequences, ["topk5-20", "draws-12"], 2, tmp_path, notes.append)
    assert [(row["codec"], row["vocabulary"]) for row in rows] == [("topk5-20", C), ("draws-12", C)]
    assert all(row["tokens_per_s"] > 0 and row["of_it_teachers"] > 0 for row in rows)
    found = caching.losses(ensemble, sequences, [f"topk-{C}", "topk-20", "topk4-20", "counts-12"], tmp_path)
    kl = {row["codec"]: row["kl_mean"] for row in found}
    assert 0 <= kl[f"topk-{C}"] < 1e-5 < kl["topk-20"] < kl["topk4-20"] < kl["counts-12"]
    assert not list(tmp_path.iterdir())
    assert len(notes) == 2


def test_a_cache_of_another_ensemble_is_refused(tmp_path, monkeypatch):
    sequences, other = equal_length(), LanguageEnsemble([llama(5)])
    own = caching.written
    monkeypatch.setattr(caching, "written", lambda ensemble, *rest: own(other, *rest))
    with pytest.raises(caching.WrongTargets, match=r"topk-20: the manifest has a mean KL of .*computation"):
        caching.losses(LanguageEnsemble([llama(1)]), sequences, ["topk-20"], tmp_path)


def test_the_rest_is_spread_evenly():
    stored = TopK(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.3]]).log(), torch.tensor([0.2]).log(), 1.0, 4)
    torch.testing.assert_close(
        caching.reconstructed(stored, 4).exp(), torch.tensor([[0.3, 0.1, 0.5, 0.1]], dtype=torch.float64)
    )


def test_steps_of_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "student", lambda: llama(9))
    monkeypatch.setattr(training, "WARM", 1)
    models, sequences = [llama(1), llama(2)], equal_length()
    ensemble = LanguageEnsemble(models)
    assert training.check(ensemble, sequences, tmp_path) < training.CLOSE
    cache, _ = caching.written(ensemble, sequences, f"topk-{C}", tmp_path / "cache")
    rows = training.measure(ensemble, cache, sequences, 3, 1, lambda line: None)
    assert [row["way"] for row in rows] == [training.CACHED, training.ONLINE, training.TRL]
    assert rows[0]["last_loss"] == pytest.approx(rows[1]["last_loss"], rel=1e-2)
    assert 0 < rows[0]["of_it_reading"] < 1
    assert "missing" in rows[2] or rows[2]["tokens_per_s"] > 0
    wrong = LanguageEnsemble(models[:1])
    wrong.models = [llama(3)]
    own = training.written
    monkeypatch.setattr(training, "written", lambda given, *rest: own(ensemble, *rest))
    with pytest.raises(training.WrongTargets, match=r"from a cache of all classes is .*; that of the online"):
        training.check(wrong, sequences, tmp_path / "other")


def test_bytes_and_hours_on_paper():
    caching_row = {"vocabulary": C, "codec": "topk-5", "tokens_per_s": 1e5, "bytes_per_token": 120}
    steps = [{"way": "cached", "tokens_per_s": 1e6}, {"way": "gone", "missing": "none"}]
    one, other = paper.on_paper([caching_row], steps)
    assert (one["terabytes"], round(one["hours"]), one["machines_for_a_week"]) == (12, 278, 2)
    assert (other["what"], round(other["hours"])) == ("one epoch, cached", 28)


@pytest.mark.slow
def test_a_quick_run_has_every_part(tmp_path, capsys):
    out = tmp_path / "r.json"
    words = ["--quick", "--steps", "2", "--scratch", str(tmp_path / "scratch"), "--out", str(out)]
    assert command.main(words, tmp_path) == 0
    result = json.loads(out.read_text())
    assert {row["vocabulary"] for row in result["caching"]} == {8192, 32_768, 151_936}
    assert [row["codec"] for row in result["losses"]] == list(caching.FEW)
    assert result["training"][0]["mb_peak"] > 100
    assert result["training"][1]["mb_of_steps"] > result["training"][0]["mb_of_steps"]
    assert {row["what"] for row in result["on paper"]} >= {"caching", f"one epoch, {training.CACHED}"}
    assert not list((tmp_path / "scratch").iterdir())
    assert "terabytes" in capsys.readouterr().out


@pytest.mark.slow
def test_the_process_that_measures_memory_names_its_failure(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)online teachers: the process .* failed: .*sequences.npz"):
        memory.measured(tmp_path, training.ONLINE, 1)
