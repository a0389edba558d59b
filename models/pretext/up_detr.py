"""UP-DETR (2011.09094): random patches of an image are the queries, the detector must find where they come from."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.profiler import record_function

from datasets.pretext.one_view import OneViewBatch
from models.criterion import SetCriterion, build_criterion
from models.detr import DETR
from models.pretext.base import NUM_LOGITS, REGION_LABEL, RegionQueryTask, add_to_queries, as_targets, pooled_features


class UPDETR(RegionQueryTask):
    """Random query patch detection and patch feature reconstruction.

    Attributes:
        patch_dropout: in training, the share of queries that do not learn what their patch looks like.
        shuffle_queries: in training, which learned queries go with which patch is drawn anew in every step.
        query_mask: bool [Q, Q], True where the query of the row belongs to another patch than that of the column.
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
            As :meth:`sum_up`, with the sum itself.
        """
        images = batch.images
        with record_function("backbone"), torch.no_grad():
            features = self.frozen_backbone(images)
            patches = pooled_features(self.frozen_backbone, batch.crops).unflatten(0, (len(images), self.num_regions))

        with record_function("transformer"):
            memory = self.detector.encode(features, images.mask)
            decoded = self.detector.decode(memory, self.patch_queries(patches), self.query_mask)
            outputs = self.detector.predict(decoded)

        targets = as_targets(batch.boxes, REGION_LABEL)
        losses, matching = self.criterion(outputs, targets)
        with record_function("losses"):
            feature = None if self.feature_align is None else self.feature_term(decoded, matching, patches)
            total, logs = self.sum_up(losses, feature, outputs, targets, matching)
        return total, {"loss": total, **logs}

    def patch_queries(self, patches: Tensor) -> Tensor:
        """Patch features [B, R, K] -> queries [B, Q, C or 2C], each patch in Q/R consecutive ones (R divides Q)."""
        learned = self.detector.queries(len(patches))
        content = self.patch2query(patches).repeat_interleave(learned.shape[1] // self.num_regions, dim=1)
        if self.training and self.shuffle_queries:
            learned = learned[:, torch.randperm(learned.shape[1]).to(learned.device)]
        if self.training and self.patch_dropout:
            kept = torch.rand(content.shape[:2], device=content.device) >= self.patch_dropout
            content = content * kept[..., None]
        return add_to_queries(learned, content)


def build_up_detr(args: argparse.Namespace, detector: DETR) -> UPDETR:
    """The pretext task of UP-DETR around ``detector``, whose class head has :data:`NUM_LOGITS` outputs."""
    return UPDETR(
        detector=detector,
        criterion=build_criterion(args, num_logits=NUM_LOGITS, classification="softmax"),
        num_regions=args.num_regions,
        patch_dropout=args.patch_dropout,
        shuffle_queries=args.shuffle_queries,
        feature_loss_coef=0.0 if args.no_feature_loss else args.feature_loss_coef,
    )
