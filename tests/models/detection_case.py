"""Random predictions and objects that several tests share."""

import torch
from torch import Tensor


def random_boxes(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes [*shape, 4] cxcywh with all corners in [0, 1] and no side below 0.02."""
    size = 0.02 + 0.6 * torch.rand(*shape, 2, dtype=dtype)
    centre = size / 2 + (1 - size) * torch.rand(*shape, 2, dtype=dtype)
    return torch.cat([centre, size], dim=-1)


def random_outputs(layers: int, images: int, queries: int, logits: int) -> dict[str, Tensor]:
    """Leaf tensors pred_logits [L, B, Q, K] and pred_boxes [L, B, Q, 4] that require gradients."""
    return {
        "pred_logits": (3 * torch.randn(layers, images, queries, logits)).requires_grad_(),
        "pred_boxes": random_boxes(layers, images, queries).requires_grad_(),
    }


def random_targets(counts: list[int], num_classes: int) -> list[dict[str, Tensor]]:
    """Labels [T] and boxes [T, 4] of images with the given numbers of objects."""
    return [{"labels": torch.randint(num_classes, (count,)), "boxes": random_boxes(count)} for count in counts]
