"""DETReg (2106.04550): detect class-agnostic proposals and predict what a frozen backbone sees in them."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.profiler import record_function

from datasets.pretext.one_view import OneViewBatch
from models.backbone import Backbone, build_crop_encoder
from models.criterion import SetCriterion, build_criterion
from models.detr import DETR
from models.fast.frozen_backbone import fold_frozen_batch_norms
from models.layers import MLP
from models.pretext.base import PretextTask, as_targets, pooled_features
from models.pretext.losses import embedding_loss
from util.recipes import is_focal

OBJECT_LABEL = 0  # the one class


class DETReg(PretextTask):
    """Object localisation and object embedding, with the detector's own queries.

    Attributes:
        feature_embed: decoder output -> embedding of the region (None: no embedding loss).
        frozen_encoder: what the embeddings are of: the backbone up to its map of stride 8 (ResNets: layer2), whose
            mean over a region's crop is the target [E].
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
            batch: B images with any number of regions, none included.

        Returns:
            As :meth:`sum_up`, with the sum itself.
        """
        images = batch.images
        with record_function("backbone"), torch.no_grad():
            features = self.frozen_backbone(images)
            wanted = None if self.feature_embed is None else pooled_features(self.frozen_encoder, batch.crops)

        with record_function("transformer"):
            memory = self.detector.encode(features, images.mask)
            decoded = self.detector.decode(memory, self.detector.queries(len(images)))
            outputs = self.detector.predict(decoded)

        targets = as_targets(batch.boxes, OBJECT_LABEL)
        losses, matching = self.criterion(outputs, targets)
        with record_function("losses"):
            feature = None
            if self.feature_embed is not None:
                hidden = decoded.hidden[matching.layer, matching.image, matching.query]
                crop = batch.first_crops()[matching.image] + matching.target
                feature = embedding_loss(self.feature_embed(hidden), wanted[crop], len(decoded.hidden))
            total, logs = self.sum_up(losses, feature, outputs, targets, matching)
        return total, {"loss": total, **logs}


def build_detreg(args: argparse.Namespace, detector: DETR) -> DETReg:
    """The pretext task of DETReg around ``detector``, whose class head is that of :func:`detreg_class_head`."""
    num_logits, focal = detreg_class_head(args)
    weights = detector.backbone[0].state_dict()
    crop_encoder = build_crop_encoder(args.backbone)
    crop_encoder.load_state_dict({name: weights[name] for name in crop_encoder.state_dict()})
    return DETReg(
        detector=detector,
        criterion=build_criterion(args, num_logits=num_logits, classification="focal" if focal else "softmax"),
        crop_encoder=crop_encoder,
        feature_loss_coef=0.0 if args.no_feature_loss else args.feature_loss_coef,
    )


def detreg_class_head(args: argparse.Namespace) -> tuple[int, bool]:
    """Outputs of the class head, and whether it is for the focal loss: as in the detector's finetuning, one class."""
    return (1, True) if is_focal(args) else (2, False)
