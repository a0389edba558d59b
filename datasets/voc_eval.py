"""The detection metric of PASCAL VOC, as VOCdevkit/VOCcode/VOCevaldet.m computes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.coco import COCO

from util.box_ops import box_iou

MIN_OVERLAP = 0.5


@dataclass
class BoxTable:
    """Boxes of many images, one per row: ground truths or detections.

    Attributes:
        image_ids: [N] int64, sorted.
        category_ids: [N] int64.
        boxes: [N, 4] float64 xyxy in pixels, continuous coordinates (the image starts at 0).
        scores: [N] float64, only of detections.
        difficult: [N] bool, only of ground truths.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None = None
    difficult: np.ndarray | None = None


def ground_truth_table(coco: COCO) -> BoxTable:
    """The annotations of ``coco``, sorted by image."""
    annotations = sorted(coco.dataset["annotations"], key=lambda annotation: annotation["image_id"])
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return BoxTable(
        image_ids=np.array([annotation["image_id"] for annotation in annotations], dtype=np.int64),
        category_ids=np.array([annotation["category_id"] for annotation in annotations], dtype=np.int64),
        boxes=boxes,
        difficult=np.array([bool(annotation.get("difficult", 0)) for annotation in annotations], dtype=bool),
    )


def voc_average_precision(
    ground_truths: BoxTable, detections: BoxTable, category_ids: list[int]
) -> dict[int, tuple[float, float]]:
    """AP at IoU 0.5 of each category: area under the curve (since VOC 2010) and 11-point (VOC 2007).

    Each detection is compared with the ground truth of its image and category that it overlaps most, including
    difficult ones. If the IoU is below 0.5, it is false. If the ground truth is difficult, it does not count at all.
    Otherwise it is true if it has the highest score of all detections at this ground truth, else false. Recall is the
    share of ground truths found, without the difficult ones.

    The devkit's boxes hold the first and the last pixel, counted from 1, so the devkit adds 1 to every side. In the
    coordinates used here, its box is (x0 + 1, y0 + 1, x1, y1), with sides x1 - x0 and y1 - y0 after adding 1: the
    devkit's IoUs are therefore the usual ones here.

    Returns:
        category id -> (area, 11-point) in [0, 1]; -1 for a category whose ground truths are all difficult, or missing.
    """
    best, overlap = _best_ground_truths(ground_truths, detections)
    results = {}
    for category_id in category_ids:
        mine = np.flatnonzero(detections.category_ids == category_id)
        mine = mine[np.argsort(-detections.scores[mine], kind="stable")]
        hit = overlap[mine] >= MIN_OVERLAP
        ignored = np.zeros(len(mine), dtype=bool)
        ignored[hit] = ground_truths.difficult[best[mine[hit]]]

        candidates = np.flatnonzero(hit & ~ignored)
        _, first = np.unique(best[mine[candidates]], return_index=True)
        true = np.zeros(len(mine), dtype=bool)
        true[candidates[first]] = True

        of_category = ground_truths.category_ids == category_id
        positives = np.count_nonzero(of_category & ~ground_truths.difficult)
        results[category_id] = _average_precisions(true[~ignored], positives)
    return results


def _best_ground_truths(ground_truths: BoxTable, detections: BoxTable) -> tuple[np.ndarray, np.ndarray]:
    """For each detection, the row [N] of the ground truth that it overlaps most in its image and category; their IoU.

    If there is none, the IoU is 0 and the row has no meaning.
    """
    best = np.zeros(len(detections.image_ids), dtype=np.int64)
    overlap = np.zeros(len(detections.image_ids))
    for image_id in np.unique(detections.image_ids):
        rows = _rows_of(detections.image_ids, image_id)
        truths = _rows_of(ground_truths.image_ids, image_id)
        if truths.start == truths.stop:
            continue
        overlaps = box_iou(
            torch.from_numpy(detections.boxes[rows])[:, None], torch.from_numpy(ground_truths.boxes[truths])
        ).numpy()
        same = detections.category_ids[rows, None] == ground_truths.category_ids[truths]
        overlaps[~same] = 0
        best[rows] = truths.start + overlaps.argmax(axis=1)
        overlap[rows] = overlaps.max(axis=1)
    return best, overlap


def _rows_of(sorted_ids: np.ndarray, image_id: int) -> slice:
    start, stop = np.searchsorted(sorted_ids, [image_id, image_id + 1])
    return slice(int(start), int(stop))


def _average_precisions(true: np.ndarray, positives: int) -> tuple[float, float]:
    """Area and 11-point AP of detections [N], each true or false, best score first."""
    if positives == 0:
        return -1.0, -1.0
    hits = np.cumsum(true)
    recall = hits / positives
    precision = hits / np.arange(1, len(true) + 1)

    # Interpolated precision: the largest one at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    area = np.sum(np.diff(recall, prepend=0.0) * envelope)
    eleven = [envelope[reached.argmax()] if (reached := recall >= k / 10).any() else 0.0 for k in range(11)]
    return float(area), float(np.mean(eleven))
