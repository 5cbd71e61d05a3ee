"""Students divided over two processes: FSDP2 as Accelerate applies it, and divided output embeddings."""

import os
import socket

import pytest
import torch
from token_models import cached, llama, texts
from torch import multiprocessing

from ensdistill.cache import TargetCache
from ensdistill.hf import CachedDistillation

PLACES = [0, 3, 4, 9]  # sequences of a step, of which each process has half


@pytest.fixture(scope="module")
def sequences():
    return texts()


@pytest.fixture(scope="module")
def cache(sequences, tmp_path_factory):
    return cached(sequences, tmp_path_factory.mktemp("tokens") / "cache")


def step(model, distil, sequences, places, factor=1.0):
    """The loss of a step, and gradients by name, each whole."""
    total = sum(int(sequences.lengths[place]) for place in PLACES)
    batch = distil.collate([sequences[place] for place in places])
    labels = batch.pop("labels")
    loss = factor * distil.loss(model.train()(**batch), labels, num_items_in_batch=total)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return loss.item(), {
        name: (one.full_tensor() if hasattr(one, "full_tensor") else one).float()
        for name, one in grads.items()
    }


def student(tied=False):
    model = llama(7)
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def distilled(model, cache):
    return CachedDistillation(model, cache, alpha=0.7, temperature=2.0)


def fully_sharded(model, policy):
    """As accelerate's ``fsdp2_prepare_model`` divides a language model: layers, ends, and the rest."""
    from torch.distributed.fsdp import fully_shard

    tied = model.lm_head.weight is model.model.embed_tokens.weight
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    if not tied:
        fully_shard(model.model.embed_tokens, mp_policy=policy)
    ends = [model.model.norm, *([model.model.embed_tokens] if tied else []), model.lm_head]
    fully_shard(ends, mp_policy=policy, reshard_after_forward=False)
    return fully_shard(model, mp_policy=policy)


def work(rank, port, path, results):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    cache, sequences, half = TargetCache.open(path), texts(), PLACES[rank::2]
    low = torch.bfloat16
    policies = {"": MixedPrecisionPolicy(), ", bfloat16": MixedPrecisionPolicy(low, low, low)}
    found = {}
    for tied in (False, True):
        for name, policy in policies.items():
            model = student(tied)
            distil = distilled(model, cache)
            fully_sharded(model, policy)
            found[f"fsdp, tied {tied}{name}"] = step(model, distil, sequences, half, 2.0)
    model = fully_sharded(student(), policies[""])
    distil = distilled(model, cache)  # of a model that is divided already
    assert distil.fused
    found["fsdp, divided before"] = step(model, distil, sequences, half, 2.0)
    model = student()
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(model, mesh, {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    distil = distilled(model, cache)
    assert not distil.fused
    found["tensor parallel"] = step(model, distil, sequences, PLACES)
    torch.save(found, results / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_divided_students_have_the_gradients_of_one_process(cache, sequences, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, cache.path, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in found[0]:
        model = student("tied True" in name)
        low = "bfloat16" in name
        loss, expected = step(model, distilled(model, cache), sequences, PLACES)
        parts = [one[name][0] for one in found]
        assert sum(parts) / 2 == pytest.approx(loss, rel=1e-2 if low else 1e-4), name
        for one in found:
            assert one[name][1].keys() == expected.keys()
            for parameter, grad in expected.items():
                close = (
                    {"rtol": 0.0, "atol": 0.05 * grad.abs().max().item()}
                    if low
                    else {"rtol": 1e-3, "atol": 1e-6}
                )
                torch.testing.assert_close(one[name][1][parameter], grad, **close, msg=f"{name}: {parameter}")


def rounded(value):
    if isinstance(value, torch.Tensor):
        return value.bfloat16() if value.is_floating_point() else value
    return {name: rounded(part) for name, part in value.items()} if isinstance(value, dict) else value


def test_mixed_precision_rounds_neither_targets_nor_the_loss(cache, sequences):
    """FSDP2 casts the floating inputs of a model, before other hooks, and its outputs."""
    found = []
    for low in (False, True):
        model = student()
        distil = distilled(model, cache)
        if low:
            model.register_forward_pre_hook(
                lambda module, args, kwargs: (args, rounded(kwargs)), with_kwargs=True, prepend=True
            )
            model.lm_head.register_forward_hook(lambda module, inputs, output: output.bfloat16())
        found.append(step(model, distil, sequences, PLACES))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    for name, grad in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], grad, rtol=5e-3, atol=1e-6, msg=name)
