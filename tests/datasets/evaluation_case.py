"""Small labelled data sets in memory, and detections for them."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO

# Labels are neither ids nor in the order of ids.
CATEGORIES = [
    {"label": 0, "id": 7, "name": "cat"},
    {"label": 1, "id": 3, "name": "dog"},
    {"label": 4, "id": 12, "name": "traffic light"},
]
IMAGE_IDS = [31, 5, 8, 100, 2, 77]


@dataclass
class LabelledSet:
    """The data set that an evaluator needs."""

    coco: COCO
    metric: str = "coco"
    categories: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        self.categories = self.categories or CATEGORIES


def make_coco(boxes, image_ids=IMAGE_IDS):
    """From (image id, category id, xyxy box[, {"difficult" or "iscrowd": 1}]) tuples."""
    annotations = []
    for number, (image_id, category_id, box, *flags) in enumerate(boxes, start=1):
        x0, y0, x1, y1 = map(float, box)
        flags = {"iscrowd": 0, **(flags[0] if flags else {})}
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                **flags,
            }
        )
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image_id, "width": 640, "height": 480} for image_id in image_ids],
        "categories": [{"id": category["id"], "name": category["name"]} for category in CATEGORIES],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def as_result(detections):
    """(label, score, xyxy box) tuples of an image as a detector's result."""
    return {
        "labels": torch.tensor([label for label, _, _ in detections], dtype=torch.int64),
        "scores": torch.tensor([score for _, score, _ in detections], dtype=torch.float32),
        "boxes": torch.tensor([box for _, _, box in detections], dtype=torch.float32).reshape(-1, 4),
    }


def random_case(seed, flag="difficult"):
    """Ground truths, a fifth of them with ``flag``, and detections {image id: result}: near, double and false ones.

    Boxes are small, medium and large. Scores are rounded, so that some are equal.
    """
    rng = np.random.default_rng(seed)
    label_of_id = {category["id"]: category["label"] for category in CATEGORIES}
    boxes, results = [], {}
    for image_id in IMAGE_IDS:
        detections = []
        for _ in range(rng.integers(1, 12)):
            size = rng.uniform(8, 40, 2) * rng.choice([1, 4])
            corner = rng.uniform(0, 1, 2) * (np.array([640, 480]) - size)
            box = np.concatenate([corner, corner + size]).round(2)
            category_id = int(rng.choice([3, 7, 12]))
            boxes.append((image_id, category_id, box, {flag: int(rng.random() < 0.2)}))
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 0.1, 4) * np.tile(size, 2)
                label = label_of_id[category_id] if rng.random() < 0.9 else int(rng.choice([0, 1, 4]))
                detections.append((label, round(rng.random(), 1), moved.tolist()))
        for _ in range(rng.integers(0, 4)):
            detections.append((int(rng.choice([0, 1, 4])), round(rng.random(), 1), [5.0, 5, 60, 70]))
        results[image_id] = as_result(detections)
    return make_coco(boxes), results


def perfect_results(coco):
    """A perfect result: every annotation with score 1, {image id: result}."""
    label_of_id = {category["id"]: category["label"] for category in CATEGORIES}
    found = {image_id: [] for image_id in coco.imgs}
    for annotation in coco.dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        box = [x, y, x + width, y + height]
        found[annotation["image_id"]].append((label_of_id[annotation["category_id"]], 1.0, box))
    return {image_id: as_result(detections) for image_id, detections in found.items()}
