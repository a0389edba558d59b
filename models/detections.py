"""What a detector found in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from datasets.images import STRICTLY, Reading, read_any
from util.plot_utils import describe, draw_boxes


@dataclass(frozen=True)
class Detections:
    """Detections of one image on the CPU, best first.

    Attributes:
        boxes: [N, 4] float32, xyxy in pixels of the upright image. As in DETR they are not clipped to it.
        scores: [N] float32 in [0, 1].
        labels: [N] int64, the outputs of the class head.
        names: [N] names of the labels' categories.
        category_ids: [N] ids of these categories in their data set.
        size: (width, height) of the upright image in pixels.
        image: the detector's input, a path or the image itself.
        reading: how to read a path again.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    category_ids: list[int]
    size: tuple[int, int]
    image: Any
    reading: Reading = STRICTLY

    def __len__(self) -> int:
        return len(self.scores)

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """COCO's results form: image_id, category_id, bbox (xywh in pixels) and score of each detection."""
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for category_id, (x1, y1, x2, y2), score in zip(
                self.category_ids, self.boxes.tolist(), self.scores.tolist(), strict=True
            )
        ]

    def draw(self) -> Image.Image:
        """The image at its own size with boxes, names and scores. A path is read again.

        Raises:
            DataError: the image can no longer be read.
        """
        texts = [describe(name, score) for name, score in zip(self.names, self.scores.tolist(), strict=True)]
        return draw_boxes(read_any(self.image, self.reading), self.boxes, texts=texts, colours=self.labels.tolist())


def make_detections(
    result: dict[str, Tensor],
    categories: dict[int, dict[str, Any]],
    *,
    threshold: float,
    max_detections: int,
    size: tuple[int, int],
    image: Any,
    reading: Reading = STRICTLY,
) -> Detections:
    """The detections to report of one image.

    Args:
        result: scores [N] (best first), labels [N] and boxes [N, 4]; see :class:`PostProcess`.
        categories: by label; detections with other labels are dropped (COCO's raw ids have gaps).
        threshold: lowest score.
        max_detections: the largest number of detections; the best are kept.
        size, image, reading: see :class:`Detections`.
    """
    scores, labels, boxes = (result[name].cpu() for name in ("scores", "labels", "boxes"))
    kept = _kept(scores.tolist(), labels.tolist(), categories, threshold)[:max_detections]
    found = [categories[label] for label in labels[kept].tolist()]
    return Detections(
        boxes=boxes[kept],
        scores=scores[kept],
        labels=labels[kept],
        names=[category["name"] for category in found],
        category_ids=[category["id"] for category in found],
        size=size,
        image=image,
        reading=reading,
    )


def _kept(scores: Sequence[float], labels: Sequence[int], known: dict[int, Any], threshold: float) -> list[int]:
    return [
        index
        for index, (score, label) in enumerate(zip(scores, labels, strict=True))
        if score >= threshold and label in known
    ]
