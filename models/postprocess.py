"""Turns predictions into scored, labelled boxes in pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from util.box_ops import box_cxcywh_to_xyxy
from util.records import Classification


class PostProcess(nn.Module):
    """Formats the last decoder layer's predictions; nothing is suppressed (DETR needs no NMS).

    softmax: each query gives one detection, its most probable class except "no object" (the last logit); Q detections
    per image. focal: the ``top_k`` most probable of all (query, class) pairs, so that a query may give several
    (Deformable DETR, 2010.04159); min(top_k, Q * K) detections per image.
    """

    def __init__(self, classification: Classification, *, top_k: int = 100) -> None:
        super().__init__()
        self.classification = classification
        self.top_k = top_k

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], sizes: Tensor) -> list[dict[str, Tensor]]:
        """Detections of each image, best first.

        Args:
            outputs: pred_logits [L, B, Q, K] and pred_boxes [L, B, Q, 4], cxcywh in [0, 1] of the unpadded image.
            sizes: [B, 2] (height, width) of the original images in pixels; boxes are scaled to them.

        Returns:
            For each image scores [N] float32 in [0, 1], labels [N] int64, boxes [N, 4] float32 xyxy in pixels
            (not clipped to the image).
        """
        logits, boxes = outputs["pred_logits"][-1].float(), outputs["pred_boxes"][-1].float()
        height, width = sizes.to(boxes).unbind(dim=1)
        boxes = box_cxcywh_to_xyxy(boxes) * torch.stack([width, height, width, height], dim=1)[:, None]

        scores, labels, queries = self.select(logits)
        boxes = boxes.gather(1, queries[..., None].expand(-1, -1, 4))
        return [
            {"scores": score, "labels": label, "boxes": box}
            for score, label, box in zip(scores, labels, boxes, strict=True)
        ]

    def select(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, Q, K] -> scores, labels and queries [B, N] of the detections, best first."""
        return self._best_classes(logits) if self.classification == "softmax" else self._best_pairs(logits)

    @staticmethod
    def _best_classes(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, labels = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        scores, queries = scores.sort(dim=-1, descending=True, stable=True)
        return scores, labels.gather(1, queries), queries

    def _best_pairs(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        probabilities = logits.sigmoid().flatten(1)
        scores, pairs = probabilities.topk(min(self.top_k, probabilities.shape[1]), dim=1)
        num_classes = logits.shape[-1]
        return scores, pairs % num_classes, pairs // num_classes


class RegionPostProcess(PostProcess):
    """Every query is one region, whatever its class: label 0, scored by its most probable class."""

    def select(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`PostProcess.select`."""
        if self.classification == "focal":
            logits = logits.amax(dim=-1, keepdim=True)
        scores, labels, queries = super().select(logits)
        return scores, torch.zeros_like(labels), queries
