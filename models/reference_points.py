"""Reference points of Deformable DETR (arXiv 2010.04159): positions of the maps, and the first boxes of proposals.

A batch is padded, so a point in [0, 1] is relative to the image, or to the padded map; :func:`valid_ratios` converts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROPOSAL_SIZE = 0.05
"""Side of the first box of a position, relative to the image, on the finest level; it doubles per level."""

PROPOSAL_LIMITS = (0.01, 0.99)
"""A position proposes no box if a coordinate of its first box lies outside these limits."""


def valid_ratios(mask: Tensor, shapes: list[tuple[int, int]], dtype: torch.dtype) -> Tensor:
    """The share of each level's width and height that is not padding: mask [B, S] -> [B, levels, 2]."""
    ratios = []
    for level in split_levels(mask, shapes):
        width, height = (~level[:, 0]).sum(1).to(dtype), (~level[:, :, 0]).sum(1).to(dtype)
        ratios.append(torch.stack([width / level.shape[2], height / level.shape[1]], dim=-1))
    return torch.stack(ratios, dim=1)


def split_levels(mask: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Mask [B, S] -> per level [B, H, W]."""
    parts = mask.split([height * width for height, width in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


def pixel_centres(ratios: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """(x, y) of each level's positions, per level [B, H * W, 2]; 0 and 1 are the edges of the unpadded image."""
    centres = []
    for level, (height, width) in enumerate(shapes):
        x = torch.arange(width, device=ratios.device, dtype=ratios.dtype) + 0.5
        y = torch.arange(height, device=ratios.device, dtype=ratios.dtype) + 0.5
        x = x / (ratios[:, level, 0, None] * width)  # [B, W]
        y = y / (ratios[:, level, 1, None] * height)  # [B, H]
        grid = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
        centres.append(grid.flatten(1, 2))
    return centres


def anchors_of(mask: Tensor, shapes: list[tuple[int, int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The boxes that proposals start from: logits [B, S, 4] of cxcywh, and the positions [B, S] that propose a box.

    The other positions have infinite logits, so that their boxes are always ones.
    """
    centres = pixel_centres(valid_ratios(mask, shapes, dtype), shapes)
    boxes = torch.cat(
        [
            torch.cat([centre, torch.full_like(centre, PROPOSAL_SIZE * 2.0**level)], dim=-1)
            for level, centre in enumerate(centres)
        ],
        dim=1,
    )
    low, high = PROPOSAL_LIMITS
    usable = ((boxes > low) & (boxes < high)).all(-1) & ~mask
    return torch.logit(boxes).masked_fill(~usable[..., None], float("inf")), usable


def as_box_logits(reference: Tensor) -> Tensor:
    """Logits of points or boxes [..., 2 or 4] -> [..., 4]; a point adds nothing to the size."""
    return nn.functional.pad(reference, (0, 4 - reference.shape[-1]))
