"""Targets of a cache in the trainer of Hugging Face."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from token_models import C, bert, gemma, llama, texts, trainer

from ensdistill.cache import cache_targets
from ensdistill.functional import distillation_loss
from ensdistill.hf import CachedDistillation, SameTargets
from ensdistill.teachers.token_scores import token_scores
from ensdistill.teachers.tokens import LanguageEnsemble


@pytest.fixture(scope="module")
def sequences():
    return texts()


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["topk5-20", slow("topk-20"), slow("draws-30")])
def cache(request, sequences, tmp_path_factory):
    ensemble = LanguageEnsemble([llama(1), llama(2)])
    path = tmp_path_factory.mktemp("tokens") / "cache"
    options = {"codec": request.param, "mixture_at": 2.0, "lengths": sequences.lengths}
    return cache_targets(ensemble, sequences.rows, path, **options)


def by_hand(model, sequences, cache, places, alpha):
    """The mean loss over tokens, of each sequence alone and without padding."""
    total, count = 0.0, 0
    for place in places:
        ids = torch.tensor([sequences[place]["input_ids"]])
        counted = torch.from_numpy(sequences.counted[place, : ids.shape[1]])
        logits, follows = model(input_ids=ids).logits[0, counted], ids[0, 1:][counted[:-1]]
        targets = cache.gather(np.array([place]))
        total = total + distillation_loss(
            logits, targets, follows, alpha=alpha, temperature=2.0, reduction="sum"
        )
        count += len(follows)
    return total / count


@pytest.mark.parametrize("make", [llama, gemma])
def test_loss_and_gradients_are_those_of_the_sequences_alone(make, cache, sequences):
    model = make(7)
    places = [0, 3, 4, 9]
    by_hand(model.train(), sequences, cache, places, 0.7).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    value = by_hand(model, sequences, cache, places, 0.7).item()
    model.zero_grad()
    distil = CachedDistillation(model, cache, alpha=0.7, temperature=2.0)
    assert distil.fused == (make is llama)
    batch = distil.collate([sequences[place] for place in places])
    labels = batch.pop("labels")
    outputs = model(**batch)
    assert outputs.logits.numel() == 1 if distil.fused else outputs.logits.shape[-1] == C
    loss = distil.loss(outputs, labels)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-5)
    for name, (parameter, own) in zip(
        dict(model.named_parameters()), zip(model.parameters(), expected, strict=True), strict=True
    ):
        torch.testing.assert_close(parameter.grad, own, rtol=1e-4, atol=1e-6, msg=name)
    # Without targets the model is as it was.
    ids = torch.arange(9)[None]
    other = make(7)
    torch.testing.assert_close(model.eval()(input_ids=ids).logits, other.eval()(input_ids=ids).logits)


def test_accumulated_batches_are_one_batch_by_tokens(cache, sequences, tmp_path):
    found = {}
    for name, size, parts in (("whole", 12, 1), ("parts", 3, 4)):
        model = llama(7)
        own = trainer(
            tmp_path / name,
            model,
            cache,
            sequences,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            optim="sgd",
            max_grad_norm=1e9,
        )
        own.train()
        found[name] = [p.detach().clone() for p in model.parameters()], own.state.log_history[0]["loss"]
    for one, other in zip(found["whole"][0], found["parts"][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert float(found["whole"][1]) == pytest.approx(float(found["parts"][1]), rel=1e-3)


def test_a_training_learns_resumes_and_refuses_another_cache(sequences, tmp_path):
    caches = [
        cache_targets(
            LanguageEnsemble([llama(seed)]),
            sequences.rows,
            tmp_path / str(seed),
            codec="topk5-20",
            mixture_at=2.0,
            lengths=sequences.lengths,
        )
        for seed in (1, 2)
    ]
    whole = llama(7, scale=1.0)
    own = trainer(tmp_path / "whole", whole, caches[0], sequences, gradient_checkpointing=True)
    own.train()
    losses = [float(one["loss"]) for one in own.state.log_history if "loss" in one]
    assert losses[-1] < losses[0]
    again = llama(8, scale=1.0)
    trainer(tmp_path / "whole", again, caches[0], sequences).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3")
    )
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="learned from targets of other members"):
        trainer(tmp_path / "whole", llama(8), caches[1], sequences).train(
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3")
        )
    held = texts(4, seed=5)  # of one batch, because the trainer averages those
    evaluated = own.evaluate(held.without_uids())
    expected = token_scores(LanguageEnsemble([whole]), held).mean()
    assert evaluated["eval_loss"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match=r"pass eval_dataset=texts\.without_uids\(\)"):
        own.evaluate(held)


def test_bad_batches_and_models_are_named(cache, sequences):
    model = llama(7)
    distil = CachedDistillation(model, cache)
    cut = dict(sequences[4])
    cut |= {name: cut[name][:-1] for name in ("input_ids", "labels")}
    with pytest.raises(ValueError, match=r"tokens to predict in the sequence of uid 4, as in the cache; got"):
        distil.collate([sequences[0], cut])
    other = {**sequences[4], "input_ids": [*sequences[4]["input_ids"][:-1], 1]}
    other["labels"] = [*other["labels"][:-1], 1]
    with pytest.raises(ValueError, match=r"from which the cache was made under the uid 4; got other tokens"):
        distil.collate([sequences[0], other])
    with pytest.raises(ValueError, match="features: expected a uid of each, or of none"):
        distil.collate([sequences[0], {"input_ids": [1, 2]}])
    with pytest.raises(ValueError, match="model: expected a causal one, as the members; got masked"):
        CachedDistillation(bert(1), cache)
    with pytest.raises(TypeError, match=r"model: expected a language model .*; got Linear"):
        CachedDistillation(torch.nn.Linear(2, 2), cache)
    with pytest.raises(ValueError, match=r"model: expected the cache's vocabulary, 120 tokens; .* have 100"):
        CachedDistillation(llama(1, vocabulary=100), cache)


def test_a_second_distillation_takes_the_place_of_the_first(cache, sequences):
    model = llama(7)
    plain = model(input_ids=torch.arange(9)[None]).logits
    first = CachedDistillation(model, cache, temperature=2.0)
    second = CachedDistillation(model, cache, temperature=2.0)
    batch = second.collate([sequences[0], sequences[3]])
    labels = batch.pop("labels")
    assert second.loss(model(**batch), labels).item() > 0
    assert first._batch is None
    second.remove()
    assert "forward" not in vars(model.lm_head)
    assert not model._forward_pre_hooks
    torch.testing.assert_close(model(input_ids=torch.arange(9)[None]).logits, plain)


def test_a_trainer_that_drops_the_uid_is_refused(cache, sequences, tmp_path):
    own = trainer(tmp_path, llama(7), cache, sequences, remove_unused_columns=True)
    with pytest.raises(ValueError, match=r"have no uid: .* with remove_unused_columns=False"):
        own.train()


def test_copies_of_the_model_in_threads_are_refused(cache):
    arguments = SimpleNamespace(n_gpu=2, output_dir="out")
    with pytest.raises(ValueError, match="args: expected a process for each GPU; got one with 2"):
        SameTargets(cache).on_train_begin(arguments, SimpleNamespace(global_step=0), None)


def test_caches_of_samples_or_of_all_classes_are_refused(sequences, tmp_path):
    ensemble = LanguageEnsemble([llama(1)])
    dense = cache_targets(ensemble, sequences.rows, tmp_path / "dense", lengths=sequences.lengths)
    with pytest.raises(ValueError, match="cache: expected topk-N, topkB-N, counts-N or draws-N"):
        CachedDistillation(llama(2), dense).collate([sequences[0]])


class Adapted(torch.nn.Linear):
    """With more weights than its ``weight``, as an adapter adds them."""

    def __init__(self, inner):
        super().__init__(*inner.weight.shape[::-1], bias=False)
        self.weight, self.more = inner.weight, torch.nn.Parameter(torch.zeros_like(inner.weight))

    def forward(self, hidden):
        return super().forward(hidden) + hidden @ self.more.T


def test_an_adapter_in_the_output_embeddings_learns(cache, sequences):
    model = llama(3)
    model.lm_head = Adapted(model.lm_head)
    distil = CachedDistillation(model, cache, temperature=2.0)
    batch = distil.collate([sequences[0], sequences[1]])
    labels = batch.pop("labels")
    distil.loss(model(**batch), labels).backward()
    assert model.lm_head.more.grad.abs().max() > 0


def test_a_padded_student_learns_the_caches_tokens(cache, sequences):
    model = llama(3, vocabulary=128)
    distil = CachedDistillation(model, cache, temperature=2.0)
    assert not distil.fused
    batch = distil.collate([sequences[0], sequences[1]])
    labels = batch.pop("labels")
    loss = distil.loss(model(**batch), labels)
    loss.backward()
    assert loss.item() > 0
    assert model.get_output_embeddings().weight.grad[C:].abs().max() == 0
