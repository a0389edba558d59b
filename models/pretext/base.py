"""What the pretext tasks share: a detector with a frozen backbone, and heads of their own."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.criterion import SetCriterion
from models.detr import DETR
from models.fast.frozen_backbone import fold_frozen_batch_norms, frozen_parts
from models.interface import ContentPlace, Decoded
from models.layers import MLP, to_float32
from models.matcher import Matching
from models.pretext.losses import feature_loss
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.records import SWITCH, Flag

NUM_CLASSES = 2  # as in the public checkpoints, where class 0 is unused
REGION_LABEL = 1


class PretextTask(nn.Module):
    """Pretrains the Transformer, queries and heads of ``detector``; its backbone is frozen.

    Attributes:
        detector: the detector that is finetuned later.
        feature_loss_coef: weight of the feature loss; 0: there is no such loss and no head for it.
        frozen_backbone: a faster copy of the backbone. A module ``frozen_...`` always stays in evaluation mode and is
            not saved.
    """

    def __init__(self, *, detector: DETR, criterion: SetCriterion, feature_loss_coef: float) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = criterion
        self.feature_loss_coef = feature_loss_coef
        detector.backbone[0].requires_grad_(False)
        self.frozen_backbone = fold_frozen_batch_norms(detector.backbone[0])

    def train(self, mode: bool = True) -> PretextTask:
        """As usual, but frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in frozen_parts(self):
            module.eval()
        return self

    def sum_up(
        self,
        losses: dict[str, Tensor],
        feature: Tensor | None,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
        matching: Matching,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the criterion's losses and the feature loss.

        Args:
            losses: [L] each.
            feature: [L], or [1] if only the last decoder layer has this loss; None: no feature loss.
            outputs, targets, matching: the criterion's.

        Returns:
            The weighted sum over terms and decoder layers (scalar), and scalars for the log: each term unweighted at
            the last layer, ``class_error`` and ``cardinality_error``.
        """
        total = self.criterion.total(losses)
        if feature is not None:
            losses = losses | {"feature": feature}
            total = total + self.feature_loss_coef * feature.sum()
        logs = {f"loss_{name}": value[-1] for name, value in losses.items()}
        return total, logs | self.criterion.errors(outputs, targets, matching)

    def measure(self, batch: Any) -> dict[str, Tensor]:
        """How well the task is solved, in evaluation mode and without gradients; see ``models/pretext/measure.py``.

        Returns:
            Name -> values [L, n] of n regions of the batch, for each decoder layer.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be measured")

    def pretext_state_dict(self) -> dict[str, Tensor]:
        """The heads of the task, without the detector."""
        inherited = ("detector.", "frozen_")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(inherited)}

    def load_pretext_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`pretext_state_dict`; raises KeyError for other heads."""
        own = self.pretext_state_dict()
        if own.keys() != state.keys():
            raise KeyError(f"pretext heads differ: {sorted(own.keys() ^ state.keys())}")
        self.load_state_dict(state, strict=False)


class RegionQueryTask(PretextTask):
    """A pretext task whose queries ask for given regions, by their features.

    Attributes:
        num_regions: R, regions per image, a divisor of the number Q of queries.
        patch2query: region feature [..., K] -> query content [..., C].
        content_in: what the content is added to.
        feature_align: decoder output -> backbone feature of the region (None: no feature loss).
    """

    def __init__(
        self,
        *,
        detector: DETR,
        criterion: SetCriterion,
        num_regions: int,
        feature_loss_coef: float,
        content_in: ContentPlace = "query_pos",
    ) -> None:
        super().__init__(detector=detector, criterion=criterion, feature_loss_coef=feature_loss_coef)
        self.content_in = content_in
        width, feature_dim = detector.hidden_dim, sum(detector.backbone[0].num_channels)
        self.num_regions = num_regions
        self.patch2query = nn.Linear(feature_dim, width)
        self.feature_align = MLP(width, width, feature_dim, 2) if feature_loss_coef else None

    def features_shown(self, features: list[NestedTensor], boxes: Tensor, sizes: Tensor, crops: Tensor) -> Tensor:
        """The input of ``patch2query`` for regions to be found in other images.

        Args:
            features: backbone maps of the N images that show the regions.
            boxes: [N, R, 4] xyxy in pixels of these images.
            sizes: [N, 2] (height, width) of the images in pixels.
            crops: [N, R, K] pooled backbone features of the regions' crops.

        Returns:
            [N, R, K]; here those of the crops.
        """
        return crops

    def queries_with_content(self, learned: Tensor, content: Tensor) -> Tensor:
        """Learned queries [N, Q, D] that ask for regions with contents [N, R, C], Q/R consecutive queries per region.

        The detector adds the content to the queries (:meth:`models.detr.DETR.with_content`).
        """
        content = content.repeat_interleave(learned.shape[1] // content.shape[1], dim=1)
        return self.detector.with_content(learned, content, self.content_in)

    def predicted_features(self, decoded: Decoded, matching: Matching) -> Tensor:
        """The features [M, K] that the matched queries predict."""
        return self.feature_align(decoded.hidden[matching.layer, matching.image, matching.query])

    @staticmethod
    def feature_term(predicted: Tensor, matching: Matching, features: Tensor, num_layers: int) -> Tensor:
        """The feature loss [L], unweighted.

        Args:
            predicted: [M, K], from :meth:`predicted_features`.
            features: [N, R, K], of the regions that each image's queries ask for.
            num_layers: L.
        """
        wanted = features[matching.image, matching.target]
        return feature_loss(predicted, wanted, matching.layer, num_layers, features[..., 0].numel())


def pooled_features(backbone: Backbone, pictures: Tensor) -> Tensor:
    """Pictures [N, 3, s, s], normalised -> means of their maps [N, K], the strides side by side."""
    no_padding = torch.zeros(len(pictures), *pictures.shape[-2:], dtype=torch.bool, device=pictures.device)
    maps = backbone(NestedTensor(pictures, no_padding))
    return torch.cat([to_float32(level.tensors).mean((-2, -1)) for level in maps], dim=-1)


def as_targets(boxes: list[Tensor] | Tensor, label: int) -> list[dict[str, Tensor]]:
    """Boxes [R_i, 4] (cxcywh in [0, 1]) of each image as detection targets with the same label."""
    return [
        {"labels": torch.full(own.shape[:1], label, dtype=torch.int64, device=own.device), "boxes": own}
        for own in boxes
    ]


def check_regions(args: argparse.Namespace) -> None:
    """Raises UserError if the queries cannot be divided evenly among the regions."""
    if args.num_queries % args.num_regions:
        raise UserError(
            f"--num_queries {args.num_queries} is not divisible by --num_regions {args.num_regions}: "
            "every region needs the same number of queries"
        )


def feature_loss_coef(args: argparse.Namespace) -> float:
    """Weight of the feature loss; 0 with ``--no_feature_loss``."""
    return 0.0 if args.no_feature_loss else args.feature_loss_coef


NUM_REGIONS = Flag(
    name="num_regions", help="regions per image; must divide --num_queries", options={"type": int}, default=10, least=1
)
FEATURE_LOSS_FLAGS = (
    Flag(name="no_feature_loss", help="ablation: no regional discrimination", options=SWITCH, default=False),
    Flag(name="feature_loss_coef", help="weight of the feature loss", options={"type": float}, default=1.0, least=0),
)
