"""Backbones with frozen batch norms: torchvision's ResNets and any timm model."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import FrozenBatchNorm2d

from models.fast.normed_conv import absorb_norms
from models.timm_body import build_timm_body, timm_normalization
from util.errors import UserError
from util.nested_tensor import NestedTensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MULTI_SCALE_STRIDES = (8, 16, 32)
CROP_STRIDE = 8
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
TIMM = "timm:"


class Backbone(nn.Module):
    """A convolutional trunk that turns a padded batch into feature maps.

    Attributes:
        body: the trunk, under the names of the public checkpoints.
        strides: of the maps returned, finest first.
        num_channels: of the maps returned.
        amp_type: 16-bit type in which the trunk multiplies, while its maps stay float32; None: as the surroundings do.
    """

    def __init__(self, *, body: nn.Module, strides: list[int], num_channels: list[int]) -> None:
        super().__init__()
        self.body = body
        self.strides = strides
        self.num_channels = num_channels
        self.amp_type: torch.dtype | None = None

    def forward(self, images: NestedTensor) -> list[NestedTensor]:
        """Feature maps of a padded batch.

        Args:
            images: tensors [B, 3, H, W] normalised by :func:`backbone_normalization`, mask [B, H, W].

        Returns:
            Maps [B, K_l, H_l, W_l] and masks [B, H_l, W_l] (:func:`mask_of_map`), finest first. The top left corner of
            a mask is never padding.
        """
        pixels = _in_faster_layout(images.tensors)
        if self.amp_type is None:
            maps = self._maps(pixels)
        else:
            with torch.autocast(pixels.device.type, self.amp_type):
                maps = [x.float() for x in self._maps(pixels)]
        return [NestedTensor(x, mask_of_map(images.mask, x)) for x in maps]

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        maps = self.body(pixels)
        return list(maps.values()) if isinstance(maps, dict) else maps


def _in_faster_layout(images: Tensor) -> Tensor:
    """Channels last on a CPU without gradients: ResNet-50 takes 780 instead of 960 ms. With gradients it is slower."""
    if images.device.type == "cpu" and not torch.is_grad_enabled():
        return images.contiguous(memory_format=torch.channels_last)
    return images


def mask_of_map(image_mask: Tensor, feature_map: Tensor) -> Tensor:
    """The mask [B, h, w] of images, resized by nearest interpolation to the size of a map [B, _, H, W]: [B, H, W].

    Same result as ``F.interpolate``. It is written out here because ONNX's Resize rounds differently.
    """
    rows, columns = (
        _nearest(size, wanted, image_mask.device)
        for size, wanted in zip(image_mask.shape[-2:], feature_map.shape[-2:], strict=True)
    )
    return image_mask[:, rows[:, None], columns]


def _nearest(size: int, wanted: int, device: torch.device) -> Tensor:
    """Indices of the ``wanted`` pixels, of ``size``, that nearest interpolation picks; in float32, as in PyTorch."""
    positions = torch.arange(wanted, device=device, dtype=torch.float32) * (size / wanted)
    return positions.long().clamp(max=size - 1)


def build_backbone(
    *, name: str, multi_scale: bool, dilation: bool, feature_stride: int | None, trainable: bool
) -> Backbone:
    """A backbone with random weights; it downloads nothing, ``models/backbone_weights.py`` loads weights.

    Args:
        name: ``resnet18|34|50|101`` or ``timm:NAME``.
        multi_scale: return the maps of strides 8, 16 and 32; otherwise one map.
        dilation: only for ResNets: stride 16 instead of 32 in the last stage (DC5).
        feature_stride: only for timm: the stride of the one map, 16 or 32 (None: 32).
        trainable: train everything except the stem and the stages up to stride 4; False: nothing. Batch norms are
            always frozen.

    Raises:
        UserError: no such model, or a flag that it does not support.
    """
    if name.startswith(TIMM):
        if dilation:
            raise UserError(f"--dilation is for ResNets; with --backbone {name} use --feature_stride 16")
        if multi_scale and feature_stride is not None:
            raise UserError("--feature_stride chooses one map, but this detector uses strides 8, 16 and 32; omit it")
        strides = list(MULTI_SCALE_STRIDES) if multi_scale else [feature_stride or 32]
        body, num_channels = build_timm_body(name.removeprefix(TIMM), strides)
        backbone = Backbone(body=body, strides=strides, num_channels=num_channels)
    elif name in RESNETS:
        if feature_stride is not None:
            raise UserError(f"--feature_stride is for timm backbones; with --backbone {name} use --dilation")
        stages = ["layer2", "layer3", "layer4"] if multi_scale else ["layer4"]
        backbone = _build_resnet(name, stages, dilation)
    else:
        raise UserError(f"--backbone {name}: choose one of {', '.join(RESNETS)} or timm:NAME")
    return backbone if trainable else backbone.requires_grad_(False)


def build_crop_encoder(name: str) -> Backbone:
    """The backbone ``name`` up to its map of stride 8 (ResNets: layer2), with random weights, frozen.

    Its parameters have the names that they have in the whole backbone (:func:`build_backbone`).

    Raises:
        UserError: a timm model without such a map.
    """
    if name.startswith(TIMM):
        body, num_channels = build_timm_body(name.removeprefix(TIMM), [CROP_STRIDE])
        backbone = Backbone(body=body, strides=[CROP_STRIDE], num_channels=num_channels)
    else:
        backbone = _build_resnet(name, ["layer2"], dilation=False)
    return backbone.requires_grad_(False)


def backbone_normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixel values (in [0, 1]) that the backbone was trained with.

    Raises:
        UserError: timm is not installed or does not know the model.
    """
    if not name.startswith(TIMM):
        return IMAGENET_MEAN, IMAGENET_STD
    return timm_normalization(name.removeprefix(TIMM))


def _build_resnet(name: str, stages: list[str], dilation: bool) -> Backbone:
    deep = name in ("resnet50", "resnet101")
    if dilation and not deep:
        raise UserError(f"--dilation: {name} has no dilated form; use resnet50 or resnet101")
    resnet = getattr(torchvision.models, name)(
        weights=None, norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=[False, False, dilation]
    )
    _freeze_shallow_stages(resnet)
    _calm_residuals(resnet)
    absorb_norms(resnet)
    body = IntermediateLayerGetter(resnet, {stage: str(index) for index, stage in enumerate(stages)})
    widths = {"layer2": 128, "layer3": 256, "layer4": 512}
    strides = {"layer2": 8, "layer3": 16, "layer4": 16 if dilation else 32}
    expansion = 4 if deep else 1
    return Backbone(
        body=body,
        strides=[strides[stage] for stage in stages],
        num_channels=[widths[stage] * expansion for stage in stages],
    )


def _calm_residuals(resnet: nn.Module) -> None:
    """Scale down the residual branches of a random ResNet, by the last norm of each block.

    A frozen batch norm that is the identity does not normalise: the variance of the activations would double with every
    block. Loaded weights replace this.
    """
    blocks = [module for module in resnet.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        last.weight.fill_(len(blocks) ** -0.5)


def _freeze_shallow_stages(resnet: nn.Module) -> None:
    """conv1 and layer1 are not trained, as in DETR."""
    for name, parameter in resnet.named_parameters():
        if not name.startswith(("layer2.", "layer3.", "layer4.")):
            parameter.requires_grad_(False)
