"""Formats, areas and overlaps of boxes; all functions work on the last dimension and broadcast over the others."""

import torch
from torch import Tensor


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] (centre x, centre y, width, height) -> (x0, y0, x1, y1), in the same units."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x0, y0, x1, y1) -> (centre x, centre y, width, height), in the same units."""
    top_left, bottom_right = boxes.split(2, dim=-1)
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Areas [...] of xyxy boxes [..., 4]; negative sides count as zero."""
    return _area(boxes[..., :2], boxes[..., 2:])


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    width, height = (bottom_right - top_left).clamp(min=0).unbind(dim=-1)
    return width * height  # not prod, whose gradient makes the host wait for a GPU


def intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of xyxy boxes, elementwise with broadcasting.

    Pairs of all with all: ``intersection_and_union(a[:, None], b[None])``.
    """
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = _area(top_left, bottom_right)
    return intersection, box_area(boxes1) + box_area(boxes2) - intersection


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes, elementwise with broadcasting; 0 where the union is empty."""
    intersection, union = intersection_and_union(boxes1, boxes2)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of xyxy boxes, elementwise with broadcasting, in (-1, 1].

    Two empty boxes at the same point have the value 0.
    """
    tiny = torch.finfo(boxes1.dtype).tiny
    intersection, union = intersection_and_union(boxes1, boxes2)
    top_left = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = _area(top_left, bottom_right)
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
