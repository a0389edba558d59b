"""A pretext task in one file: find the one random patch of an image, by the detector's own queries."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from datasets.pretext.one_view import OneViewBatch, OneViewDataset, PatchTransform, collate_one_view
from models.criterion import build_criterion
from models.detr import DETR
from models.pretext.base import PretextTask, as_targets
from util.errors import UserError
from util.records import Flag, PretextRecord


class ToyTask(PretextTask):
    """The detection losses of the patch, weighted."""

    def __init__(self, *, weight: float, **parts: Any) -> None:
        super().__init__(feature_loss_coef=0.0, **parts)
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, batch: OneViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`models.pretext.base.PretextTask`."""
        images = batch.images
        memory = self.detector.encode(self.frozen_backbone(images), images.mask)
        outputs = self.detector.predict(self.detector.decode(memory, self.detector.queries(len(images))))
        targets = as_targets(batch.boxes, 0)
        losses, matching = self.criterion(outputs, targets)
        total, logs = self.sum_up(losses, None, outputs, targets, matching)
        return self.weight * total, {"loss": self.weight * total, **logs}


def build_toy(args: argparse.Namespace, detector: DETR) -> ToyTask:
    """The task around ``detector``."""
    criterion = build_criterion(args, num_logits=detector.num_logits, classification=detector.classification)
    return ToyTask(detector=detector, criterion=criterion, weight=args.toy_weight)


def _transform(args: argparse.Namespace, common: dict[str, Any]) -> PatchTransform:
    return PatchTransform(num_regions=1, **common)


def _check(args: argparse.Namespace, world_size: int) -> None:
    if args.toy_weight > 9:
        raise UserError(f"--toy_weight {args.toy_weight}: too large")


TOY_PRETEXT = PretextRecord(
    title="Toy task",
    build=build_toy,
    num_classes=1,
    classification=None,
    dataset=OneViewDataset,
    build_transform=_transform,
    collate=collate_one_view,
    flags=(Flag(name="toy_weight", help="of everything", options={"type": float}, default=1.0, least=0),),
    check=_check,
    warning=lambda args: "it is a toy",
)
