"""Convolutions that include the frozen batch norm after them.

A frozen batch norm scales and shifts each channel. To scale the few weights of the convolution, instead of its output,
saves two passes over every activation forward and one backward. On a CPU a ResNet-50 at 640 x 800 takes 0.6 instead of
0.8 s. Parameters and buffers keep their names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d


class AbsorbedNorm(FrozenBatchNorm2d):
    """A frozen batch norm that the convolution before it includes; it only holds the statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], unchanged."""
        return x

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel: [C] each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, name) for name in names}


class NormedConv2d(nn.Conv2d):
    """A convolution without bias, followed by a frozen batch norm: ``norm(conv(x))`` in one."""

    def __init__(self, conv: nn.Conv2d, norm: AbsorbedNorm) -> None:
        super().__init__(**_geometry(conv), bias=False)
        self.weight = conv.weight
        self.norm_behind = (norm,)  # a tuple, so that the norm is not registered here a second time

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the equivalent plain convolution."""
        scale, shift = self.norm_behind[0].scale_and_shift()
        return self.weight * scale[:, None, None, None], shift

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, h, w], normalised."""
        return self._conv_forward(x, *self.folded())


def absorb_norms(resnet: ResNet) -> None:
    """Make every convolution of a ResNet include the frozen batch norm after it, in place."""
    _absorb(resnet, "conv1", "bn1")
    for block in resnet.modules():
        if not isinstance(block, BasicBlock | Bottleneck):
            continue
        for index in range(1, 4 if isinstance(block, Bottleneck) else 3):
            _absorb(block, f"conv{index}", f"bn{index}")
        if block.downsample is not None:
            _absorb(block.downsample, "0", "1")


def _absorb(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
    absorbed = AbsorbedNorm(len(norm.weight), eps=norm.eps).to(norm.weight)
    absorbed.load_state_dict(norm.state_dict())
    setattr(parent, norm_name, absorbed)
    setattr(parent, conv_name, NormedConv2d(conv, absorbed))


@torch.no_grad()
def replace_by_plain(body: nn.Module) -> None:
    """Replace every :class:`NormedConv2d` by a frozen convolution with a bias, and its norm by the identity."""
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NormedConv2d):
                setattr(module, name, _plain(child))
            elif isinstance(child, AbsorbedNorm):
                setattr(module, name, nn.Identity())


def _plain(conv: NormedConv2d) -> nn.Conv2d:
    weight, bias = conv.folded()
    plain = nn.Conv2d(**_geometry(conv), device=weight.device, dtype=weight.dtype)
    plain.weight.copy_(weight)
    plain.bias.copy_(bias)
    return plain.requires_grad_(False)
