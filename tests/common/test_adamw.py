"""Our AdamW has the bits of torch's."""

import pytest
import torch

from ensdistill.common.adamw import AdamW


@pytest.mark.parametrize("fused", [True, False])
def test_steps_have_the_bits_of_torchs_own_optimizer(fused):
    weights, states = [], []
    for kind in (AdamW, torch.optim.AdamW):
        layer = torch.nn.Linear(7, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(21.0).reshape(3, 7).sin())
            layer.bias.copy_(torch.arange(3.0).cos())
        optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.3, fused=fused)
        for step in range(5):
            layer(torch.arange(14.0).reshape(2, 7) / (step + 1)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        again = kind(layer.parameters(), lr=0.0, fused=fused)
        again.load_state_dict(optimizer.state_dict())
        weights.append(torch.cat([x.detach().flatten() for x in layer.parameters()]))
        states.append(again.state_dict())
    assert torch.equal(*weights)
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for name, value in states[0]["state"][0].items():
        assert torch.equal(value, states[1]["state"][0][name])


def test_hooks_are_called_and_a_closure_has_gradients():
    weight, seen = torch.ones(2, requires_grad=True), []
    optimizer = AdamW([weight], lr=0.5)
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert seen == ["after"]
    assert weight.grad_fn is None
    assert torch.is_grad_enabled()
