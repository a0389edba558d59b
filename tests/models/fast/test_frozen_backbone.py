"""The folded copy: the same maps, no batch norms left where they can be folded, channels last."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

from models.backbone import Backbone, build_backbone
from models.backbone_weights import load_backbone_weights
from models.fast.frozen_backbone import fold_frozen_batch_norms, hold_weights_in
from tests.models.detectors import randomize, unequal_images

LITE0 = "timm:tf_efficientnet_lite0"


def build(name: str, **changes: object) -> Backbone:
    options = {"multi_scale": True, "dilation": False, "feature_stride": None, "trainable": True}
    backbone = build_backbone(name=name, **{**options, **changes})
    randomize(backbone)
    return backbone


def count_norms(model: nn.Module) -> int:
    return sum(hasattr(module, "running_mean") for module in model.modules())


@torch.no_grad()
def assert_same_maps(folded: Backbone, backbone: Backbone) -> None:
    """Within 1e-4 of the largest value of each map, for images whose sides no stride divides."""
    images = unequal_images((97, 130), (59, 64))
    for feature, wanted in zip(folded(images), backbone.eval()(images), strict=True):
        assert torch.equal(feature.mask, wanted.mask)
        assert wanted.tensors.std() > 0.01  # or there would be nothing to compare
        difference = (feature.tensors - wanted.tensors).abs().max()
        assert difference < 1e-4 * wanted.tensors.abs().max()
        assert feature.tensors.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "options", "norms", "left"),
    [
        ("resnet18", {}, 20, 0),
        ("resnet50", {}, 53, 0),
        ("resnet50", {"multi_scale": False, "dilation": True}, 53, 0),
        (LITE0, {}, 48, 0),
        ("timm:resnetv2_50", {"multi_scale": False}, 48, 16),  # norms before convolutions: sums come in
        ("timm:repvgg_a0", {"multi_scale": False}, 61, 17),  # identity branches: a norm of the block's input
        ("timm:convnext_atto", {}, 0, 0),
    ],
)
def test_folded_maps_equal_the_original(name, options, norms, left):
    backbone = build(name, **options)
    folded = fold_frozen_batch_norms(backbone)
    assert (count_norms(backbone), count_norms(folded)) == (norms, left)
    assert (folded.num_channels, folded.strides) == (backbone.num_channels, backbone.strides)
    assert_same_maps(folded, backbone)


def test_folded_public_weights(real_data):
    backbone = build(LITE0)
    load_backbone_weights(backbone, real_data / "backbones" / "tf_efficientnet_lite0.pth")
    folded = fold_frozen_batch_norms(backbone)
    assert count_norms(folded) == 0
    assert_same_maps(folded, backbone)


def test_the_copy_is_frozen_and_the_original_untouched():
    backbone = build("resnet18").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    folded = fold_frozen_batch_norms(backbone)
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())

    assert backbone.training
    assert [name for name, parameter in backbone.named_parameters() if parameter.requires_grad] == trained
    assert before.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())
    own = {value.data_ptr() for value in backbone.state_dict().values()}
    assert not own & {value.data_ptr() for value in folded.state_dict().values()}


class Awkward(nn.Module):
    """Every way in which a norm must not be folded into the convolution before it, and one in which it may."""

    def __init__(self) -> None:
        super().__init__()
        names = ("good", "shared_output", "shared_convolution", "shared_norm", "branch", "returned", "computed")
        self.convolutions = nn.ModuleDict({name: nn.Conv2d(3, 3, 3, padding=1) for name in names})
        self.convolutions["computed"] = Halved(3, 3, 3, padding=1)
        self.norms = nn.ModuleDict({name: FrozenBatchNorm2d(3) for name in names})

    def forward(self, x: Tensor) -> list[Tensor]:
        def block(name: str, x: Tensor) -> Tensor:
            return self.norms[name](self.convolutions[name](x))

        x = block("good", x)
        y = self.convolutions["shared_output"](x)
        x = self.norms["shared_output"](y) + y
        x = block("shared_convolution", x) + self.convolutions["shared_convolution"](x).relu()
        x = block("shared_norm", x)
        x = self.norms["shared_norm"](x)
        x = self.norms["branch"](self.convolutions["branch"](x) + x)
        x = block("computed", x)
        returned = self.convolutions["returned"](x)
        return [returned, self.norms["returned"](returned)]


class Halved(nn.Conv2d):
    """A convolution that uses half its weight, as weight standardisation uses another one than it stores."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / 2, self.bias)


def test_only_what_may_be_folded_is():
    backbone = Backbone(body=Awkward(), num_channels=[3, 3], strides=[1, 1])
    randomize(backbone)
    folded = fold_frozen_batch_norms(backbone)
    kept = {name for name, norm in folded.body.norms.items() if isinstance(norm, FrozenBatchNorm2d)}
    assert kept == set(backbone.body.norms) - {"good"}
    assert_same_maps(folded, backbone)


class Conversions(TorchDispatchMode):
    """Counts conversions between types."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["resnet18", LITE0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_weights_in_16_bits_give_the_numbers_of_autocast(name, dtype):
    """Bit for bit, and nothing but the images is converted."""
    folded = fold_frozen_batch_norms(build(name))
    images = unequal_images((64, 96), (59, 64))
    with torch.autocast("cpu", dtype):
        expected = folded(images)
        hold_weights_in(folded, dtype)
        with Conversions() as conversions:
            found = folded(images)
    for feature, wanted in zip(found, expected, strict=True):
        assert feature.tensors.dtype == dtype
        assert torch.equal(feature.tensors, wanted.tensors)
    assert conversions.count == 1 + 2 * len(found)  # and the rows and columns of the masks
