"""Images of different sizes as a padded batch with a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class NestedTensor:
    """A padded batch.

    Attributes:
        tensors: [B, C, H, W]; images are in the top left corner, zeros elsewhere. Feature maps have values everywhere.
        mask: [B, H, W] bool, True at padded positions.
    """

    tensors: Tensor
    mask: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NestedTensor:
        """The same batch on ``device``."""
        return NestedTensor(
            self.tensors.to(device, non_blocking=non_blocking),
            self.mask.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> NestedTensor:
        """The same batch in page-locked memory; called by the data loader."""
        return NestedTensor(self.tensors.pin_memory(), self.mask.pin_memory())

    def __len__(self) -> int:
        return len(self.tensors)


def up_to_multiple(size: int, divisor: int) -> int:
    """The least multiple of ``divisor`` that is not below ``size``."""
    return -(-size // divisor) * divisor


def nested_tensor_from_tensor_list(images: list[Tensor], pad_to: int = 1) -> NestedTensor:
    """Pad images [C, h_i, w_i] on the right and at the bottom to the largest height and width among them.

    These are rounded up to multiples of ``pad_to``.
    """
    channels = images[0].shape[0]
    height = up_to_multiple(max(image.shape[1] for image in images), pad_to)
    width = up_to_multiple(max(image.shape[2] for image in images), pad_to)
    tensors = images[0].new_zeros(len(images), channels, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for image, padded, padding in zip(images, tensors, mask, strict=True):
        _, h, w = image.shape
        padded[:, :h, :w] = image
        padding[:h, :w] = False
    return NestedTensor(tensors, mask)
