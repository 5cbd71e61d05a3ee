"""The operations of models, beside torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ensdistill.models import CNN, MLP
from ensdistill.student.operations import OperationCounter

MODELS = {
    "mlp": (MLP(inputs=8, hidden=[5, 4], outputs=3), (2, 8)),
    "cnn": (CNN(channels=[4, 8], hidden=[6], outputs=3), (2, 1, 8, 8)),
    "transformer": (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (2, 5, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_count_is_torchs(name: str) -> None:
    model, shape = MODELS[name]
    model.eval()
    with OperationCounter() as counter:
        model(torch.ones(shape))
    with FlopCounterMode(display=False) as torchs:
        model(torch.ones(shape))
    assert counter.total == torchs.get_total_flops() > 0
