"""How well a pretext task finds regions, for each decoder layer; no labels needed.

A query that only knows where regions usually lie finds the image's other regions as well as its own. So its box is also
compared with the other regions. All boxes are cxcywh in [0, 1]. L layers, N images or views, Q queries, R regions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.matcher import Matching
from util.box_ops import box_cxcywh_to_xyxy, box_iou
from util.records import Classification

FOUND = 0.5
"""Lowest IoU at which a box has found a region."""

MOST_BOXES = 30
"""Number of boxes per image that count in :func:`measure_recall`: DETReg has as many regions."""


def class_confidence(outputs: dict[str, Tensor], label: int, classification: Classification) -> Tensor:
    """Probability [L, N, Q] of class ``label``, from "pred_logits" [L, N, Q, K]."""
    logits = outputs["pred_logits"].float()
    return (logits.softmax(-1) if classification == "softmax" else logits.sigmoid())[..., label]


def measure_queries(
    confidence: Tensor,
    boxes: Tensor,
    regions: Tensor,
    *,
    matching: Matching,
    predicted: Callable[[Tensor], Tensor] | None = None,
    features: Tensor | None = None,
    first: int = 0,
) -> dict[str, Tensor]:
    """How well queries find the regions that they ask for.

    Each region has a group of Q/R consecutive queries. The group's guess is the box of its most confident query.

    Args:
        confidence: [L, N, Q], that a query found something; boxes: [L, N, Q, 4], the predictions.
        regions: [N, R, 4].
        matching: pairs of predictions and regions, each region in every layer at least once.
        predicted: queries [L, N, R] -> features [L, N, R, K] that they predict; features: [N, R, K], of the regions;
            None: there is no feature loss.
        first: regions before this one do not count. Region 0 of Siamese DETR is easy: the overlap of the views.

    Returns:
        Values [L, n] of n = N (R - first) regions, of the group's guess unless stated otherwise:
        ``own_iou``: IoU with the group's own region. ``recall``: 1 where that reaches FOUND, else 0.
        ``others_iou``: mean IoU with the image's other regions.
        ``chance_iou``: mean IoU of the region itself with the image's other regions.
        ``best_iou``, ``best_recall``: of the best box of the group.
        ``matched_iou``: of the matched query's box.
        ``feature_top1``: 1 where the predicted feature is closer to its own region's than to those of all other
        regions of the image (by cosine), else 0.
    """
    query = most_confident(confidence, regions.shape[1])  # [L, N, R]
    corners = box_cxcywh_to_xyxy(regions)
    predictions = box_cxcywh_to_xyxy(boxes)
    guess = predictions.gather(2, query[..., None].expand(*query.shape, 4))

    with_all = box_iou(guess[:, :, :, None], corners[:, None])  # [L, N, R, R]
    own = with_all.diagonal(dim1=2, dim2=3)
    grouped = predictions.unflatten(2, (regions.shape[1], -1))  # [L, N, R, Q/R, 4]
    best = box_iou(grouped, corners[:, :, None]).amax(-1)
    among = box_iou(corners[:, :, None], corners[:, None]).expand(len(boxes), -1, -1, -1)
    values = {
        "own_iou": own,
        "others_iou": mean_of_others(with_all, first),
        "chance_iou": mean_of_others(among, first),
        "recall": (own >= FOUND).float(),
        "best_iou": best,
        "best_recall": (best >= FOUND).float(),
        "matched_iou": _iou_of_matched(predictions, corners, matching),
    }
    if predicted is not None:
        values["feature_top1"] = closest_is_own(predicted(query).float(), features)
    return {name: value[:, :, first:].flatten(1) for name, value in values.items()}


def measure_stay(elsewhere: Tensor, regions: Tensor, num_layers: int, *, first: int) -> dict[str, Tensor]:
    """The score of a guess without looking: the region is at the same place in both views.

    Args:
        elsewhere, regions: [N, R, 4], the regions in the other view and in this view.

    Returns:
        ``stay_iou`` and ``stay_recall`` as in :func:`measure_queries`, the same in all layers.
    """
    iou = box_iou(box_cxcywh_to_xyxy(elsewhere), box_cxcywh_to_xyxy(regions))[:, first:].flatten()
    iou = iou.expand(num_layers, -1)
    return {"stay_iou": iou, "stay_recall": (iou >= FOUND).float()}


def measure_recall(
    confidence: Tensor, boxes: Tensor, regions: list[Tensor], most: int = MOST_BOXES
) -> dict[str, Tensor]:
    """How well a detector's boxes cover regions that its queries do not know.

    Args:
        confidence: [L, N, Q]; boxes: [L, N, Q, 4].
        regions: of each image [R_i, 4].
        most: the number of boxes per image that count, the most confident ones.

    Returns:
        ``best_iou`` and ``best_recall`` of each region, [L, sum of R_i].
    """
    kept = confidence.topk(min(most, confidence.shape[2]), dim=-1).indices[..., None].expand(-1, -1, -1, 4)
    corners = box_cxcywh_to_xyxy(boxes.gather(2, kept))
    best = [
        box_iou(corners[:, index, None], box_cxcywh_to_xyxy(own)[:, None]).amax(-1)  # [L, R_i]
        for index, own in enumerate(regions)
    ]
    best = torch.cat(best, dim=1)
    return {"best_iou": best, "best_recall": (best >= FOUND).float()}


def most_confident(confidence: Tensor, num_regions: int) -> Tensor:
    """The most confident query of each group: [L, N, Q] -> indices [L, N, R]."""
    grouped = confidence.unflatten(2, (num_regions, -1))
    return grouped.argmax(-1) + torch.arange(num_regions, device=confidence.device) * grouped.shape[-1]


def mean_of_others(values: Tensor, first: int) -> Tensor:
    """Values [L, N, R, R] between regions -> for each region its mean over the others, from ``first`` on."""
    num_regions = values.shape[-1]
    other = 1 - torch.eye(num_regions, device=values.device)
    other[:, :first] = 0
    return (values * other).sum(-1) / other.sum(-1).clamp(min=1)


def closest_is_own(predicted: Tensor, features: Tensor) -> Tensor:
    """1 where a predicted feature [L, N, R, K] is closest to its own region's of [N, R, K], else 0: [L, N, R]."""
    cosines = F.normalize(predicted, dim=-1) @ F.normalize(features, dim=-1).transpose(-1, -2)
    right = torch.arange(features.shape[1], device=features.device)
    return (cosines.argmax(-1) == right).float()


def _iou_of_matched(predictions: Tensor, corners: Tensor, matching: Matching) -> Tensor:
    """IoU [L, N, R] of each region with the box of its matched query."""
    iou = box_iou(predictions[matching.layer, matching.image, matching.query], corners[matching.image, matching.target])
    values = predictions.new_zeros(len(predictions), *corners.shape[:2])
    values[matching.layer, matching.image, matching.target] = iou
    return values
