"""Features of the trainer: compiled students, adapters, checkpointed activations, two processes."""

import os
import socket

import pytest
import torch
from token_models import bert, cached, llama, masked_texts, texts, trainer
from torch import multiprocessing

from ensdistill.cache import TargetCache, cache_targets
from ensdistill.teachers.tokens import LanguageEnsemble

SAME = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e9, "max_steps": 2, "save_strategy": "no"}


@pytest.fixture(scope="module")
def sequences():
    return texts()


@pytest.fixture(scope="module")
def cache(sequences, tmp_path_factory):
    return cached(sequences, tmp_path_factory.mktemp("tokens") / "cache")


def trained(folder, cache, sequences, model=None, **more):
    """The parameters after two steps."""
    model = llama(7) if model is None else model
    trainer(folder, model, cache, sequences, **{**SAME, **more}).train()
    return [p.detach().clone() for p in model.parameters()]


def assert_same(found, expected):
    begun = list(llama(7).parameters())
    assert any((one - other).abs().max() > 1e-4 for one, other in zip(expected, begun, strict=True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_recomputed_activations_change_nothing(cache, sequences, tmp_path):
    expected = trained(tmp_path / "a", cache, sequences)
    assert_same(trained(tmp_path / "b", cache, sequences, gradient_checkpointing=True), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_student_takes_the_same_steps(backend, cache, sequences, tmp_path):
    expected = trained(tmp_path / "a", cache, sequences)
    torch._dynamo.reset()
    found = trained(tmp_path / "b", cache, sequences, torch_compile=True, torch_compile_backend=backend)
    assert_same(found, expected)


def test_only_adapters_learn(cache, sequences, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "lm_head"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(llama(7), config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    own = trainer(tmp_path / "out", model, cache, sequences, max_steps=8, save_strategy="no")
    own.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert any("lm_head" in name for name in changed)
    losses = [float(one["loss"]) for one in own.state.log_history if "loss" in one]
    assert losses[-1] < losses[0]


def work(rank, port, cache, results):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    options = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    found = trained(results / "ddp", TargetCache.open(cache), texts(), **options)
    torch.save(found, results / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(cache, sequences, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, cache.path, tmp_path), nprocs=2)
    expected = trained(tmp_path / "one", cache, sequences)
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt"), expected)


def test_a_masked_student_resumes_as_it_would_have_gone_on(tmp_path):
    sequences = masked_texts(12)
    options = {"codec": "draws-20", "mixture_at": 1.0, "lengths": sequences.lengths}
    cache = cache_targets(LanguageEnsemble([bert(1)]), sequences.rows, tmp_path / "c", **options)
    whole, again = bert(7), bert(8)
    trainer(tmp_path / "out", whole, cache, sequences, max_steps=4, save_steps=2).train()
    resumed = trainer(tmp_path / "out", again, cache, sequences, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
