"""Metrics of detections: COCO's and, for VOC data sets, those of PASCAL VOC too."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor

from datasets.scorers import Scorer, fastest_scorer, no_garbage_collection
from datasets.voc_eval import BoxTable, ground_truth_table, voc_average_precision
from util.distributed import all_gather_object

DIFFICULT = "counted in AP, AP50, ... and per_class; ignored in voc"
"""How objects marked ``difficult`` are treated: the papers score VOC with COCO's code, the devkit with its own."""

COCO_STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")

COCO_DETECTIONS = (1, 10, 100)
"""How many detections of an image count: 1, 10 and 100 in AR1, AR10 and AR100, 100 in all others."""


UNIT = "from 0 to 1, as in log.txt and eval.json"
"""Of the scores, wherever they are printed or written."""


class LabelledDataset(Protocol):
    """What an evaluator needs to know about a data set.

    Attributes:
        coco: images, annotations (with bbox, area, iscrowd; ``difficult`` in VOC) and categories. No annotation has the
            id 0, because COCOeval reads it as "unmatched".
        categories: ``{"label", "id", "name"}`` of each class; ``label`` is what detections hold.
        metric: ``"coco"`` or ``"voc"``.
    """

    coco: COCO
    categories: list[dict[str, Any]]
    metric: str


class DetectionEvaluator:
    """Collects detections image by image and scores them against a whole data set.

    All objects of an image without detections count as missed. Scores are fractions; as in pycocotools, -1 means that
    there is no ground truth to score (a category or size that does not occur).

    Args:
        dataset: the ground truth.
        max_detections: N; above 100 there are further scores, in which the best N detections of an image count.
        scorer: what computes COCO's numbers; None: the fastest package that is installed.

    Attributes:
        detections: id of an image -> [N, 6] float64: xyxy, score, label.
    """

    def __init__(
        self,
        dataset: LabelledDataset,
        scorer: Scorer | None = None,
        *,
        max_detections: int = COCO_DETECTIONS[-1],
    ) -> None:
        self.scorer = scorer or fastest_scorer()
        self._coco = dataset.coco
        self._categories = dataset.categories
        self._metric = dataset.metric
        self._max_detections = max_detections
        self._category_ids = {category["label"]: category["id"] for category in dataset.categories}
        self.detections: dict[int, np.ndarray] = {}

    def update(self, image_ids: list[int], results: list[dict[str, Tensor]]) -> None:
        """Add the detections of images. They replace earlier ones of the same images.

        Detections whose label is not a category are dropped: with COCO's raw ids as labels, a detector also has
        logits for the eleven ids that COCO does not use.

        Args:
            image_ids: as in the annotations.
            results: per image scores [N], labels [N] and boxes [N, 4] xyxy in pixels of the original image.

        Raises:
            KeyError: an image does not belong to the data set.
        """
        rows = [
            torch.cat([result["boxes"], result["scores"][:, None], result["labels"][:, None]], dim=1)
            for result in results
        ]
        counts = [len(row) for row in rows]
        host = torch.cat(rows).double().cpu().numpy()  # one transfer for all images
        for image_id, found in zip(image_ids, np.split(host, np.cumsum(counts)[:-1]), strict=True):
            if image_id not in self._coco.imgs:
                raise KeyError(f"image {image_id} is not in the data set to evaluate on")
            self.detections[image_id] = found[np.isin(found[:, 5], list(self._category_ids))]

    def synchronize(self) -> None:
        """Give every process the detections of all processes; each image counts once. Every process must call this.

        Raises:
            FloatingPointError: a detection is not finite (pycocotools would count NaN boxes as hits).
        """
        gathered: dict[int, np.ndarray] = {}
        for detections in all_gather_object(self.detections):
            for image_id, found in detections.items():
                gathered.setdefault(image_id, found)
        if not all(np.isfinite(found).all() for found in gathered.values()):
            raise FloatingPointError("the detector predicts NaN or infinite values: its weights are damaged")
        self.detections = gathered

    def summarize(self) -> dict[str, Any]:
        """Score the detections of this process (with several processes, call :meth:`synchronize` first).

        Returns:
            COCO's AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 and ``per_class: {name: {AP, AP50}}``. With
            ``max_detections`` N above 100 also ``AP@N``, ``AP50@N`` and ``AR@N``. For VOC data sets also the devkit's
            ``voc: {mAP50, mAP50_11point, per_class: {name: {AP50, AP50_11point}}}`` and ``difficult``
            (:data:`DIFFICULT`).
        """
        detections = self._detection_table()
        summary = self._coco_summary(detections)
        if self._metric == "voc":
            summary["voc"] = self._voc_summary(detections)
            summary["difficult"] = DIFFICULT
        return summary

    @staticmethod
    def table(summary: dict[str, Any]) -> str:
        """The numbers of :meth:`summarize`, from 0 to 1, one line per class; a dash if there is nothing to score."""
        names = [name for name in summary if name in COCO_STATISTICS or "@" in name]
        headline = "  ".join(f"{name} {_score(summary[name])}" for name in names) + f"  ({UNIT})"
        rows = [["class", "AP", "AP50"]]
        rows += [[name, *map(_score, scores.values())] for name, scores in summary["per_class"].items()]
        if "voc" in summary:
            voc = summary["voc"]
            headline = headline.removesuffix(")") + "; difficult objects count)"
            headline += f"\nVOC mAP50 {_score(voc['mAP50'])}  11-point {_score(voc['mAP50_11point'])}"
            headline += "  (difficult objects are ignored)"
            rows[0] += ["VOC AP50", "11-point"]
            for row in rows[1:]:
                row += map(_score, voc["per_class"][row[0]].values())
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)])
            for row in rows
        ]
        return "\n".join([headline, "", *lines])

    def _detection_table(self) -> BoxTable:
        # Sorted by image id, so that detections of equal score keep their order for any number of processes.
        image_ids = sorted(self.detections)
        found = [self.detections[image_id] for image_id in image_ids]
        rows = np.concatenate([np.zeros((0, 6)), *found])
        category_ids = [self._category_ids[int(label)] for label in rows[:, 5]]
        return BoxTable(
            image_ids=np.repeat(np.array(image_ids, dtype=np.int64), np.array(list(map(len, found)), dtype=np.int64)),
            category_ids=np.array(category_ids, dtype=np.int64),
            boxes=rows[:, :4],
            scores=rows[:, 4],
        )

    def _coco_summary(self, detections: BoxTable) -> dict[str, Any]:
        more = self._max_detections > COCO_DETECTIONS[-1]
        counts = [*COCO_DETECTIONS, *([self._max_detections] if more else [])]
        with no_garbage_collection():
            evaluation = self.scorer(self._coco, _as_coco(self._coco, detections), counts)
        summary: dict[str, Any] = _statistics(evaluation.eval)

        # [IoU threshold (the first is 0.5), recall, category, area (the first is all), detections per image]
        precision = evaluation.eval["precision"][:, :, :, 0, len(COCO_DETECTIONS) - 1]
        if more:
            summary |= _summary_at(self._max_detections, evaluation.eval)
        place = {int(category_id): k for k, category_id in enumerate(evaluation.params.catIds)}
        summary["per_class"] = {
            category["name"]: {
                "AP": _mean_of_valid(precision[:, :, place[category["id"]]].ravel()),
                "AP50": _mean_of_valid(precision[0, :, place[category["id"]]]),
            }
            for category in self._categories
        }
        return summary

    def _voc_summary(self, detections: BoxTable) -> dict[str, Any]:
        category_ids = [category["id"] for category in self._categories]
        scores = voc_average_precision(ground_truth_table(self._coco), detections, category_ids)
        return {
            "mAP50": _mean_of_valid(area for area, _ in scores.values()),
            "mAP50_11point": _mean_of_valid(eleven for _, eleven in scores.values()),
            "per_class": {
                category["name"]: dict(zip(("AP50", "AP50_11point"), scores[category["id"]], strict=True))
                for category in self._categories
            },
        }


def _as_coco(ground_truths: COCO, detections: BoxTable) -> COCO:
    """Detections in the form that COCOeval expects. (pycocotools' own loadRes fails on an empty list.)"""
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [*corner, *side],
            "area": side[0] * side[1],
            "score": score,
            "iscrowd": 0,
        }
        for number, (image_id, category_id, corner, side, score) in enumerate(
            zip(
                detections.image_ids.tolist(),
                detections.category_ids.tolist(),
                detections.boxes[:, :2].tolist(),
                sides.tolist(),
                detections.scores.tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    coco = COCO()
    coco.dataset = {**ground_truths.dataset, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _statistics(accumulated: dict[str, np.ndarray]) -> dict[str, float]:
    """COCO's numbers, :data:`COCO_STATISTICS`, where areas are all, small, medium and large."""
    precision = accumulated["precision"][..., len(COCO_DETECTIONS) - 1]  # [IoU threshold, recall, category, area]
    recall = accumulated["recall"][:, :, 0]  # [IoU threshold, category, detections an image]
    of_all = precision[..., 0]
    values = [of_all, of_all[0], of_all[5], *(precision[..., area] for area in (1, 2, 3))]
    values += [recall[..., index] for index in range(len(COCO_DETECTIONS))]
    return {name: _mean_of_valid(value.ravel()) for name, value in zip(COCO_STATISTICS, values, strict=True)}


def _summary_at(max_detections: int, accumulated: dict[str, np.ndarray]) -> dict[str, float]:
    """The scores of all areas with the largest number of detections an image, which is ``max_detections``."""
    precision, recall = accumulated["precision"][:, :, :, 0, -1], accumulated["recall"][:, :, 0, -1]
    return {
        f"AP@{max_detections}": _mean_of_valid(precision.ravel()),
        f"AP50@{max_detections}": _mean_of_valid(precision[0].ravel()),
        f"AR@{max_detections}": _mean_of_valid(recall.ravel()),
    }


def _mean_of_valid(values: Iterable[float]) -> float:
    valid = [value for value in values if value > -1]
    return float(np.mean(valid)) if valid else -1.0


def _score(score: float) -> str:
    return "-" if score < 0 else f"{score:.3f}"
