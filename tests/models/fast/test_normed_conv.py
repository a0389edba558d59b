"""Convolutions that absorb the frozen batch norms behind them, against the two one after the other."""

import copy

import pytest
import torch
import torchvision
from torchvision.ops import FrozenBatchNorm2d

from models.fast.normed_conv import AbsorbedNorm, NormedConv2d, absorb_norms, replace_by_plain
from tests.models.detectors import randomize


def resnets(name: str):
    """torchvision's own, and a copy whose norms are absorbed; float64."""
    plain = getattr(torchvision.models, name)(weights=None, norm_layer=FrozenBatchNorm2d).double()
    randomize(plain)
    absorbed = copy.deepcopy(plain)
    absorb_norms(absorbed)
    return plain, absorbed


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_same_outputs_gradients_and_names(name):
    plain, absorbed = resnets(name)
    assert not any(type(module) is FrozenBatchNorm2d for module in absorbed.modules())
    assert list(plain.state_dict()) == list(absorbed.state_dict())
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    outputs = [resnet(images) for resnet in (plain, absorbed)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), absorbed.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-8, atol=1e-8 * a.grad.abs().max().item(), msg=name)


def test_weights_that_are_loaded_later_count():
    plain, absorbed = resnets("resnet18")
    randomize(plain)
    absorbed.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(absorbed(images), plain(images), rtol=1e-9, atol=1e-9)


def test_a_copy_has_norms_of_its_own():
    _, absorbed = resnets("resnet18")
    clone = copy.deepcopy(absorbed)
    assert clone.conv1.norm_behind[0] is clone.bn1
    assert clone.bn1 is not absorbed.bn1


def test_plain_convolutions_do_the_same():
    plain, absorbed = resnets("resnet50")
    replace_by_plain(absorbed)
    assert not any(isinstance(module, NormedConv2d | AbsorbedNorm) for module in absorbed.modules())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(absorbed(images), plain(images), rtol=1e-9, atol=1e-9)
    assert not any(parameter.requires_grad for name, parameter in absorbed.named_parameters() if "conv" in name)
