"""Averaged weights against the recursion written out in float64."""

import pytest
import torch
from torch import nn

from util.ema import Ema


def trained_module():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[0].bias.requires_grad_(False)
    module[2].also = module[0].weight  # one parameter under two names, as the heads of a two-stage detector
    return module


def walk(module, steps, ema=None, first=1):
    """Change all trained weights in every step; returns them as they were."""
    history = []
    for step in range(first, first + steps):
        with torch.no_grad():
            for weight in module.parameters():
                if weight.requires_grad:
                    weight += torch.randn(weight.shape)
        history.append(module[0].weight.detach().double().clone())
        if ema is not None:
            ema.update(step)
    return history


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9997])
def test_the_recursion_in_float64(decay):
    module = trained_module()
    average = module[0].weight.detach().double().clone()
    ema = Ema(module, decay)
    for step, weight in enumerate(walk(module, 40, ema), start=1):
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * weight
    torch.testing.assert_close(ema.module[0].weight.double(), average, rtol=1e-5, atol=1e-5)
    assert torch.equal(ema.module[0].bias, module[0].bias)
    assert ema.module[2].also is ema.module[0].weight
    assert not ema.module.training
    assert not any(weight.requires_grad for weight in ema.module.parameters())


def test_after_many_steps_it_is_the_mean_of_the_last_ones():
    """With d = 0.9 a weight that stays is reached within d^t of the way."""
    module = trained_module()
    ema = Ema(module, 0.9)
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        ema.module[0].weight.zero_()
    for step in range(1000, 1050):
        ema.update(step)
    torch.testing.assert_close(ema.module[0].weight, torch.full((4, 3), 1 - 0.9**50))


def test_it_goes_on_bit_for_bit():
    module = trained_module()
    whole, rest = Ema(module, 0.99), Ema(module, 0.99)
    walk(module, 5, whole)
    rest.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    for step in range(6, 9):
        walk(module, 1)
        whole.update(step)
        rest.update(step)
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name
    rest.load_state_dict(None)
    assert torch.equal(rest.module[0].weight, module[0].weight)
