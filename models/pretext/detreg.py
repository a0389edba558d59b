"""DETReg (2106.04550): detect class-agnostic proposals and predict what a frozen backbone sees in them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from datasets.pretext.one_view import OneViewBatch, OneViewDataset, ProposalTransform, collate_one_view
from models.backbone import Backbone, build_crop_encoder
from models.criterion import SetCriterion, build_criterion
from models.detr import DETR
from models.fast.frozen_backbone import fold_frozen_batch_norms
from models.interface import Decoded
from models.layers import MLP
from models.matcher import Matching
from models.pretext.base import FEATURE_LOSS_FLAGS, PretextTask, as_targets, feature_loss_coef, pooled_features
from models.pretext.losses import embedding_loss
from models.pretext.measure import class_confidence, measure_recall
from util.nested_tensor import NestedTensor
from util.records import Flag, PretextRecord

OBJECT_LABEL = 0  # the one class


class DETReg(PretextTask):
    """Object localisation and object embedding, with the detector's own queries.

    Attributes:
        feature_embed: decoder output -> embedding of the region (None: no embedding loss).
        frozen_encoder: the backbone up to its map of stride 8 (ResNets: layer2). The target embedding [E] is the mean
            of this map over the region's crop.
    """

    def __init__(
        self, *, detector: DETR, criterion: SetCriterion, crop_encoder: Backbone, feature_loss_coef: float
    ) -> None:
        """``crop_encoder`` holds pretrained weights."""
        super().__init__(detector=detector, criterion=criterion, feature_loss_coef=feature_loss_coef)
        width = detector.hidden_dim
        self.frozen_encoder = fold_frozen_batch_norms(crop_encoder)
        self.feature_embed = MLP(width, width, crop_encoder.num_channels[0], 2) if feature_loss_coef else None

    def forward(self, batch: OneViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of one batch.

        Args:
            batch: B images with any number of regions, zero included.

        Returns:
            As :meth:`sum_up`; the log includes the total.
        """
        images = batch.images
        with record_function("backbone"), torch.no_grad():
            features = self.frozen_backbone(images)
            wanted = None if self.feature_embed is None else pooled_features(self.frozen_encoder, batch.crops)

        decoded, outputs = self.predict(features, images.mask)
        targets = as_targets(batch.boxes, OBJECT_LABEL)
        losses, matching = self.criterion(outputs, targets)
        with record_function("losses"):
            feature = None if wanted is None else self.embedding_term(decoded, matching, batch.first_crops(), wanted)
            total, logs = self.sum_up(losses, feature, outputs, targets, matching)
        return total, {"loss": total, **logs}

    def predict(self, features: list[NestedTensor], image_mask: Tensor) -> tuple[Decoded, dict[str, Tensor]]:
        """Detect with the learned queries, from the features of the images."""
        with record_function("transformer"):
            _, decoded, outputs = self.detector.ask(features, image_mask, self.detector.queries(len(image_mask)))
            return decoded, outputs

    def measure(self, batch: OneViewBatch) -> dict[str, Tensor]:
        """Values [L, n] of the regions; see :func:`measure_recall`."""
        _, outputs = self.predict(self.frozen_backbone(batch.images), batch.images.mask)
        confidence = class_confidence(outputs, OBJECT_LABEL, self.detector.classification)
        return measure_recall(confidence, outputs["pred_boxes"].float(), batch.boxes)

    def embedding_term(self, decoded: Decoded, matching: Matching, first_crop: Tensor, wanted: Tensor) -> Tensor:
        """The embedding loss [1] of the last decoder layer, unweighted; the other layers have none, as in public code.

        Args:
            first_crop: [B] int64, the index of each image's first crop.
            wanted: [sum of R_i, E], the embeddings of all crops.
        """
        last = matching.of_last_layer(len(decoded.hidden))
        guess = self.feature_embed(decoded.hidden[-1, last.image, last.query])
        return embedding_loss(guess, wanted[first_crop[last.image] + last.target])[None]


def build_detreg(args: argparse.Namespace, detector: DETR) -> DETReg:
    """The pretext task of DETReg around ``detector``."""
    weights = detector.backbone[0].state_dict()
    crop_encoder = build_crop_encoder(args.backbone)
    crop_encoder.load_state_dict({name: weights[name] for name in crop_encoder.state_dict()})
    return DETReg(
        detector=detector,
        criterion=build_criterion(args, num_logits=detector.num_logits, classification=detector.classification),
        crop_encoder=crop_encoder,
        feature_loss_coef=feature_loss_coef(args),
    )


def _transform(args: argparse.Namespace, common: dict[str, Any]) -> ProposalTransform:
    return ProposalTransform(num_proposals=args.num_proposals, random=args.proposals == "random", **common)


def _warning(args: argparse.Namespace) -> str | None:
    if args.proposals != "random":
        return None
    return "DETReg on random boxes, not objects: make proposals with tools/make_proposals.py and pass --proposals"


def _foreign_kind(names: Collection[str]) -> str | None:
    return "DETReg's pretraining" if any(name.startswith("feature_embed.") for name in names) else None


DETREG = PretextRecord(
    title="DETReg (arXiv 2106.04550)",
    build=build_detreg,
    num_classes=1,
    classification=None,  # the same as in finetuning
    dataset=OneViewDataset,
    build_transform=_transform,
    collate=collate_one_view,
    flags=(
        Flag(name="num_proposals", help="best proposals used per image", options={"type": int}, default=30, least=1),
        *FEATURE_LOSS_FLAGS,
    ),
    defaults={"batch_size": 4, "epochs": 5, "lr_drop": 40},
    warning=_warning,
    detects_alone=True,
    foreign_kind=_foreign_kind,
    heads=("feature_embed.",),
)
