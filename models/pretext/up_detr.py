"""UP-DETR (2011.09094): queries show random patches of an image, and the detector must find them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from datasets.pretext.one_view import OneViewBatch, OneViewDataset, PatchTransform, collate_one_view
from models.criterion import SetCriterion, build_criterion
from models.detr import DETR
from models.interface import Decoded
from models.pretext.base import (
    FEATURE_LOSS_FLAGS,
    NUM_CLASSES,
    NUM_REGIONS,
    REGION_LABEL,
    RegionQueryTask,
    as_targets,
    check_regions,
    feature_loss_coef,
    pooled_features,
)
from models.pretext.measure import class_confidence, measure_queries
from util.errors import UserError
from util.records import SWITCH, Flag, PretextRecord


class UPDETR(RegionQueryTask):
    """Random query patch detection and patch feature reconstruction.

    Attributes:
        patch_dropout: in training, the share of queries that do not get the feature of their patch.
        shuffle_queries: in training, every step assigns the learned queries to the patches at random.
        query_mask: bool [Q, Q], True where the queries of row and column ask for different patches.
    """

    def __init__(
        self,
        *,
        detector: DETR,
        criterion: SetCriterion,
        num_regions: int,
        patch_dropout: float,
        shuffle_queries: bool,
        feature_loss_coef: float,
    ) -> None:
        super().__init__(
            detector=detector, criterion=criterion, num_regions=num_regions, feature_loss_coef=feature_loss_coef
        )
        self.patch_dropout = patch_dropout
        self.shuffle_queries = shuffle_queries
        num_queries = len(detector.query_embed.weight)
        patch = torch.arange(num_queries) // (num_queries // num_regions)
        self.register_buffer("query_mask", patch[:, None] != patch, persistent=False)

    def forward(self, batch: OneViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of one batch.

        Args:
            batch: B images, each with R patches.

        Returns:
            As :meth:`sum_up`; the log includes the total.
        """
        patches, decoded, outputs = self.predict(batch)
        targets = as_targets(batch.boxes, REGION_LABEL)
        losses, matching = self.criterion(outputs, targets)
        with record_function("losses"):
            feature = None
            if self.feature_align is not None:
                predicted = self.predicted_features(decoded, matching)
                feature = self.feature_term(predicted, matching, patches, len(decoded.hidden))
            total, logs = self.sum_up(losses, feature, outputs, targets, matching)
        return total, {"loss": total, **logs}

    def predict(self, batch: OneViewBatch) -> tuple[Tensor, Decoded, dict[str, Tensor]]:
        """Ask every image for its patches: features of the patches [B, R, K], decoded queries, predictions."""
        images = batch.images
        with record_function("backbone"), torch.no_grad():
            features = self.frozen_backbone(images)
            patches = pooled_features(self.frozen_backbone, batch.crops).unflatten(0, (len(images), self.num_regions))

        with record_function("transformer"):
            queries = self.patch_queries(patches)
            _, decoded, outputs = self.detector.ask(features, images.mask, queries, self.query_mask)
            return patches, decoded, outputs

    def measure(self, batch: OneViewBatch) -> dict[str, Tensor]:
        """Values [L, n] of the patches; see :mod:`models.pretext.measure`."""
        patches, decoded, outputs = self.predict(batch)
        return measure_queries(
            class_confidence(outputs, REGION_LABEL, self.detector.classification),
            outputs["pred_boxes"].float(),
            torch.stack(batch.boxes),
            matching=self.criterion.matcher(outputs, as_targets(batch.boxes, REGION_LABEL)),
            predicted=None if self.feature_align is None else lambda query: self.feature_align(decoded.at(query)),
            features=None if self.feature_align is None else patches,
        )

    def patch_queries(self, patches: Tensor) -> Tensor:
        """Patch features [B, R, K] -> queries of the detector [B, Q, ...], Q/R consecutive queries per patch."""
        learned = self.detector.queries(len(patches))
        content = self.patch2query(patches).repeat_interleave(learned.shape[1] // self.num_regions, dim=1)
        if self.training and self.shuffle_queries:
            learned = learned[:, torch.randperm(learned.shape[1]).to(learned.device)]
        if self.training and self.patch_dropout:
            kept = torch.rand(content.shape[:2], device=content.device) >= self.patch_dropout
            content = content * kept[..., None]
        return self.queries_with_content(learned, content)


def build_up_detr(args: argparse.Namespace, detector: DETR) -> UPDETR:
    """The pretext task of UP-DETR around ``detector``."""
    return UPDETR(
        detector=detector,
        criterion=build_criterion(args, num_logits=detector.num_logits, classification=detector.classification),
        num_regions=args.num_regions,
        patch_dropout=args.patch_dropout,
        shuffle_queries=args.shuffle_queries,
        feature_loss_coef=feature_loss_coef(args),
    )


def _transform(args: argparse.Namespace, common: dict[str, Any]) -> PatchTransform:
    return PatchTransform(num_regions=args.num_regions, **common)


def _check(args: argparse.Namespace, world_size: int) -> None:
    check_regions(args)
    if not 0 <= args.patch_dropout < 1:
        raise UserError(f"--patch_dropout {args.patch_dropout}: must lie in [0, 1)")
    if args.proposals != "random":
        raise UserError(f"--proposals {args.proposals}: --method {args.method} uses random patches; omit --proposals")


_HEAD_OF_SIAMESE_DETR = "head."
"""Prefix of the heads' names in the UP-DETR of Siamese DETR's code."""


def _foreign_kind(names: Collection[str]) -> str | None:
    if any(name.startswith(_HEAD_OF_SIAMESE_DETR) for name in names):
        return "UP-DETR in the layout of Siamese DETR's code"
    return "UP-DETR's pretraining" if any(name.startswith("patch2query.") for name in names) else None


def _public_name(name: str) -> str:
    """The public name of a tensor in the layout of Siamese DETR's code; public names stay."""
    plain = name.removeprefix(_HEAD_OF_SIAMESE_DETR)
    return plain if plain.startswith(("class_embed.", "bbox_embed.")) else name


UP_DETR = PretextRecord(
    title="UP-DETR (arXiv 2011.09094)",
    build=build_up_detr,
    num_classes=NUM_CLASSES,
    classification="softmax",
    dataset=OneViewDataset,
    build_transform=_transform,
    collate=collate_one_view,
    flags=(
        NUM_REGIONS,
        Flag(
            name="patch_dropout",
            help="share of queries that do not get the feature of their patch",
            options={"type": float},
            default=0.1,
        ),
        Flag(
            name="shuffle_queries",
            help="assign the learned queries to the patches at random in every step",
            options=SWITCH,
            default=False,
        ),
        *FEATURE_LOSS_FLAGS,
    ),
    check=_check,
    foreign_kind=_foreign_kind,
    heads=("patch2query.", "feature_align.", "head."),
    public_name=_public_name,
)
