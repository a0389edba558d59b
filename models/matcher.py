"""Matches predictions to objects: the Hungarian matching of DETR (2005.12872, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from util.records import Classification


@dataclass
class Matching:
    """Matched pairs of all layers and images, sorted by layer, then image, then query.

    Every layer has the same number of pairs, sum over images of min(queries, objects). All int64 [M], on the
    outputs' device: the pairs' predictions are ``pred_boxes[layer, image, query]``, their objects
    ``targets[image]["boxes"][target]``.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.layer)

    def of_last_layer(self, num_layers: int) -> Matching:
        """The pairs of the last layer, of ``num_layers``."""
        first = len(self) - len(self) // num_layers
        return Matching(self.layer[first:], self.image[first:], self.query[first:], self.target[first:])


def pad_targets(targets: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Labels [B, T] int64 and boxes [B, T, 4] of B images; zeros fill up images with fewer than T objects."""
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    boxes = pad_sequence([target["boxes"] for target in targets], batch_first=True)
    return labels, boxes


class HungarianMatcher(nn.Module):
    """Assigns one prediction to each object, at the lowest total cost (or one object to each of fewer predictions).

    The cost of a pair is ``cost_class * class + cost_bbox * L1(cxcywh) - cost_giou * GIoU``. The class term is the
    negative probability of the object's label (softmax), or the focal loss of a positive minus that of a negative
    (focal, as in Deformable DETR, 2010.04159, and Conditional DETR, 2108.06152).
    """

    def __init__(
        self,
        *,
        cost_class: float,
        cost_bbox: float,
        cost_giou: float,
        classification: Classification,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self._class_costs = {"softmax": self._softmax_costs, "focal": self._focal_costs}[classification]

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Matching:
        """Match every decoder layer on its own.

        Args:
            outputs: pred_logits [L, B, Q, K] and pred_boxes [L, B, Q, 4], cxcywh in [0, 1].
            targets: for each of the B images labels [T] int64 and boxes [T, 4] cxcywh in [0, 1]; T may be 0.

        Raises:
            FloatingPointError: predictions are not finite.
        """
        costs = self.costs(outputs, targets)
        # Without objects there are no costs, but the predictions may be NaN nevertheless.
        health = outputs["pred_boxes"].float().sum() + outputs["pred_logits"].float().sum()
        host = torch.cat([costs.flatten(), health[None]]).cpu().numpy()  # the one transfer to the host
        if not np.isfinite(host).all():
            raise FloatingPointError(
                "the predictions became NaN or infinite: the training diverged; "
                "try a lower --lr, or --amp none if mixed precision is on"
            )
        costs = host[:-1].reshape(costs.shape)
        counts = [len(target["labels"]) for target in targets]
        pairs = [np.zeros((4, 0), dtype=np.int64)]
        for layer, image in np.ndindex(costs.shape[:2]):
            query, target = linear_sum_assignment(costs[layer, image, :, : counts[image]])
            pairs.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query, target]))
        indices = torch.from_numpy(np.concatenate(pairs, axis=1))
        return Matching(*indices.to(outputs["pred_logits"].device, non_blocking=True))

    def costs(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        """Costs [L, B, Q, T] float32 of each image's predictions and objects, padded to the largest T."""
        return self.pair_costs(outputs["pred_logits"], outputs["pred_boxes"], *pad_targets(targets))

    def pair_costs(self, logits: Tensor, pred_boxes: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """The same of padded targets, for ``--compile``: arithmetic on tensors alone.

        Args:
            logits, pred_boxes: pred_logits [L, B, Q, K] and pred_boxes [L, B, Q, 4].
            labels, boxes: [B, T] and [B, T, 4], see :func:`pad_targets`.
        """
        num_layers, _, num_queries, _ = logits.shape
        pred_boxes = pred_boxes.float()
        labels = labels[None, :, None].expand(num_layers, -1, num_queries, -1)

        class_costs = self._class_costs(logits.float(), labels)
        l1 = torch.cdist(pred_boxes, boxes.float().expand(num_layers, -1, -1, -1), p=1)
        giou = generalized_box_iou(
            box_cxcywh_to_xyxy(pred_boxes)[:, :, :, None], box_cxcywh_to_xyxy(boxes.float())[:, None]
        )
        return self.cost_class * class_costs + self.cost_bbox * l1 - self.cost_giou * giou

    @staticmethod
    def _softmax_costs(logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.softmax(dim=-1).gather(-1, labels)

    def _focal_costs(self, logits: Tensor, labels: Tensor) -> Tensor:
        alpha, gamma, eps = self.focal_alpha, self.focal_gamma, 1e-8  # eps: as in the public codes
        prob = logits.gather(-1, labels).sigmoid()
        positive = -alpha * (1 - prob) ** gamma * (prob + eps).log()
        negative = -(1 - alpha) * prob**gamma * (1 - prob + eps).log()
        return positive - negative


class GroupMatcher(HungarianMatcher):
    """Assigns to every region the best of its own queries: each of R regions has Q/R consecutive queries.

    With :class:`HungarianMatcher` a query may find any region; here it must find its own. The costs are the same.
    """

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Matching:
        """As :meth:`HungarianMatcher.forward`, but every image has R targets; the host does not wait for the device.

        Raises:
            ValueError: R does not divide Q.
        """
        costs = self.costs(outputs, targets)  # [L, B, Q, R]
        num_layers, num_images, num_queries, num_regions = costs.shape
        if num_queries % num_regions:
            raise ValueError(f"{num_queries} queries cannot be divided evenly among {num_regions} regions")
        group = num_queries // num_regions
        own = costs.unflatten(2, (num_regions, group)).diagonal(dim1=2, dim2=4)  # [L, B, group, R]
        ranges = [torch.arange(size, device=costs.device) for size in (num_layers, num_images, num_regions)]
        layer, image, region = torch.meshgrid(*ranges, indexing="ij")  # [L, B, R] each
        query = own.argmin(dim=2) + region * group
        return Matching(layer.flatten(), image.flatten(), query.flatten(), region.flatten())


def match_as_told(
    matcher: HungarianMatcher, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], told: Tensor
) -> Matching:
    """The matching of ``matcher`` in the images whose queries were told what to look for, a free one in the others.

    Args:
        outputs, targets: as :meth:`HungarianMatcher.forward` takes them.
        told: [B] bool, on the host.
    """
    parts = []
    for match, chosen in ((matcher, told), (partial(HungarianMatcher.forward, matcher), ~told)):
        numbers = chosen.nonzero()[:, 0]
        if len(numbers):
            images = numbers.to(outputs["pred_logits"].device, non_blocking=True)
            of_chosen = {name: outputs[name][:, images] for name in ("pred_logits", "pred_boxes")}
            part = match(of_chosen, [targets[number] for number in numbers.tolist()])
            parts.append((part.layer, images[part.image], part.query, part.target))
    layer, image, query, target = (torch.cat(column) for column in zip(*parts, strict=True))
    place = (layer * len(told) + image) * outputs["pred_logits"].shape[2] + query
    order = place.argsort()
    return Matching(layer[order], image[order], query[order], target[order])
