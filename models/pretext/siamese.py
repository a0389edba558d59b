"""Siamese DETR (2303.18144): one detector sees two views and must find in each the regions of the other."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.profiler import record_function
from torchvision.ops import roi_align

from datasets.pretext.two_view import TwoViewBatch, TwoViewDataset, TwoViewTransform, collate_two_view
from models.criterion import SetCriterion, build_criterion
from models.detr import DETR
from models.interface import ContentPlace, Decoded, Memory
from models.layers import to_float32
from models.matcher import GroupMatcher, HungarianMatcher, Matching, match_as_told
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
from models.pretext.losses import AgreementHead, contrastive_loss, pool_views
from models.pretext.measure import class_confidence, measure_queries, measure_stay
from util.box_ops import box_xyxy_to_cxcywh
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.records import SWITCH, Flag, PretextRecord
from util.script import select_device

ROI_SIZE = 7
MATCHERS = {"free": HungarianMatcher, "own": GroupMatcher}


@dataclass(kw_only=True)
class ViewFeatures:
    """The 2B views of a batch and their regions, as the frozen backbone sees them.

    Attributes:
        features: the backbone's maps.
        mask: [2B, H, W] bool of the views, True at padded pixels.
        boxes: [2B, R, 4], the regions, xyxy in pixels of the view.
        sizes: [2B, 2] (height, width) of the views without padding.
        regions: [2B, R, K], features of the regions in the maps.
        crops: [2B, R, K], features of the regions' crops; None: there is no feature loss.
    """

    features: list[NestedTensor]
    mask: Tensor
    boxes: Tensor
    sizes: Tensor
    regions: Tensor
    crops: Tensor | None


class SiameseDETR(RegionQueryTask):
    """Region detection, regional discrimination and global discrimination between two views.

    The 2B views of a batch of B images go through the detector at once: first all first views, then all second views.
    So the other view of entry n is entry (n + B) mod 2B.

    Attributes:
        contrast_loss_coef: weight of the contrastive feature loss, which needs the head of the feature loss; 0: none.
        content_dropout: in training, the share of views whose queries are told nothing and may answer for any region,
            as those of a detector.
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
        contrast_loss_coef: float = 0.0,
        content_in: ContentPlace = "query_pos",
        content_dropout: float = 0.0,
    ) -> None:
        """With ``global_loss_coef`` 0 there is no global loss and no head for it."""
        super().__init__(
            detector=detector,
            criterion=criterion,
            num_regions=num_regions,
            feature_loss_coef=feature_loss_coef,
            content_in=content_in,
        )
        width = detector.hidden_dim
        self.query_jitter = query_jitter
        self.contrast_loss_coef = contrast_loss_coef
        self.content_dropout = content_dropout
        self.global_loss_coef = global_loss_coef
        self.strides = detector.backbone[0].strides
        self.global_head = (
            AgreementHead(input_dim=width * len(self.strides), hidden_dim=width) if global_loss_coef else None
        )

    def forward(self, batch: TwoViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of one batch.

        Args:
            batch: views [B,2,3,H,W] normalised, mask [B,2,H,W] (True = padding), boxes [B,2,R,4] xyxy in pixels of
                the view, size [B,2] (height, width) of both views, crops [B,2,R,3,s,s] normalised.

        Returns:
            As :meth:`sum_up`; the total and the log include the global loss.
        """
        views = self.extract_features(batch)
        return self.compute_losses(views)

    def extract_features(self, batch: TwoViewBatch) -> ViewFeatures:
        """Run the frozen backbone on a batch (see :meth:`forward`)."""
        images, boxes, sizes = flatten_views(batch)
        with record_function("backbone"), torch.no_grad():
            features = self.frozen_backbone(images)
            regions = self.region_features(features, boxes, sizes)
            crops = None if self.feature_align is None else self.crop_features(batch.crops)
        return ViewFeatures(features=features, mask=images.mask, boxes=boxes, sizes=sizes, regions=regions, crops=crops)

    def draw_told(self, num_views: int) -> Tensor | None:
        """Which views' queries are told what to look for: bool [2B], or None: all.

        The host draws it, since it must know it: a device would make it wait.
        """
        if not (self.training and self.content_dropout):
            return None
        return torch.rand(num_views) >= self.content_dropout

    def predict(self, views: ViewFeatures, told: Tensor | None = None) -> tuple[Memory, Decoded, dict[str, Tensor]]:
        """Ask every view for the regions of its partner; where ``told`` [2B] is False, without telling which."""
        with record_function("transformer"):
            return self.detector.ask(views.features, views.mask, other_view(self.region_queries(views.regions, told)))

    def compute_losses(self, views: ViewFeatures) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses; see :meth:`forward`."""
        told = self.draw_told(len(views.boxes))
        memory, decoded, outputs = self.predict(views, told)
        targets = region_targets(views.boxes, views.sizes)
        matching = None if told is None else match_as_told(self.criterion.matcher, outputs, targets, told)
        losses, matching = self.criterion(outputs, targets, matching)
        with record_function("losses"):
            feature, num_layers = None, len(decoded.hidden)
            if self.feature_align is not None:
                predicted, crops = self.predicted_features(decoded, matching), other_view(views.crops)
                feature = self.feature_term(predicted, matching, crops, num_layers)
            total, logs = self.sum_up(losses, feature, outputs, targets, matching)
            if self.contrast_loss_coef:
                contrast = self.contrast_term(predicted, matching, crops, num_layers)
                logs["loss_contrast"] = contrast[-1]
                total = total + self.contrast_loss_coef * contrast.sum()
            if self.global_head is not None:
                view1, view2 = pool_views(memory, len(self.strides)).chunk(2)
                logs["loss_global"] = self.global_head(view1, view2)
                total = total + self.global_loss_coef * logs["loss_global"]
        return total, {"loss": total, **logs}

    def measure(self, batch: TwoViewBatch) -> dict[str, Tensor]:
        """Values [L, n] of all regions except the first of each view; see :mod:`models.pretext.measure`."""
        views = self.extract_features(batch)
        _, decoded, outputs = self.predict(views)
        targets = region_targets(views.boxes, views.sizes)
        wanted = torch.stack([target["boxes"] for target in targets])
        confidence = class_confidence(outputs, REGION_LABEL, self.detector.classification)
        values = measure_queries(
            confidence,
            outputs["pred_boxes"].float(),
            wanted,
            matching=self.criterion.matcher(outputs, targets),
            predicted=None if self.feature_align is None else lambda query: self.feature_align(decoded.at(query)),
            features=None if self.feature_align is None else other_view(views.crops),
            first=1,
        )
        stay = region_targets(other_view(views.boxes), views.sizes)  # both views have the same size
        elsewhere = torch.stack([target["boxes"] for target in stay])
        return values | measure_stay(elsewhere, wanted, len(confidence), first=1)

    @staticmethod
    def contrast_term(predicted: Tensor, matching: Matching, features: Tensor, num_layers: int) -> Tensor:
        """The contrastive loss [L], unweighted; arguments as in :meth:`feature_term`."""
        return contrastive_loss(
            predicted,
            features[matching.image],
            matching.target,
            matching.layer,
            num_layers,
            features[..., 0].numel(),
        )

    def region_features(self, features: list[NestedTensor], boxes: Tensor, sizes: Tensor) -> Tensor:
        """Mean of 7x7 RoIAlign over the regions, in training slightly moved; the maps of all strides side by side.

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
            roi_align(
                to_float32(level.tensors), list(boxes), ROI_SIZE, spatial_scale=1 / stride, sampling_ratio=-1
            ).mean((-2, -1))
            for level, stride in zip(features, self.strides, strict=True)
        ]
        return torch.cat(pooled, dim=-1).unflatten(0, boxes.shape[:2])

    def features_shown(self, features: list[NestedTensor], boxes: Tensor, sizes: Tensor, crops: Tensor) -> Tensor:
        """As in the base class, but pooled from the maps of the images."""
        return self.region_features(features, boxes, sizes)

    def crop_features(self, crops: Tensor) -> Tensor:
        """Globally pooled backbone features of region crops: [B, 2, R, 3, s, s] -> [2B, R, K]."""
        flat = crops.transpose(0, 1).flatten(0, 2)
        return pooled_features(self.frozen_backbone, flat).unflatten(0, (-1, self.num_regions))

    def region_queries(self, regions: Tensor, told: Tensor | None = None) -> Tensor:
        """Region features [2B, R, K] -> queries of the detector [2B, Q, ...]: each region in Q/R consecutive ones.

        Where ``told`` [2B] is False, the other view's queries stay as the detector learned them.
        """
        content = self.patch2query(regions)
        if told is not None:
            content = content * other_view(told.to(content.device, non_blocking=True))[:, None, None]
        return self.queries_with_content(self.detector.queries(len(regions)), content)


def flatten_views(batch: TwoViewBatch) -> tuple[NestedTensor, Tensor, Tensor]:
    """Images (2B), boxes [2B, R, 4] and sizes [2B, 2]: all first views, then all second views."""
    images = NestedTensor(batch.views.transpose(0, 1).flatten(0, 1), batch.mask.transpose(0, 1).flatten(0, 1))
    return images, batch.boxes.transpose(0, 1).flatten(0, 1), batch.size.repeat(2, 1)


def other_view(values: Tensor) -> Tensor:
    """Values per view [2B, ...] -> for each view those of its partner."""
    return values.roll(len(values) // 2, dims=0)


def region_targets(boxes: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
    """Regions [N, R, 4] (xyxy pixels) of views [N, 2] (height, width) as detection targets (cxcywh in [0, 1])."""
    normalised = box_xyxy_to_cxcywh(boxes) / sizes.flip(-1).repeat(1, 2).unsqueeze(1)
    return as_targets(normalised, REGION_LABEL)


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
    """The pretext task of the paper around ``detector``, or that of ``--recipe fast``."""
    return SiameseDETR(
        detector=detector,
        criterion=build_criterion(
            args,
            num_logits=detector.num_logits,
            classification=detector.classification,
            matcher_class=MATCHERS[args.matching],
        ),
        num_regions=args.num_regions,
        query_jitter=args.query_jitter,
        feature_loss_coef=feature_loss_coef(args),
        global_loss_coef=0.0 if args.no_global_loss else args.global_loss_coef,
        contrast_loss_coef=0.0 if args.no_feature_loss else args.contrast_loss_coef,
        content_in=args.content_in,
        content_dropout=args.content_dropout,
    )


def _transform(args: argparse.Namespace, common: dict[str, Any]) -> TwoViewTransform:
    return TwoViewTransform(
        num_regions=args.num_regions,
        view_iou=args.view_iou,
        region_nms=args.region_nms,
        change_later=args.augment_device == "cuda",
        **common,
    )


def _check(args: argparse.Namespace, world_size: int) -> None:
    check_regions(args)
    if not 0 < args.view_iou < 1:
        raise UserError(f"--view_iou {args.view_iou}: must lie between 0 and 1")
    if not 0 <= args.query_jitter < 0.5:
        raise UserError(f"--query_jitter {args.query_jitter}: must lie in [0, 0.5), otherwise corners could cross")
    if not 0 <= args.content_dropout < 1:
        raise UserError(f"--content_dropout {args.content_dropout}: must lie in [0, 1)")
    if args.region_nms is not None and not 0 < args.region_nms <= 1:
        raise UserError(f"--region_nms {args.region_nms}: must lie in (0, 1]")
    if args.contrast_loss_coef and not args.feature_loss_coef:
        raise UserError("--contrast_loss_coef needs the head of the feature loss: --feature_loss_coef must be above 0")
    if args.augment_device == "cuda" and select_device(args.device).type != "cuda":
        raise UserError("--augment_device cuda goes with --device cuda, but this run uses no GPU")
    if not args.no_global_loss and args.global_loss_coef and args.batch_size * world_size < 2:
        raise UserError(
            "--batch_size 1 in one process: the global loss normalises over the batch and needs two images; "
            "raise --batch_size or add --no_global_loss"
        )


_BODY_OF_AUTHORS = re.compile(r"backbone\.(?=conv1\.|bn1\.|layer[1-4]\.)")


def _public_name(name: str) -> str:
    """The public name of a tensor in the layout of the authors' training; public names stay."""
    if _BODY_OF_AUTHORS.match(name):
        return f"backbone.0.body.{name.removeprefix('backbone.')}"
    plain = name.removeprefix("pred_head.")
    return plain if plain.startswith(("class_embed.", "bbox_embed.")) else name


def _foreign_kind(names: Collection[str]) -> str | None:
    """Recognised by the heads. The authors' tool keeps only ``patch2query`` of them, as UP-DETR's checkpoints do.

    The tool drops the class head, or copies it for each layer of Deformable DETR; UP-DETR has a single class head.
    """

    def holds(beginning: str) -> bool:
        return any(name.startswith(beginning) for name in names)

    if holds("pred_head."):
        return "Siamese DETR in the layout of its training"
    if holds("patch2query.") and not any(map(holds, ("class_embed.weight", "feature_align.", "head."))):
        return "Siamese DETR, converted by its authors' tool"
    return None


FAST = {
    "matching": "own",
    "region_nms": 0.5,
    "content_in": "tgt",
    "contrast_loss_coef": 0.5,
    "global_loss_coef": 0.3,
    "dropout": 0.0,
    "lr": 4e-4,
    "warmup_steps": 100,
}
"""Our recipe for short pretraining, not the paper's: each query must find its own region, by its appearance."""

SIAMESE = PretextRecord(
    title="Siamese DETR (arXiv 2303.18144)",
    build=build_siamese,
    num_classes=NUM_CLASSES,
    classification="softmax",
    dataset=TwoViewDataset,
    build_transform=_transform,
    collate=collate_two_view,
    flags=(
        NUM_REGIONS,
        Flag(name="view_iou", help="lowest IoU of the two views (tau)", options={"type": float}, default=0.5),
        Flag(
            name="augment_device",
            help="where views change colour and are blurred: cpu: in the workers; cuda: on the GPU, with --device cuda",
            options={"choices": ["cpu", "cuda"]},
            default="cpu",
        ),
        Flag(
            name="query_jitter", help="noise on region corners, share of the side", options={"type": float}, default=0.1
        ),
        Flag(name="no_global_loss", help="ablation: no global discrimination", options=SWITCH, default=False),
        Flag(name="global_loss_coef", help="weight of the global loss", options={"type": float}, default=10.0, least=0),
        *FEATURE_LOSS_FLAGS,
        Flag(
            name="matching",
            help="free: any query may find any region, as in the paper; own: each query must find its own region",
            options={"choices": list(MATCHERS)},
            default="free",
        ),
        Flag(
            name="region_nms",
            help="highest IoU of two regions of an image; default: no limit, as in the paper",
            options={"type": float, "metavar": "IOU"},
        ),
        Flag(
            name="content_in",
            help="what a region's feature is added to: query_pos: the queries' positions, as in the paper; tgt: the "
            "content that the decoder starts with",
            options={"choices": list(get_args(ContentPlace))},
            default="query_pos",
        ),
        Flag(
            name="content_dropout",
            help="share of views whose queries are told nothing and may answer for any region, as in finetuning",
            options={"type": float},
            default=0.0,
        ),
        Flag(
            name="contrast_loss_coef",
            help="weight of a contrastive feature loss: a region against the other regions of its image",
            options={"type": float},
            default=0.0,
            least=0,
        ),
    ),
    defaults={"feature_loss_coef": 3.0},
    recipes={"fast": FAST},
    check=_check,
    foreign_kind=_foreign_kind,
    heads=("patch2query.", "pred_head.", "enc_head.", "feature_align."),
    public_name=_public_name,
)
