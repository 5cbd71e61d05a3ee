"""A cache of teachers on a GPU: encoded there, to the CPU's bytes but for roundings."""

from dataclasses import dataclass

import gpu_helpers
import numpy as np
import pytest
import torch
from cache_helpers import Teachers, digits
from torch import nn

from ensdistill.cache import cache_targets, encoding
from ensdistill.teachers import Ensemble

gpu_helpers.need_gpu()


@dataclass(frozen=True)
class There(Teachers):
    def predict_logits(self, inputs: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(super().predict_logits(inputs)).to(gpu_helpers.DEVICE)


def test_a_cache_of_modules_there(tmp_path, monkeypatch):
    torch.manual_seed(0)
    rows = digits()[1]
    nets = [
        nn.Sequential(nn.Flatten(), nn.Linear(rows.inputs.shape[1], 10)).to(gpu_helpers.DEVICE)
        for _ in range(2)
    ]
    ensemble, seen, encode = Ensemble.from_members(nets), [], encoding.Encoder.__call__
    monkeypatch.setattr(
        encoding.Encoder,
        "__call__",
        lambda self, logits, *rest: seen.append(logits.device) or encode(self, logits, *rest),
    )
    cache = cache_targets(ensemble, rows, tmp_path, codec="fp32", batch_size=100)
    assert [device.type for device in seen] == ["cuda"] * 3
    expected = ensemble.predict_logits(rows.inputs[np.argsort(rows.uids)])
    torch.testing.assert_close(cache.gather(np.arange(len(rows))).to_logits(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("codec", "mixture_at"),
    [(c, t) for c in ("uint8", "fp16", "bf16", "fp32") for t in (None, 2.0)]
    + [("topk-3", 2.0), ("counts-40", 2.0)],
)
def test_a_cache_of_teachers_there(tmp_path, codec, mixture_at):
    here, rows = digits()
    cache = cache_targets(There(here.logits), rows, tmp_path / "there", codec=codec, mixture_at=mixture_at)
    assert cache.verify_against(here, rows, share=1.0) == len(rows)
    again = cache_targets(here, rows, tmp_path / "here", codec=codec, mixture_at=mixture_at)
    kl, expected = (c.manifest["statistics"]["kl"] for c in (cache, again))
    np.testing.assert_allclose(
        [kl[x] for x in ("mean", "max")], [expected[x] for x in ("mean", "max")], rtol=1e-2, atol=1e-12
    )
