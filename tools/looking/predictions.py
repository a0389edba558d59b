"""The picture of what detectors find: each image with its truth and, beside it, the best boxes of each detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torchvision.ops import nms

from tools.looking.matching import ImageCase, best_threshold, curve_of, match
from util.plot_utils import contact_sheet, draw_objects

FEW_BOXES = 4
"""So many boxes of a detector are drawn at most, the best, or twice as many as there are objects if that is more."""

MOST_OVERLAP = 0.4
"""Of two boxes of a detector with a higher IoU than this, a picture shows only the better one."""

SHORT_SIDE = 320
"""All images are drawn at this size, so that all texts have one size."""


@dataclass(frozen=True)
class Found:
    """What one detector finds in a set of images.

    Attributes:
        name: to tell detectors apart.
        cases: one for each image.
        threshold: least score of a box that is drawn.
    """

    name: str
    cases: list[ImageCase]
    threshold: float


def without_overlaps(case: ImageCase) -> ImageCase:
    """The same image without the detections that overlap a better one, of any class, by more than MOST_OVERLAP.

    A detector that was trained for a short time finds an object several times, and people see a thicket. The scores of
    COCO count every detection.
    """
    kept = nms(torch.from_numpy(case.found).float(), torch.from_numpy(case.scores).float(), MOST_OVERLAP).numpy()
    found = {name: getattr(case, name)[kept] for name in ("found", "found_labels", "scores")}
    return replace(case, **found)


def fitting_threshold(cases: Sequence[ImageCase], labels: Sequence[int]) -> float:
    """The score with the best F1 on the images, at an IoU of 0.5."""
    return best_threshold([curve_of(cases, label) for label in labels])[0]


def draw_side_by_side(
    detectors: Sequence[Found],
    names: dict[int, str],
    *,
    load: Callable[[int], Image.Image],
    files: Sequence[str],
    count: int,
) -> Image.Image:
    """The first ``count`` images, one a row: the truth, then what each detector finds.

    Args:
        names: label -> name.
        load: index of a case -> its image.
        files: the images' names.
    """
    pictures, captions = [], []
    for index in range(min(count, len(files))):
        image, case = load(index), detectors[0].cases[index]
        zoom = SHORT_SIDE / min(image.size)
        pictures.append(draw_objects(image, {"boxes": case.truth, "labels": case.labels}, names, zoom=zoom))
        captions.append(f"truth: {files[index]}")
        for detector in detectors:
            case = detector.cases[index]
            pictures.append(draw_objects(image, best_few(case.above(detector.threshold)), names, zoom=zoom))
            captions.append(f"{detector.name}: {verdict(case, detector.threshold)}")
    return contact_sheet(pictures, columns=1 + len(detectors), captions=captions)


def most_boxes(case: ImageCase) -> int:
    """How many boxes are drawn in an image at most; see :data:`FEW_BOXES`."""
    return max(FEW_BOXES, 2 * len(case.labels))


def best_few(case: ImageCase) -> dict[str, np.ndarray]:
    """The best :func:`most_boxes` detections as :func:`util.plot_utils.draw_objects` takes them."""
    best = slice(most_boxes(case))
    return {"boxes": case.found[best], "labels": case.found_labels[best], "scores": case.scores[best]}


def verdict(case: ImageCase, threshold: float) -> str:
    """How many of an image's detections are right, in a few words; those that are not drawn count as well."""
    shown = case.above(threshold)
    if not len(shown.scores):
        best = f": best was {case.scores[0]:.2f}" if len(case.scores) else ""
        return f"nothing above {threshold:.2f}{best}"
    matched = match(shown, by_class=True)
    objects = int((~case.crowd.astype(bool)).sum())
    drawn = f"score from {threshold:.2f}" if len(matched) <= most_boxes(case) else f"best {most_boxes(case)} drawn"
    return f"{(matched >= 0).sum()} of {objects} found, {(matched == -1).sum()} wrong, {drawn}"
