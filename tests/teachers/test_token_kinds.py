"""Masked models and those of two parts as an ensemble, against the models themselves."""

import numpy as np
import pytest
import torch
from token_models import C, bart, bert, gemma, llama, masked_texts, own_logits, pairs, t5, texts, whole

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.data.tokens import TokenSequences
from ensdistill.teachers.language import kind_of
from ensdistill.teachers.token_scores import token_scores, top_positions
from ensdistill.teachers.tokens import LanguageEnsemble

KINDS = [(bert, masked_texts), (t5, pairs), (bart, pairs)]


@pytest.mark.parametrize(("make", "sequences"), KINDS)
def test_predictions_are_the_models_own(make, sequences):
    models, sequences = [make(1), make(2)], sequences()
    counted = sequences.counted.copy()
    counted[0, np.flatnonzero(counted[0])[1:2]] = False  # the decoder still reads what does not count
    sequences = sequences.only(counted)
    ensemble = LanguageEnsemble(models, batch_size=3)
    found = whole(ensemble, sequences.rows.inputs[np.arange(len(sequences))])
    with torch.no_grad():
        own = [[own_logits(one.eval(), sequences, i) for i in range(len(sequences))] for one in models]
    expected = torch.stack([torch.cat([logits for logits, _ in one]) for one in own])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert ensemble._through_head == dict.fromkeys(range(2), True)
    labels = torch.cat([labels for _, labels in own[0]])
    log_p = expected.double().log_softmax(-1)
    loss = -torch.logsumexp(log_p[:, torch.arange(len(labels)), labels], 0) + np.log(2)
    np.testing.assert_allclose(token_scores(ensemble, sequences), loss, rtol=1e-4, atol=1e-5)


def test_a_cache_of_each_kind_is_verified(tmp_path):
    for make, sequences in KINDS:
        ensemble, texts_of = LanguageEnsemble([make(1)]), sequences()
        options = {"lengths": texts_of.lengths, "codec": f"topk-{C}", "mixture_at": 1.0}
        cache = cache_targets(ensemble, texts_of.rows, tmp_path / make.__name__, **options)
        assert TargetCache.open(cache.path).verify_against(ensemble, texts_of.rows, share=1.0) == len(
            texts_of
        )


def test_kinds_are_those_of_the_models_and_fit_their_sequences():
    assert [kind_of(make(1)) for make in (llama, bert, t5, bart)] == [
        "causal",
        "masked",
        "seq2seq",
        "seq2seq",
    ]
    with pytest.raises(ValueError, match="models: expected one kind; member-1 is masked, member-2 causal"):
        LanguageEnsemble([bert(1), llama(1)])
    for make, wrong, got in ((bert, texts, "causal"), (llama, masked_texts, "masked"), (t5, texts, "causal")):
        with pytest.raises(ValueError, match=f"sequences: expected .* of the models' kind; got {got}"):
            next(LanguageEnsemble([make(1)]).predict_parts(wrong().rows.inputs[np.arange(2)]))


@pytest.mark.parametrize("combiner", ["prob", "logit"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scores_are_those_of_the_mixture(combiner, temperature, monkeypatch):
    monkeypatch.setattr("ensdistill.teachers.token_scores.NUMBERS", 5 * C)
    models, sequences = [llama(1), llama(2), gemma(3)], texts()
    weights = np.array([0.6, 0.3, 0.1])
    ensemble = LanguageEnsemble(models, weights=weights, combiner=combiner, batch_size=5)
    own, labels = [], []
    with torch.no_grad():
        for i in range(len(sequences)):
            logits = torch.stack([own_logits(one.eval(), sequences, i)[0] for one in models]).double()
            own.append(logits / temperature)
            labels.append(own_logits(models[0], sequences, i)[1])
    logits, labels = torch.cat(own, 1).numpy(), torch.cat(labels).numpy()
    if combiner == "prob":
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        p = (weights[:, None, None] * p).sum(0)
    else:
        mean = np.exp((weights[:, None, None] * logits).sum(0))
        p = mean / mean.sum(-1, keepdims=True)
    expected = {"loss": -np.log(p[np.arange(len(p)), labels]), "entropy": -(p * np.log(p)).sum(-1)}
    for by, values in expected.items():
        options = {"by": by, "temperature": temperature, "batch_size": 7}
        np.testing.assert_allclose(token_scores(ensemble, sequences, **options), values, rtol=1e-4, atol=1e-4)
        fewer = top_positions(ensemble, sequences, share=0.4, **options)
        assert fewer.lengths.tolist() == [int(np.ceil(0.4 * n - 1e-9)) for n in sequences.lengths]
        begin = 0
        for row, size in enumerate(sequences.lengths):
            scores = values[begin : begin + size]
            kept = fewer.counted[row][sequences.counted[row]]
            assert scores[kept].min() >= scores[~kept].max(initial=-1) - 1e-4
            begin += size
        assert not (fewer.counted & ~sequences.counted).any()
        assert (fewer.uids == sequences.uids).all()


def test_shares_and_scores_that_do_not_exist_are_named():
    ensemble, sequences = LanguageEnsemble([llama(1)]), texts(2)
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"share: expected a number above 0 and at most 1; got"):
            top_positions(ensemble, sequences, share=share)
    with pytest.raises(ValueError, match="by: expected one of entropy, loss; got 'kl'"):
        top_positions(ensemble, sequences, by="kl")
    with pytest.raises(ValueError, match="temperature: expected a number above 0; got 0"):
        token_scores(ensemble, sequences, temperature=0)
    assert (top_positions(ensemble, sequences, share=1.0).counted == sequences.counted).all()


def test_sequences_of_other_kinds_are_checked():
    for one, kind, words in (
        ({"input_ids": [3, 4]}, "masked", "expected labels of masked sequences; sequence 0 has none"),
        ({"input_ids": [3, 4], "labels": [-100]}, "masked", "2 tokens and 1 labels"),
        ({"input_ids": [3, 4], "labels": [-100, -100]}, "masked", "its labels are all -100"),
        ({"input_ids": [3], "labels": [5, 12]}, "seq2seq", "expected ids of a vocabulary of 10; .* has 12"),
        (
            {"input_ids": [3], "labels": [5, -100, 2]},
            "seq2seq",
            "only at the end, .* sequence 0 has one at 1",
        ),
        ({"input_ids": [3], "labels": [-100]}, "seq2seq", "sequence 0 has none"),
    ):
        with pytest.raises(ValueError, match=words):
            TokenSequences([one], 10, kind=kind)
    with pytest.raises(ValueError, match="kind: expected one of causal, masked, seq2seq; got 'prefix'"):
        TokenSequences([{"input_ids": [1, 2]}], 10, kind="prefix")
    both = TokenSequences([{"input_ids": [3], "labels": [5, 6, 7, -100]}], 10, kind="seq2seq")
    fewer = both.only(np.array([[True, False, True]]))
    assert fewer[0] == {"input_ids": [3], "labels": [5, -100, 7], "decoder_labels": [5, 6, 7], "uid": 0}
