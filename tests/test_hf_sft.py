"""TRL's ``SFTTrainer`` takes the steps of transformers' ``Trainer`` from a cache."""

import warnings

import pytest
import torch
from docs_blocks import blocks, run
from token_models import C, cached, llama, texts, trainer, transformers

from ensdistill.hf import CachedDistillation

datasets = pytest.importorskip("datasets", reason="SFTTrainer takes data sets of the package datasets")
trl = pytest.importorskip("trl", reason="SFTTrainer is of the package trl")
SAME = {"max_steps": 3, "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e9}
SAME |= {"per_device_train_batch_size": 4, "logging_steps": 1, "report_to": [], "use_cpu": True}


@pytest.fixture(scope="module")
def sequences():
    return texts()


@pytest.fixture(scope="module")
def cache(sequences, tmp_path_factory):
    return cached(sequences, tmp_path_factory.mktemp("tokens") / "cache")


def tokenizer():
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(C)}
    own = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, eos_token="w1", pad_token="w2")


def sft(kind, folder, cache, sequences, **more):
    """A trainer in the lines of the documentation."""
    student = llama(7)
    distil = CachedDistillation(student, cache, temperature=2.0)
    prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
    args = trl.SFTConfig(str(folder), bf16=False, disable_tqdm=True, **{**prepared, **SAME, **more})
    data = datasets.Dataset.from_list(list(sequences))
    return kind(student, args, **distil.arguments, train_dataset=data, processing_class=tokenizer())


def test_the_lines_of_the_page(cache, sequences, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"student": llama(7), "cache": cache, "texts": sequences, "tokenizer": tokenizer()}
    names |= {"CachedDistillation": CachedDistillation}
    (block,) = blocks("tokens", "py")
    short = 'SFTConfig("sft", max_steps=1, bf16=False, use_cpu=True, report_to=[], disable_tqdm=True,'
    changed = {'SFTConfig("sft",': short, "alpha=0.9": "temperature=2.0"}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*compute_loss_func. is deprecated", category=FutureWarning
        )
        run("tokens", [block], names, **changed)
    assert len(block.strip().splitlines()) - block.count("import") - 1 <= 5
    before = llama(7).lm_head.weight
    assert (names["student"].lm_head.weight - before).abs().max() > 0


class Once(trl.SFTTrainer):
    """Without TRL's second forward pass, which is for its metrics."""

    compute_loss = transformers.Trainer.compute_loss


@pytest.mark.parametrize("kind", [trl.SFTTrainer, Once])
def test_the_steps_are_those_of_the_trainer(kind, cache, sequences, tmp_path):
    expected = llama(7)
    own = trainer(tmp_path / "a", expected, cache, sequences, **SAME)
    own.train()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*compute_loss_func. is deprecated", category=FutureWarning
        )
        other = sft(kind, tmp_path / "b", cache, sequences)
    other.train()
    losses = [[float(one["loss"]) for one in of.state.log_history if "loss" in one] for of in (own, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] > 0
    for one, found in zip(expected.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*compute_loss_func:FutureWarning")
def test_what_the_trainer_changes_is_refused(cache, sequences, tmp_path):
    cut = sft(trl.SFTTrainer, tmp_path, cache, sequences, dataset_kwargs=None, max_length=5)
    with pytest.raises(ValueError, match=r"features: expected .* tokens to predict in the sequence of uid"):
        cut.train()
    packed = sft(
        trl.SFTTrainer,
        tmp_path,
        cache,
        sequences,
        dataset_kwargs=None,
        packing=True,
        packing_strategy="wrapped",
        max_length=16,
    )
    with pytest.raises(ValueError, match="batch: expected targets in training; got none"):
        packed.train()
