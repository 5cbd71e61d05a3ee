"""Log-probabilities from servers, against the model that they are of."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_tokens import tokenizer
from token_models import C, llama, texts

from ensdistill.cache import cache_targets
from ensdistill.hf import CachedDistillation
from ensdistill.teachers.logprobs import ServedLogProbs
from ensdistill.teachers.tokens import LanguageEnsemble

K = 10


def as_vllm(model, sequences):
    """The answers of a server with ``prompt_logprobs``: the K likeliest tokens, and the prompt's own."""
    found = []
    for place in range(len(sequences)):
        ids = sequences[place]["input_ids"]
        with torch.no_grad():
            log_p = model.eval()(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        entries = [None]
        for position, token in enumerate(ids[1:]):
            top = log_p[position].topk(K).indices.tolist()
            own = {t: {"logprob": log_p[position, t].item(), "rank": 1} for t in {*top, token}}
            entries.append({str(t): value for t, value in own.items()})
        found.append({"prompt_token_ids": ids, "prompt_logprobs": entries})
    return found


def plain_texts():
    sequences = texts(6)
    sequences.counted[:] = np.arange(sequences.width) < sequences.sizes[:, None] - 1  # no prompt is left out
    return sequences


def test_targets_from_a_server_are_those_of_the_model(tmp_path):
    model, sequences = llama(1), plain_texts()
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, as_vllm(model, sequences))))
    served = ServedLogProbs.from_vllm(file, C)
    options = {"codec": f"topk-{K}", "mixture_at": 1.0, "lengths": sequences.lengths}
    own = cache_targets(LanguageEnsemble([model]), sequences.rows, tmp_path / "own", **options)
    cache = cache_targets(served, served.rows, tmp_path / "served", **options)
    assert cache.verify_against(served, served.rows, share=1.0) == 6
    ids = np.arange(6)
    found, expected = cache.gather(ids), own.gather(ids)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found.tail_log_mass, expected.tail_log_mass, rtol=1e-3, atol=1e-3)
    student = llama(2)
    distil = CachedDistillation(student, cache)
    batch = distil.collate([served.sequences[0], served.sequences[3]])
    labels = batch.pop("labels")
    assert distil.loss(student(**batch), labels).item() > 0


def test_answers_are_json_or_vllms_own_objects():
    found = as_vllm(llama(1), plain_texts())
    objects = [
        SimpleNamespace(
            prompt_token_ids=one["prompt_token_ids"],
            prompt_logprobs=[
                known and {int(token): SimpleNamespace(**value) for token, value in known.items()}
                for known in one["prompt_logprobs"]
            ],
        )
        for one in found
    ]
    prints = [ServedLogProbs.from_vllm(answers, C).fingerprint() for answers in (found, objects)]
    assert prints[0] == prints[1]


def test_answers_of_texts():
    own = tokenizer(["c"])  # [UNK], a, b, c
    choice = {
        "logprobs": {
            "content": [
                {
                    "token": text,
                    "logprob": np.log(0.5),
                    "top_logprobs": [
                        {"token": text, "logprob": np.log(0.5)},
                        {"token": "c", "logprob": np.log(0.25)},
                        {"token": "?", "logprob": np.log(0.01)},
                    ],
                }
                for text in ("a", "b")
            ]
        }
    }
    served = ServedLogProbs.from_openai([choice], own, [[3, 3]])
    assert served.sequences[0]["labels"] == [-100, -100, 1, 2]
    (found,) = served.predict_parts(served.rows.inputs[np.arange(1)])
    np.testing.assert_allclose(
        found[0].exp(), [[0.125, 0.5, 0.125, 0.25], [0.125, 0.125, 0.5, 0.25]], rtol=1e-6
    )
    by_id = json.loads(json.dumps(choice).replace('"c"', '"token_id:3"').replace('"a"', '"token_id:1"'))
    other = ServedLogProbs.from_openai([by_id], own, [[3, 3]])  # of vLLM with return_tokens_as_token_ids
    assert other.fingerprint() == served.fingerprint()
    with pytest.raises(ValueError, match="prompts: expected 1, one for each answer; got 2"):
        ServedLogProbs.from_openai([choice], own, [[3], [3]])
    choice["logprobs"]["content"][0]["token"] = "z"
    with pytest.raises(ValueError, match="answer 0 has 'z', and no token has it"):
        ServedLogProbs.from_openai([choice], own, [[3, 3]])
    with pytest.raises(ValueError, match=r"expected logprobs\.content; answer 0 has none"):
        ServedLogProbs.from_openai([{"logprobs": None}], own, [[3]])


def entry(**log_p):
    return {token.removeprefix("t"): {"logprob": value} for token, value in log_p.items()}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"prompt_token_ids": [1, 2]}, r"expected prompt_logprobs; answer 0 has \['prompt_token_ids'\]"),
        ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None]}, "answer 0 has 2 tokens and 1 of them"),
        (
            {"prompt_token_ids": [1, 99], "prompt_logprobs": [None, entry(t5=-1)]},
            "vocabulary of 10; sequence 0 has 99",
        ),
        (
            {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, entry(t50=-1)]},
            "vocabulary of 10; sequence 0 has 50",
        ),
        (
            {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, entry(t5=-0.1, t6=-0.1)]},
            "sum to 1.81: they are of",
        ),
        ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None, entry(t5=float("nan"))]}, "sum to nan"),
        ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {}]}, "expected a token at each position"),
    ],
)
def test_bad_answers_are_named(answer, words):
    with pytest.raises(ValueError, match=words):
        ServedLogProbs.from_vllm([answer], 10)
