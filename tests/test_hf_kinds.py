"""Students of each kind of language model learn from a cache: gradients by hand, training, resuming."""

import numpy as np
import pytest
import torch
from token_models import C, bart, bert, masked_texts, own_logits, pairs, t5, trainer

from ensdistill.cache import cache_targets
from ensdistill.functional import distillation_loss
from ensdistill.hf import CachedDistillation
from ensdistill.teachers.tokens import LanguageEnsemble


@pytest.mark.parametrize(("make", "sequences"), [(bert, masked_texts), (t5, pairs), (bart, pairs)])
def test_gradients_are_those_of_the_sequences_alone(make, sequences, tmp_path):
    sequences = sequences()
    if make is t5:  # fewer positions count than the decoder reads
        counted = sequences.counted.copy()
        counted[:, 1] = False
        sequences = sequences.only(counted)
    options = {"lengths": sequences.lengths, "codec": f"topk-{C}", "mixture_at": 2.0}
    cache = cache_targets(LanguageEnsemble([make(1), make(2)]), sequences.rows, tmp_path / "c", **options)
    model, places = make(7).train(), [0, 3, 5]
    total, count = 0.0, 0
    for place in places:
        logits, labels = own_logits(model, sequences, place)
        targets = cache.gather(np.array([place]))
        loss = distillation_loss(logits, targets, labels, alpha=0.7, temperature=2.0, reduction="sum")
        total, count = total + loss, count + len(labels)
    (total / count).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    distil = CachedDistillation(model, cache, alpha=0.7, temperature=2.0)
    assert distil.fused
    batch = distil.collate([sequences[place] for place in places])
    labels = batch.pop("labels")
    loss = distil.loss(model(**batch), labels)
    loss.backward()
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)
    # An evaluation's loss is that of the model itself.
    held = [{k: v for k, v in sequences[place].items() if k != "uid"} for place in places]
    model.eval()
    batch = distil.collate(held)
    labels, own = batch.pop("labels"), torch.cat([own_logits(make(7), sequences, p)[0] for p in places])
    answers = torch.cat([own_logits(make(7), sequences, p)[1] for p in places])
    found = distil.loss(model(**batch), labels)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(own, answers), rtol=1e-4, atol=1e-5)


def test_a_student_of_two_parts_trains_in_the_trainer(tmp_path):
    sequences = pairs(12)
    cache = cache_targets(
        LanguageEnsemble([t5(1)]),
        sequences.rows,
        tmp_path / "c",
        lengths=sequences.lengths,
        codec="topk5-60",
        mixture_at=1.0,
    )
    own = trainer(tmp_path / "out", t5(9), cache, sequences, max_steps=12, save_strategy="no")
    own.train()
    losses = [float(one["loss"]) for one in own.state.log_history if "loss" in one]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
