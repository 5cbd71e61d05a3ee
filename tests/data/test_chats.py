"""Conversations by a tokenizer's chat template."""

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

from ensdistill.cache import cache_targets  # noqa: E402
from ensdistill.data.tokens import TokenSequences  # noqa: E402

WORDS = ["[UNK]", "<user>", "<assistant>", "<system>", "<end>", "hello", "you", "there", "bye", "who"]
APPENDS = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}> {% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }} <end>{%- endgeneration %}{% else %}{{ m['content'] }} <end>{% endif %} {% endfor %}"
)
DROPS = "{% for m in messages %}{% if not loop.last %}who {% endif %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
CHATS = [
    [
        {"role": "system", "content": "bye"},
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "hello you"},
        {"role": "user", "content": "who"},
        {"role": "assistant", "content": "you"},
    ],
    [{"role": "user", "content": "bye"}, {"role": "assistant", "content": "bye you there"}],
]


def tokenizer(template):
    from tokenizers import Tokenizer, models, pre_tokenizers

    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]")
    found.chat_template = template
    return found


@pytest.mark.parametrize("template", [APPENDS, MARKED])
def test_only_the_assistants_tokens_count(template):
    texts = TokenSequences.from_messages(CHATS, tokenizer(template), uids=np.array([4, 2]))
    for row, chat in enumerate(CHATS):
        words = [WORDS[i] for i in texts[row]["input_ids"]]
        own = [WORDS[i] for i in texts[row]["labels"] if i != -100]
        expected = [f"<{m['role']}> {m['content']} <end>" for m in chat]
        assert " ".join(words) == " ".join(expected)
        answers = [f"{m['content']} <end>" for m in chat if m["role"] == "assistant"]
        assert " ".join(own) == " ".join(answers)
    assert (texts.vocabulary, texts.uids.tolist()) == (len(WORDS), [4, 2])


def test_conversations_and_templates_that_do_not_serve_are_named():
    with pytest.raises(ValueError, match=r"tokenizer: expected one with a chat template; .* has none"):
        TokenSequences.from_messages(CHATS, tokenizer(None))
    with pytest.raises(ValueError, match=r"role assistant; conversation 1 has \['user'\]"):
        TokenSequences.from_messages([CHATS[0], CHATS[1][:1]], tokenizer(APPENDS))
    with pytest.raises(ValueError, match=r"conversation 0 the tokens before the end of message 2 depend"):
        TokenSequences.from_messages(CHATS, tokenizer(DROPS))


def test_another_template_is_another_tokenizer(tmp_path):
    from token_models import llama

    from ensdistill.hf import CachedDistillation
    from ensdistill.teachers.tokens import LanguageEnsemble

    own = tokenizer(APPENDS)
    texts = TokenSequences.from_messages(CHATS, own)
    ensemble = LanguageEnsemble([llama(1, vocabulary=len(WORDS))], tokenizers=[own])
    options = {"codec": "topk-10", "mixture_at": 1.0, "lengths": texts.lengths}
    cache = cache_targets(ensemble, texts.rows, tmp_path / "c", **options)
    student = llama(2, vocabulary=len(WORDS))
    CachedDistillation(student, cache, tokenizer=tokenizer(APPENDS))
    with pytest.raises(ValueError, match=r"tokenizer: expected .* its chat template is another"):
        CachedDistillation(llama(2, vocabulary=len(WORDS)), cache, tokenizer=tokenizer(MARKED))
    # Sequences of another template are other sequences, so the cache does not take them.
    other = TokenSequences.from_messages(CHATS, tokenizer(APPENDS.replace("<end>", "bye")))
    with pytest.raises(Exception, match="other"):
        cache_targets(ensemble, other.rows, tmp_path / "c", **options | {"lengths": other.lengths})
