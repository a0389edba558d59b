"""Which detections are correct: matching with the ground truth at an IoU of 0.5, as COCO does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

MATCH_IOU = 0.5
RECALL_POINTS = np.linspace(0, 1, 101)
"""The recalls at which COCO evaluates a precision-recall curve."""


@dataclass(frozen=True)
class ImageCase:
    """Truth and detections of one image; boxes are xyxy in its pixels.

    Attributes:
        truth: [T, 4]; labels [T]; crowd [T] bool: groups and difficult objects, which count neither as found nor as
            missed.
        found: [N, 4], best first; found_labels [N]; scores [N].
    """

    truth: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    found: np.ndarray
    found_labels: np.ndarray
    scores: np.ndarray

    def above(self, threshold: float) -> ImageCase:
        """The same image with only the detections of at least this score."""
        kept = self.scores >= threshold
        found = self.found[kept], self.found_labels[kept], self.scores[kept]
        return ImageCase(self.truth, self.labels, self.crowd, *found)


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, one point per detection, best first.

    Attributes:
        precision, recall, scores: [N].
        num_objects: number of ground truths of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    num_objects: int

    def average_precision(self) -> float:
        """COCO's AP50: the mean, over 101 recalls, of the best precision from that recall on; NaN without objects."""
        if not self.num_objects:
            return float("nan")
        best_beyond = np.maximum.accumulate(self.precision[::-1])[::-1]
        place = np.searchsorted(self.recall, RECALL_POINTS, side="left")
        return float(np.append(best_beyond, 0.0)[np.minimum(place, len(best_beyond))].mean())


def overlaps(found: np.ndarray, truth: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU [N, T] of boxes (xyxy); for a crowd, the fraction of the found box that lies inside it."""
    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    as_xywh = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1) for boxes in (found, truth)]
    return coco_mask.iou(*(boxes.astype(np.float64) for boxes in as_xywh), crowd.astype(np.uint8))


def match(case: ImageCase, *, by_class: bool) -> np.ndarray:
    """For each detection, the index of the object that it found; -1: none; -2: it lies in a crowd and does not count.

    In order of score, each detection takes the free object with the largest IoU.

    Args:
        by_class: match only objects of the same class.
    """
    iou = overlaps(case.found, case.truth, case.crowd)
    if by_class:
        iou = np.where(case.found_labels[:, None] == case.labels[None], iou, -1.0)
    matched = np.full(len(case.found), -1)
    free = ~case.crowd.astype(bool)
    for index in range(len(case.found)):
        candidates = np.where(free, iou[index], -1.0)
        if len(candidates) and candidates.max() >= MATCH_IOU:
            matched[index] = candidates.argmax()
            free[matched[index]] = False
        elif (iou[index][case.crowd.astype(bool)] >= MATCH_IOU).any():
            matched[index] = -2
    return matched


def curve_of(cases: Sequence[ImageCase], label: int) -> Curve:
    """The precision-recall curve of a class over all images."""
    scores, right, num_objects = [], [], 0
    for case in cases:
        matched = match(case, by_class=True)
        counts = (case.found_labels == label) & (matched != -2)
        scores.append(case.scores[counts])
        right.append(matched[counts] >= 0)
        num_objects += int(((case.labels == label) & ~case.crowd.astype(bool)).sum())
    scores, right = np.concatenate([np.zeros(0), *scores]), np.concatenate([np.zeros(0, dtype=bool), *right])
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(right[order])
    precision = found / np.arange(1, len(order) + 1)
    return Curve(precision, found / max(num_objects, 1), scores[order], num_objects)


def best_threshold(curves: Sequence[Curve]) -> tuple[float, float]:
    """The score threshold with the largest F1 over all classes together, and this F1; (1, 0) if nothing is correct."""
    scores = np.concatenate([curve.scores for curve in curves])
    right = np.concatenate([np.diff(curve.recall * max(curve.num_objects, 1), prepend=0) for curve in curves])
    num_objects = sum(curve.num_objects for curve in curves)
    if not len(scores) or not num_objects:
        return 1.0, 0.0
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + num_objects)
    last_of_score = np.append(scores[order][1:] != scores[order][:-1], True)  # equal scores pass or fail together
    best = int(np.where(last_of_score, f1, -1).argmax())
    return float(scores[order][best]), float(f1[best])


def confusion(cases: Sequence[ImageCase], labels: Sequence[int], threshold: float) -> np.ndarray:
    """The confusion matrix [K + 1, K + 1] int.

    Rows are true classes, the last one background; columns are predicted classes, the last one "missed". The matching
    ignores classes.
    """
    place = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels) + 1, len(labels) + 1), dtype=np.int64)
    for case in cases:
        case = case.above(threshold)
        matched = match(case, by_class=False)
        for detection, index in enumerate(matched):
            if index != -2:
                row = place[int(case.labels[index])] if index >= 0 else -1
                counts[row, place[int(case.found_labels[detection])]] += 1
        missed = np.setdiff1d(np.flatnonzero(~case.crowd.astype(bool)), matched)
        for index in missed:
            counts[place[int(case.labels[index])], -1] += 1
    return counts


def mistakes(case: ImageCase, threshold: float) -> tuple[int, int]:
    """(false positives, missed objects) in one image."""
    matched = match(case.above(threshold), by_class=True)
    objects = int((~case.crowd.astype(bool)).sum())
    return int((matched == -1).sum()), objects - int((matched >= 0).sum())
