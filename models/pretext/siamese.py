"""Siamese DETR (2303.18144): two views through one detector, each asked for the regions of the other."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.ops import roi_align

from datasets.two_view import TwoViewBatch
from models.criterion import SetCriterion, build_criterion
from models.detr import DETR
from models.frozen_backbone import fold_frozen_batch_norms
from models.layers import MLP, widen
from models.pretext.losses import AgreementHead, feature_loss, pool_views
from util.box_ops import box_xyxy_to_cxcywh
from util.nested_tensor import NestedTensor

REGION_LABEL = 1  # of the three class logits 0 is unused and the last is "no object"
NUM_LOGITS = 3
ROI_SIZE = 7


class SiameseDETR(nn.Module):
    """Pretrains the Transformer, queries and box head of ``detector``; its backbone stays as it is.

    The 2B views of a batch of B images go through the detector at once, first all first views, then all second
    ones, so that the other view of entry n is entry (n + B) mod 2B.

    Attributes:
        detector: the detector that finetuning goes on with, unchanged.
        patch2query: region feature -> query content.
        feature_align: decoder output -> backbone feature of the region (None: no regional discrimination).
        global_head: agreement of the encoded views (None: no global discrimination).
    """

    def __init__(
        self,
        *,
        detector: DETR,
        criterion: SetCriterion,
        num_regions: int,
        query_jitter: float,
        feature_loss_coef: float,
        global_loss_coef: float,
    ) -> None:
        """A coefficient of 0 leaves that loss and its head out."""
        super().__init__()
        backbone, width = detector.backbone[0], detector.hidden_dim
        feature_dim = sum(backbone.num_channels)
        self.detector = detector
        self.criterion = criterion
        self.num_regions = num_regions
        self.query_jitter = query_jitter
        self.feature_loss_coef = feature_loss_coef
        self.global_loss_coef = global_loss_coef
        self.strides = backbone.strides
        backbone.requires_grad_(False)
        self.frozen_backbone = fold_frozen_batch_norms(backbone)
        self.patch2query = nn.Linear(feature_dim, width)
        self.feature_align = MLP(width, width, feature_dim, 2) if feature_loss_coef else None
        self.global_head = (
            AgreementHead(input_dim=width * len(self.strides), hidden_dim=width) if global_loss_coef else None
        )

    def train(self, mode: bool = True) -> SiameseDETR:
        """As usual, but the frozen backbone never leaves evaluation."""
        super().train(mode)
        self.frozen_backbone.eval()
        return self

    def pretext_state_dict(self) -> dict[str, Tensor]:
        """What pretraining learns beside the detector: its own heads."""
        inherited = ("detector.", "frozen_backbone.")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(inherited)}

    def load_pretext_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`pretext_state_dict`; a resumed run has the same heads."""
        own = self.pretext_state_dict()
        if own.keys() != state.keys():
            raise KeyError(f"pretext heads differ: {sorted(own.keys() ^ state.keys())}")
        self.load_state_dict(state, strict=False)

    def forward(self, batch: TwoViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of one batch.

        Args:
            batch: views [B,2,3,H,W] normalised, mask [B,2,H,W] (True = padding), boxes [B,2,R,4] xyxy in pixels of
                the view, size [B,2] (height, width) of both views, crops [B,2,R,3,s,s] normalised.

        Returns:
            The weighted sum over terms and decoder layers (scalar), and scalars for the log: each term
            unweighted at the last layer, ``class_error`` and ``cardinality_error``.
        """
        images, boxes, sizes = views_in_a_row(batch)
        with record_function("backbone"), torch.no_grad():
            features = self.frozen_backbone(images)
            regions = self.region_features(features, boxes, sizes)
            crop_features = None if self.feature_align is None else self.crop_features(batch.crops)

        with record_function("transformer"):
            memory = self.detector.encode(features, images.mask)
            decoded = self.detector.decode(memory, other_view(self.region_queries(regions)))
            outputs = self.detector.predict(decoded)

        targets = region_targets(boxes, sizes)
        losses, matching = self.criterion(outputs, targets)
        with record_function("losses"):
            total = self.criterion.total(losses)
            if self.feature_align is not None:
                wanted = other_view(crop_features)[matching.image, matching.target]
                hidden = decoded.hidden[matching.layer, matching.image, matching.query]
                losses["feature"] = feature_loss(
                    self.feature_align(hidden),
                    wanted,
                    matching.layer,
                    len(decoded.hidden),
                    boxes[..., 0].numel(),
                )
                total = total + self.feature_loss_coef * losses["feature"].sum()
            logs = {f"loss_{name}": value[-1] for name, value in losses.items()}
            if self.global_head is not None:
                view1, view2 = pool_views(memory, len(self.strides)).chunk(2)
                logs["loss_global"] = self.global_head(view1, view2)
                total = total + self.global_loss_coef * logs["loss_global"]
            logs |= self.criterion.errors(outputs, targets, matching)
        return total, {"loss": total, **logs}

    def region_features(self, features: list[NestedTensor], boxes: Tensor, sizes: Tensor) -> Tensor:
        """Mean of 7x7 RoIAlign over slightly moved regions, the maps of all strides side by side.

        Args:
            features: backbone maps of the 2B views.
            boxes: [2B, R, 4] xyxy in pixels of the view.
            sizes: [2B, 2] (height, width) of the view in pixels.

        Returns:
            [2B, R, K].
        """
        if self.training and self.query_jitter:
            boxes = jitter_boxes(boxes, sizes, self.query_jitter)
        pooled = [
            roi_align(widen(level.tensors), list(boxes), ROI_SIZE, spatial_scale=1 / stride, sampling_ratio=-1).mean(
                (-2, -1)
            )
            for level, stride in zip(features, self.strides, strict=True)
        ]
        return torch.cat(pooled, dim=-1).unflatten(0, boxes.shape[:2])

    def crop_features(self, crops: Tensor) -> Tensor:
        """Globally pooled backbone features of region crops: [B, 2, R, 3, s, s] -> [2B, R, K]."""
        flat = crops.transpose(0, 1).flatten(0, 2)
        no_padding = torch.zeros(len(flat), *flat.shape[-2:], dtype=torch.bool, device=flat.device)
        maps = self.frozen_backbone(NestedTensor(flat, no_padding))
        pooled = torch.cat([widen(level.tensors).mean((-2, -1)) for level in maps], dim=-1)
        return pooled.unflatten(0, (-1, self.num_regions))

    def region_queries(self, regions: Tensor) -> Tensor:
        """Region features [2B, R, K] -> queries [2B, Q, C]: each region in Q/R consecutive queries (R divides Q).

        Every image has queries of its own. Where they are 2C wide, the second half, which the decoder starts with, is
        the learned one alone.
        """
        learned = self.detector.queries(len(regions))
        content = self.patch2query(regions)
        content = F.pad(content, (0, learned.shape[-1] - content.shape[-1]))
        return learned + content.repeat_interleave(learned.shape[1] // self.num_regions, dim=1)


def views_in_a_row(batch: TwoViewBatch) -> tuple[NestedTensor, Tensor, Tensor]:
    """All first views, then all second ones: images (2B), boxes [2B, R, 4], sizes [2B, 2]."""
    images = NestedTensor(batch.views.transpose(0, 1).flatten(0, 1), batch.mask.transpose(0, 1).flatten(0, 1))
    return images, batch.boxes.transpose(0, 1).flatten(0, 1), batch.size.repeat(2, 1)


def other_view(values: Tensor) -> Tensor:
    """Per-view values [2B, ...] -> those of each view's partner."""
    return values.roll(len(values) // 2, dims=0)


def region_targets(boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """Regions [N, R, 4] (xyxy pixels) of views [N, 2] (height, width) as detection targets (cxcywh in [0, 1])."""
    normalised = box_xyxy_to_cxcywh(boxes) / sizes.flip(-1).repeat(1, 2).unsqueeze(1)
    labels = torch.full(boxes.shape[1:2], REGION_LABEL, device=boxes.device)
    return [{"labels": labels, "boxes": image_boxes} for image_boxes in normalised]


def jitter_boxes(boxes: Tensor, sizes: Tensor, rho: float) -> Tensor:
    """Move every corner coordinate by up to +-``rho`` of the box's side and clip to the view.

    The offset is side * rho * (2 sigmoid(n) - 1) with n ~ N(0, 1).

    Args:
        boxes: [N, R, 4] xyxy in pixels.
        sizes: [N, 2] (height, width) in pixels.
        rho: below 0.5, so that corners cannot cross.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    moved = boxes + sides * rho * (2 * torch.randn_like(boxes).sigmoid() - 1)
    limit = sizes.flip(-1).repeat(1, 2).unsqueeze(1).to(boxes)
    return torch.minimum(moved.clamp(min=0), limit)


def build_siamese(args: argparse.Namespace, detector: DETR) -> SiameseDETR:
    """The pretext task of the paper around ``detector``, whose class head has :data:`NUM_LOGITS` outputs."""
    return SiameseDETR(
        detector=detector,
        criterion=build_criterion(args, num_logits=NUM_LOGITS, classification="softmax"),
        num_regions=args.num_regions,
        query_jitter=args.query_jitter,
        feature_loss_coef=0.0 if args.no_feature_loss else args.feature_loss_coef,
        global_loss_coef=0.0 if args.no_global_loss else args.global_loss_coef,
    )
