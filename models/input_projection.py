"""Projects the backbone's maps to the width of the Transformer."""

from __future__ import annotations

from torch import Tensor, nn

from models.backbone import mask_of_map
from util.nested_tensor import NestedTensor

NORM_GROUPS = 32


class MapProjection(nn.Conv2d):
    """A 1x1 convolution of the backbone's one map."""

    def __init__(self, num_channels: int, d_model: int) -> None:
        super().__init__(num_channels, d_model, kernel_size=1)

    def forward(self, features: list[NestedTensor], image_mask: Tensor) -> list[NestedTensor]:
        """One map [B, K, H, W] -> one level [B, C, H, W]; the mask [B, h, w] of the images is not used."""
        (level,) = features
        return [NestedTensor(super().forward(level.tensors), level.mask)]


class LevelProjection(nn.ModuleList):
    """Deformable DETR's levels: the backbone's maps, and perhaps a coarser one that is made from the last map.

    The norms average over the whole padded map, as in the public code. So a level depends a little on its padding.

    Args:
        num_channels: of the backbone's maps.
        d_model: C, a multiple of 32.
        num_levels: as many as the backbone has maps, or one more.
    """

    def __init__(self, num_channels: list[int], d_model: int, num_levels: int) -> None:
        convolutions = [nn.Conv2d(channels, d_model, kernel_size=1) for channels in num_channels]
        if num_levels > len(num_channels):
            convolutions.append(nn.Conv2d(num_channels[-1], d_model, kernel_size=3, stride=2, padding=1))
        assert len(convolutions) == num_levels
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        super().__init__(nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, d_model)) for conv in convolutions)

    def forward(self, features: list[NestedTensor], image_mask: Tensor) -> list[NestedTensor]:
        """Maps [B, K_l, H_l, W_l], finest first, and the mask [B, h, w] of the images -> levels [B, C, H_l, W_l]."""
        levels = [
            NestedTensor(project(level.tensors), level.mask)
            for project, level in zip(self, features, strict=False)  # the extra level has no map
        ]
        if len(self) > len(features):
            coarsest = self[-1](features[-1].tensors)
            levels.append(NestedTensor(coarsest, mask_of_map(image_mask, coarsest)))
        return levels
