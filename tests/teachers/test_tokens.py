"""Language models as an ensemble, against the models themselves."""

import json

import numpy as np
import pytest
import torch
from token_models import C, gemma, llama, texts, whole

from ensdistill.cache import CacheMismatch, TargetCache, cache_targets
from ensdistill.data.tokens import TokenSequences
from ensdistill.teachers import tokens
from ensdistill.teachers.tokens import LanguageEnsemble, described_tokenizer, weights_of_positions


def of_models(models, sequences, place):
    """The models' own logits [K, M, C] at the positions of one sequence that count."""
    ids = torch.tensor([sequences[place]["input_ids"]])
    counted = torch.from_numpy(sequences.counted[place, : ids.shape[1]])
    with torch.no_grad():
        return torch.stack([model.eval()(input_ids=ids).logits[0, counted] for model in models])


@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize("positions", [7, 256])
def test_parts_are_the_models_own_logits(make, positions, monkeypatch):
    monkeypatch.setattr(tokens, "POSITIONS", positions)
    models, sequences = [make(1), make(2)], texts()
    ensemble = LanguageEnsemble(models, batch_size=5)
    parts = []
    for part in ensemble.predict_parts(sequences.rows.inputs[np.arange(12)]):
        assert part.is_contiguous()  # encoders would copy others
        parts.append(part.clone())
    assert max(part.shape[1] for part in parts) <= positions
    expected = torch.cat([of_models(models, sequences, place) for place in range(12)], 1)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)
    # A soft cap lies behind the output embeddings: such a model makes its logits itself.
    assert ensemble._through_head == dict.fromkeys(range(2), make is llama)


def test_a_cache_in_parts_is_that_of_whole_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "POSITIONS", 10)
    sequences, ensemble = texts(), LanguageEnsemble([llama(1), llama(2)], weights=[3, 1], batch_size=5)

    class Whole:
        weights, names, classes = ensemble.weights, ensemble.names, ensemble.classes
        combiner, predict_logits = ensemble.combiner, ensemble.predict_logits
        fingerprint = ensemble.fingerprint

    options = {"lengths": sequences.lengths, "codec": "draws-20", "mixture_at": 2.0, "shard_rows": 7}
    parts = cache_targets(ensemble, sequences.rows, tmp_path / "a", batch_size=4, **options)
    whole = cache_targets(Whole(), sequences.rows, tmp_path / "b", **options)
    np.testing.assert_array_equal(parts.gather_records(np.arange(12)), whole.gather_records(np.arange(12)))
    found, expected = (one.manifest["statistics"]["kl"] for one in (parts, whole))
    assert found["rows"] == expected["rows"] == sequences.lengths.sum()
    assert found["mean"] == pytest.approx(expected["mean"], rel=1e-6)
    assert TargetCache.open(parts.path).verify_against(ensemble, sequences.rows, share=1.0) == 12
    other = texts(seed=1)
    with pytest.raises(Exception, match="other"):
        cache_targets(
            ensemble, other.rows, tmp_path / "a", batch_size=4, **options | {"lengths": other.lengths}
        )


@pytest.mark.parametrize("weighting", ["confidence", "minimum_ce"])
def test_weights_of_positions(weighting):
    models, sequences = [llama(1), llama(2), llama(3)], texts(3)
    ensemble = LanguageEnsemble(models, weighting=weighting)
    assert (ensemble.names, ensemble.weights.tolist()) == (("mixture",), [1.0])
    found = whole(ensemble, sequences.rows.inputs[np.arange(3)])
    for place, of in enumerate(np.split(np.arange(found.shape[1]), np.cumsum(sequences.lengths)[:-1])):
        log_p = of_models(models, sequences, place).double().log_softmax(-1)
        ids = np.array(sequences[place]["input_ids"])
        follows = ids[np.flatnonzero(sequences.counted[place]) + 1]
        ce = -log_p[:, np.arange(len(of)), follows]
        if weighting == "minimum_ce":
            weights = (ce == ce.min(0).values).double()
        else:
            weights = (1 - torch.softmax(ce, 0)) / 2
        expected = (weights[..., None] * log_p.exp()).sum(0)
        torch.testing.assert_close(found[0, of].double().exp(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weights.sum(0), torch.ones(len(of), dtype=torch.float64))
    assert weights_of_positions(torch.ones(1, 4), "confidence").tolist() == [[1.0] * 4]


def test_sources_are_routed_to_their_member():
    sequences = texts(4, source="code")
    models = [llama(1), llama(2)]
    ensemble = LanguageEnsemble(models, names=["writer", "coder"], routes={"code": "coder"})
    found = whole(ensemble, sequences.rows.inputs[np.arange(4)])
    expected = torch.cat([of_models(models, sequences, place)[1] for place in range(4)])
    torch.testing.assert_close(found[0], expected.log_softmax(-1), rtol=1e-4, atol=1e-4)
    for wrong, words in (
        (texts(4, source="news"), "got none for 'news'"),
        (texts(4), "got none: give each dict"),
    ):
        with pytest.raises(ValueError, match=words):
            list(ensemble.predict_parts(wrong.rows.inputs[np.arange(4)]))


def test_padded_vocabularies_are_cut_by_name():
    padded, plain = llama(1, vocabulary=128), llama(2)
    with pytest.raises(ValueError, match=r"got member-1 128, member-2 120 columns: .*pass vocabulary="):
        LanguageEnsemble([padded, plain])
    with pytest.raises(ValueError, match="vocabulary: expected at most 120"):
        LanguageEnsemble([padded, plain], vocabulary=125)
    sequences = texts(2)
    found = LanguageEnsemble([padded], vocabulary=C).predict_logits(sequences.rows.inputs[np.arange(2)])
    assert found.shape == (1, 2, sequences.lengths.max(), C)
    torch.testing.assert_close(
        found[0, 0, : sequences.lengths[0]], of_models([padded], sequences, 0)[0, :, :C], rtol=1e-4, atol=1e-4
    )


def tokenizer(extra=()):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "a", "b", *extra]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=own)


def test_another_tokenizer_is_an_error_and_changes_the_fingerprint():
    models = [llama(1), llama(2)]
    with pytest.raises(
        ValueError, match=r"expected one vocabulary for all members.*that of member-2 differs"
    ):
        LanguageEnsemble(models, tokenizers=[tokenizer(), tokenizer(["c"])])
    prints = [
        LanguageEnsemble(models, tokenizers=[one, one]).fingerprint()
        for one in (tokenizer(), tokenizer(["c"]))
    ]
    chat = tokenizer()
    chat.chat_template = "{{ messages }}"
    prints += [LanguageEnsemble(models, tokenizers=[chat, chat]).fingerprint()]
    prints += [LanguageEnsemble([llama(1), llama(3)]).fingerprint(), LanguageEnsemble(models).fingerprint()]
    prints += [LanguageEnsemble([one.to(torch.bfloat16) for one in models]).fingerprint()]
    assert len({json.dumps(one, sort_keys=True) for one in prints}) == 6


def test_another_revision_of_a_tokenizer_is_another_and_a_call_is_not():
    from tokenizers import pre_tokenizers

    one, called, revised = tokenizer(), tokenizer(), tokenizer()
    called(["a b a", "b"], truncation=True, max_length=2)  # is kept in the tokenizer
    called.backend_tokenizer.enable_padding()
    assert called.backend_tokenizer.to_str() != one.backend_tokenizer.to_str()
    assert described_tokenizer(called) == described_tokenizer(one)
    revised.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    assert revised.get_vocab() == one.get_vocab()
    with pytest.raises(ValueError, match=r"expected one merges .* that of member-2 differs"):
        LanguageEnsemble([llama(1), llama(2)], tokenizers=[one, revised])


def test_a_teacher_of_another_precision_is_named(tmp_path):
    sequences, own = texts(), LanguageEnsemble([llama(1), llama(2)])
    options = {"lengths": sequences.lengths, "codec": f"topk-{C}", "mixture_at": 1.0}
    cache = cache_targets(own, sequences.rows, tmp_path / "c", **options)
    half = LanguageEnsemble([llama(1).to(torch.bfloat16), llama(2)])
    words = r"member-1: dtype: the cache has 'torch.float32', expected 'torch.bfloat16'"
    with pytest.raises(CacheMismatch, match=words):
        cache_targets(half, sequences.rows, tmp_path / "c", **options)
    with pytest.raises(CacheMismatch, match=r"log-probabilities apart by .* of which storing explains"):
        cache.verify_against(half, sequences.rows, share=1.0)
    changed = llama(1)
    changed.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(CacheMismatch, match=r"member-1: quantisation: the cache has 'none', expected .*4bit"):
        cache_targets(LanguageEnsemble([changed, llama(2)]), sequences.rows, tmp_path / "c", **options)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantize_per_tensor")
def test_a_quantised_teacher_predicts_with_its_own_layers():
    model = llama(1)
    layers = {torch.nn.Linear}
    quantised = torch.ao.quantization.quantize_dynamic(model, layers, dtype=torch.qint8)  # a packed weight
    sequences = texts(2)
    found = LanguageEnsemble([quantised]).predict_logits(sequences.rows.inputs[np.arange(2)])
    # Scales of this quantisation are those of a batch's numbers, so other batches have other predictions.
    apart = found[0, 0, : sequences.lengths[0]] - of_models([model], sequences, 0)[0]
    assert 1e-3 < apart.abs().max() < 0.5


@pytest.mark.parametrize(
    ("one", "words"),
    [
        ({"input_ids": [1, 130]}, "sequences: expected ids of the models' vocabulary of 120; got 130"),
        ({"input_ids": [1] * 70}, "sequences: expected at most 64 tokens, as member-1 has positions; got 70"),
    ],
)
def test_sequences_that_a_model_cannot_read_are_named(one, words):
    sequences = TokenSequences([one], 140)
    with pytest.raises(ValueError, match=words):
        next(LanguageEnsemble([llama(1)]).predict_parts(sequences.rows.inputs[np.arange(1)]))


def test_models_that_are_no_language_models_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"models: expected a language model .*; got Linear"):
        LanguageEnsemble([torch.nn.Linear(2, 2)])
    sequences = texts(2)
    options = {"codec": "topk-5", "mixture_at": 1.0}
    with pytest.raises(TypeError, match=r"rows: expected Rows; got TokenSequences: pass its \.rows"):
        cache_targets(LanguageEnsemble([llama(1)]), sequences, tmp_path / "c", **options)
    with pytest.raises(ValueError, match="of sequences pass lengths=, the positions of each"):
        cache_targets(LanguageEnsemble([llama(1)]), sequences.rows, tmp_path / "c", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["a"]}, "names: expected 2, one for each model; got 1"),
        ({"weights": [0, 0]}, "weights: expected numbers of at least 0 with a positive sum"),
        ({"weighting": "best"}, "weighting: expected one of given, confidence, minimum_ce; got 'best'"),
        ({"weighting": "confidence", "weights": [1, 2]}, "weighting: expected 'given' beside weights"),
        ({"routes": {"code": "coder"}}, "routes: expected members, member-1, member-2; got 'coder'"),
        ({"combiner": "sum"}, "combiner: expected one of"),
    ],
)
def test_bad_settings_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        LanguageEnsemble([llama(1), llama(2)], **options)
    with pytest.raises(ValueError, match="models: expected at least one"):
        LanguageEnsemble([])


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(2, 5, 9)], r"\[2, M, 120\]; got \[2, 5, 9\]"),
        ([(2, 3, C)], "records, the positions of these sequences; got 3"),
    ],
)
def test_wrong_parts_are_refused(tmp_path, shapes, words):
    ensemble, sequences = LanguageEnsemble([llama(1), llama(2)]), texts()
    ensemble.predict_parts = lambda inputs: (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=words):
        cache_targets(
            ensemble,
            sequences.rows,
            tmp_path / "c",
            lengths=sequences.lengths,
            codec="topk-5",
            mixture_at=1.0,
        )
