"""The losses of a detector: classification, L1 and GIoU of matched boxes, of all decoder layers at once."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.ops import sigmoid_focal_loss

from models.matcher import HungarianMatcher, Matching, pad_targets
from util.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from util.distributed import all_reduce_mean, world_size
from util.records import Classification


def build_criterion(
    args: argparse.Namespace,
    *,
    num_logits: int,
    classification: Classification,
    matcher_class: type[HungarianMatcher] = HungarianMatcher,
) -> SetCriterion:
    """The criterion with its matcher, from the flags in :func:`util.args.add_loss_arguments`.

    ``--focal_alpha`` changes only the loss; in the matching alpha is 0.25, as in the public codes.
    """
    matcher = matcher_class(
        cost_class=args.set_cost_class,
        cost_bbox=args.set_cost_bbox,
        cost_giou=args.set_cost_giou,
        classification=classification,
    )
    weight = {"focal_alpha": args.focal_alpha} if classification == "focal" else {"eos_coef": args.eos_coef}
    return SetCriterion(
        num_logits=num_logits,
        matcher=matcher,
        classification=classification,
        weight_ce=args.cls_loss_coef,
        weight_bbox=args.bbox_loss_coef,
        weight_giou=args.giou_loss_coef,
        **weight,
    )


class SetCriterion(nn.Module):
    """Scores predictions against the objects of each image (DETR, 2005.12872, section 3.1 and appendix A.2).

    * ``ce``, softmax: cross entropy over all queries, unmatched ones as "no object" (the last logit) with weight
      ``eos_coef``, weighted mean. Focal: sigmoid focal loss (1708.02002) over all queries and classes, summed and
      divided by the number of objects, as in Conditional DETR (2108.06152).
    * ``bbox``: L1 of the matched boxes (cxcywh in [0, 1]), ``giou``: 1 - GIoU; both summed and divided by the
      number of objects.
    * ``enc_ce``, ``enc_bbox``, ``enc_giou``, two stages: the same of the encoder's proposals, for which every object
      has label 0 (Deformable DETR, 2010.04159, appendix A.4).

    The divisors are means over the processes. So W processes that share a batch have, on average, the gradients of one
    process with the whole batch.
    """

    def __init__(
        self,
        *,
        num_logits: int,
        matcher: HungarianMatcher,
        classification: Classification,
        weight_ce: float,
        weight_bbox: float,
        weight_giou: float,
        eos_coef: float = 0.1,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.num_logits = num_logits
        self.matcher = matcher
        self.classification = classification
        self.weights = {"ce": weight_ce, "bbox": weight_bbox, "giou": weight_giou}
        self.eos_coef = eos_coef
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]], matching: Matching | None = None
    ) -> tuple[dict[str, Tensor], Matching]:
        """Losses before they are weighted, and the matching that they use.

        Args:
            outputs: pred_logits [L, B, Q, K] and pred_boxes [L, B, Q, 4], cxcywh in [0, 1]; with two stages also
                enc_outputs, the same for the proposals, with L = 1.
            targets: for each of the B images labels [T] int64 and boxes [T, 4] cxcywh in [0, 1]; T may be 0.
            matching: which query is matched to which object; None: the matcher decides. The proposals have their own.

        Returns:
            ``{"ce", "bbox", "giou"}``, each [L] float32, with two stages also ``{"enc_ce", "enc_bbox", "enc_giou"}``,
            each [1]; and the matching of the L layers.

        Raises:
            FloatingPointError: predictions are not finite.
        """
        if matching is None:
            with record_function("matching"):
                matching = self.matcher(outputs, targets)
        with record_function("losses"):
            sums = self._sums(outputs, targets, matching)
            num_boxes, num_classified = self._divisors(
                *self._counts(outputs, targets, matching), outputs["pred_logits"].device
            )
            losses = {name: value / (num_classified if name == "ce" else num_boxes) for name, value in sums.items()}
        if "enc_outputs" in outputs:
            of_proposals, _ = self(outputs["enc_outputs"], _as_regions(targets))
            losses |= {f"enc_{name}": value for name, value in of_proposals.items()}
        return losses, matching

    def sums(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The losses of this process's batch before they are divided, and what each is to be divided by.

        For whoever adds up many batches (:class:`models.validation_loss.ValidationLoss`). Arguments as in
        :meth:`forward`.

        Returns:
            Name -> sums [L], and name -> divisor.
        """
        matching = self.matcher(outputs, targets)
        sums = self._sums(outputs, targets, matching)
        num_boxes, num_classified = self._counts(outputs, targets, matching)
        counts = {name: num_classified if name == "ce" else num_boxes for name in sums}
        if "enc_outputs" in outputs:
            of_proposals, their_counts = self.sums(outputs["enc_outputs"], _as_regions(targets))
            sums |= {f"enc_{name}": value for name, value in of_proposals.items()}
            counts |= {f"enc_{name}": count for name, count in their_counts.items()}
        return sums, counts

    def _sums(
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], matching: Matching
    ) -> dict[str, Tensor]:
        return self.terms(outputs["pred_logits"], outputs["pred_boxes"], *pad_targets(targets), matching)

    def terms(
        self, logits: Tensor, pred_boxes: Tensor, labels: Tensor, boxes: Tensor, matching: Matching
    ) -> dict[str, Tensor]:
        """The sums [L] that :meth:`forward` divides: arithmetic on tensors only, for ``--compile``.

        Args:
            logits, pred_boxes: pred_logits [L, B, Q, K] and pred_boxes [L, B, Q, 4].
            labels, boxes: [B, T] and [B, T, 4], see :func:`pad_targets`.
            matching: of the L layers.
        """
        labels, boxes = labels[matching.image, matching.target], boxes[matching.image, matching.target].float()
        logits, pred_boxes = logits.float(), pred_boxes.float()
        pred_boxes = pred_boxes[matching.layer, matching.image, matching.query]
        sum_ce = self._sum_softmax if self.classification == "softmax" else self._sum_focal
        return {
            "ce": sum_ce(logits, labels, matching),
            "bbox": _sum_by_layer(_l1(pred_boxes, boxes), len(logits)),
            "giou": _sum_by_layer(_giou_loss(pred_boxes, boxes), len(logits)),
        }

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum over terms and layers, a scalar; raises KeyError for a term without a weight."""
        weighted = [self.weights[name.removeprefix("enc_")] * values.sum() for name, values in losses.items()]
        return torch.stack(weighted).sum()

    @torch.no_grad()
    def errors(
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], matching: Matching
    ) -> dict[str, Tensor]:
        """Errors of the last layer, only for the log.

        Returns:
            class_error: percentage of the matched queries whose largest logit is not that of their object (0 if nothing
                is matched). cardinality_error: mean over images of | number of detections - number of objects |. A
                query detects if its largest logit is not "no object" (softmax) or a probability is above 0.5 (focal).
        """
        labels, _ = pad_targets(targets)
        counts = torch.tensor([len(target["labels"]) for target in targets])
        counts = counts.to(labels.device, non_blocking=True)
        return self.error_rates(outputs["pred_logits"], labels, counts, matching)

    def error_rates(self, logits: Tensor, labels: Tensor, counts: Tensor, matching: Matching) -> dict[str, Tensor]:
        """What of :meth:`errors` is arithmetic on tensors alone; counts [B] of the objects, the others as above."""
        last = matching.of_last_layer(len(logits))
        logits = logits[-1].float()
        wrong = logits[last.image, last.query].argmax(-1) != labels[last.image, last.target]

        if self.classification == "softmax":
            says_object = logits.argmax(-1) != self.num_logits - 1
        else:
            says_object = logits.max(-1).values > 0  # the logit of probability 0.5
        return {
            "class_error": 100 * wrong.sum() / max(len(wrong), 1),
            "cardinality_error": (says_object.sum(-1) - counts).abs().float().mean(),
        }

    def _sum_softmax(self, logits: Tensor, labels: Tensor, matching: Matching) -> Tensor:
        """Weighted cross entropies [L], summed over all queries of logits [L, B, Q, K]; labels [M] of the pairs."""
        no_object = self.num_logits - 1
        classes = torch.full(logits.shape[:3], no_object, dtype=torch.int64, device=logits.device)
        classes[matching.layer, matching.image, matching.query] = labels
        class_weights = torch.ones(self.num_logits, device=logits.device)
        class_weights[no_object].fill_(self.eos_coef)  # an assigned number would make the host wait for a GPU
        # F.cross_entropy wants the classes second: [L, K, B, Q].
        entropies = F.cross_entropy(logits.movedim(-1, 1), classes, weight=class_weights, reduction="none")
        return entropies.sum(dim=(1, 2))

    def _sum_focal(self, logits: Tensor, labels: Tensor, matching: Matching) -> Tensor:
        """Focal losses [L], summed over all queries and classes of logits [L, B, Q, K]; labels [M] of the pairs."""
        classes = logits.new_zeros(*logits.shape[:3], self.num_logits)
        classes[matching.layer, matching.image, matching.query, labels] = logits.new_ones(())  # as above
        loss = sigmoid_focal_loss(logits, classes, alpha=self.focal_alpha, gamma=self.focal_gamma)
        return loss.sum(dim=(1, 2, 3))

    def _counts(
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], matching: Matching
    ) -> tuple[float, float]:
        """What the box losses and the classification loss of this process's batch are divided by."""
        num_layers, batch_size, num_queries, _ = outputs["pred_logits"].shape
        num_boxes = float(sum(len(target["labels"]) for target in targets))
        if self.classification == "focal":
            return num_boxes, num_boxes
        matched = len(matching) // num_layers
        return num_boxes, matched + self.eos_coef * (batch_size * num_queries - matched)

    def _divisors(self, num_boxes: float, num_classified: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """The counts of :meth:`_counts`, averaged over processes.

        All processes together count at least one box, so a batch without objects divides by one.
        """
        divisors = torch.tensor([num_boxes, num_classified]).to(device, non_blocking=True)
        means = all_reduce_mean(divisors)
        boxes = means[0].clamp(min=1 / world_size())
        if self.classification == "focal":
            return boxes, boxes
        return boxes, means[1].clamp(min=torch.finfo(means.dtype).tiny)  # eos_coef 0 and no objects: 0 / tiny


def _as_regions(targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Targets of the encoder's proposals: every object has label 0."""
    return [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]


def _sum_by_layer(values: Tensor, num_layers: int) -> Tensor:
    """Sums per layer [L] of values [M] of the matched pairs; these are sorted by layer, the same number in each."""
    return values.view(num_layers, len(values) // num_layers).sum(dim=1)


def _l1(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return F.l1_loss(boxes1, boxes2, reduction="none").sum(dim=-1)


def _giou_loss(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return 1 - generalized_box_iou(box_cxcywh_to_xyxy(boxes1), box_cxcywh_to_xyxy(boxes2))
