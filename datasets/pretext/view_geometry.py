"""Where the two views of an image and their regions lie (arXiv 2303.18144): coordinates only, no pixels.

All coordinates are in one frame: continuous pixels of the image after resizing and flipping, called *image pixels*. The
corner of the image is (0, 0), pixel j covers [j, j + 1]. The outer crop has integer corners. The two crops inside it
and the regions are not rounded, so that IoUs are exact and a region is the same rectangle of the image in both views.
Boxes are xyxy and arrays float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.proposals.store import MIN_AREA, random_boxes
from datasets.transforms import resized_size

OUTER_AREA = (0.5, 1.0)  # of the image's area
OUTER_ASPECT = (3 / 4, 4 / 3)  # width / height
OUTER_TRIES = 10
REPEAT_JITTER = 0.1  # how far the corners of repeated regions move, as a fraction of the region's side
RANDOM_REGIONS = 60  # random boxes to try when too few proposals differ enough
MIN_SIDE = 1.0  # image pixels; views only magnify, so a region is at least a pixel wide in a view too


@dataclass(frozen=True, kw_only=True)
class ViewGeometry:
    """How two views are cut from an image.

    Attributes:
        source_size: (width, height) of the image file.
        image_size: (width, height) after resizing; the rectangles below are in its pixels.
        flip: whether left and right are exchanged (after resizing, before cropping).
        outer: [4], the outer crop, with integer corners.
        crops: [2, 4], the rectangle that each view shows.
        intersection: [4], of the two crops.
    """

    source_size: tuple[int, int]
    image_size: tuple[int, int]
    flip: bool
    outer: np.ndarray
    crops: np.ndarray
    intersection: np.ndarray

    @property
    def view_size(self) -> tuple[int, int]:
        """(width, height) of both views: the size of the outer crop."""
        width, height = (self.outer[2:] - self.outer[:2]).tolist()
        return round(width), round(height)

    @property
    def iou(self) -> float:
        """Intersection over union of the two crops."""
        *areas, common = (np.diff(box.reshape(2, 2), axis=0).prod() for box in (*self.crops, self.intersection))
        return float(common / (sum(areas) - common))

    @property
    def scale(self) -> np.ndarray:
        """[2], image pixels per pixel of the source, horizontally and vertically; equal up to rounding."""
        return np.divide(self.image_size, self.source_size)

    def from_source(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] in pixels of the source -> image pixels: scaled and flipped."""
        boxes = boxes * np.tile(self.scale, 2)
        if self.flip:
            boxes = boxes[:, [2, 1, 0, 3]]
            boxes[:, [0, 2]] = self.image_size[0] - boxes[:, [0, 2]]
        return boxes

    def source_crops(self) -> np.ndarray:
        """[2, 4], the crops in pixels of the source, which is not flipped."""
        crops = self.crops
        if self.flip:
            crops = crops[:, [2, 1, 0, 3]]
            crops[:, [0, 2]] = self.image_size[0] - crops[:, [0, 2]]
        return np.clip(crops / np.tile(self.scale, 2), 0, np.tile(self.source_size, 2))

    def to_views(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] within the intersection, in image pixels -> [2, N, 4] in pixels of each view."""
        zoom = self.view_size / (self.crops[:, 2:] - self.crops[:, :2])
        origin, zoom = (np.tile(values[:, None], 2) for values in (self.crops[:, :2], zoom))  # of both corners
        return np.clip((boxes - origin) * zoom, 0, np.tile(self.view_size, 2))


def draw_geometry(
    rng: np.random.Generator, source_size: tuple[int, int], *, scales: Sequence[int], max_size: int, view_iou: float
) -> ViewGeometry:
    """Draw a size, a flip, an outer crop and two crops in it whose IoU is at least ``view_iou``.

    Args:
        source_size: (width, height) of the image in pixels.
        scales: short sides to choose from; max_size: limit of the long side.
    """
    image_size = resized_size(source_size, scales[rng.integers(len(scales))], max_size)
    flip = bool(rng.random() < 0.5)
    outer = draw_outer_crop(rng, image_size)
    crops, intersection = draw_crops(rng, outer, view_iou)
    return ViewGeometry(
        source_size=source_size, image_size=image_size, flip=flip, outer=outer, crops=crops, intersection=intersection
    )


def draw_outer_crop(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """[4] with integer corners inside an image of (width, height): random area, aspect ratio and position.

    If ten attempts do not fit, the crop is the largest centred one with the image's own aspect ratio, clamped to the
    allowed range (as in torchvision's RandomResizedCrop).
    """
    image_width, image_height = image_size
    for _ in range(OUTER_TRIES):
        area = rng.uniform(*OUTER_AREA) * image_width * image_height
        aspect = math.exp(rng.uniform(*np.log(OUTER_ASPECT)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image_width and 0 < height <= image_height:
            left = rng.integers(image_width - width, endpoint=True)
            top = rng.integers(image_height - height, endpoint=True)
            return np.array([left, top, left + width, top + height], dtype=np.float64)
    aspect = np.clip(image_width / image_height, *OUTER_ASPECT)
    width = min(image_width, round(image_height * aspect))
    height = min(image_height, round(image_width / aspect))
    left, top = (image_width - width) // 2, (image_height - height) // 2
    return np.array([left, top, left + width, top + height], dtype=np.float64)


def overlap_ratio(view_iou: float) -> float:
    """r(tau): the side of the crops' intersection, as a fraction of the outer box's side, for which their IoU is tau.

    Let the outer box be W x H and the intersection rW x rH, centred. A crop that spans a corner of the outer box and
    the opposite corner of the intersection has sides (1 + r)/2 W and (1 + r)/2 H. In units of W H, then,

        intersection = r^2,   union = 2 ((1 + r)/2)^2 - r^2 = (1 + 2 r - r^2) / 2,
        tau = IoU = 2 r^2 / (1 + 2 r - r^2)
        <=>  2 r^2 = tau + 2 tau r - tau r^2
        <=>  (tau + 2) r^2 - 2 tau r - tau = 0.

    The product of the roots, -tau / (tau + 2), is negative, so exactly one is positive:

        r = (2 tau + sqrt(4 tau^2 + 4 (tau + 2) tau)) / (2 (tau + 2)) = (tau + sqrt(2 tau (tau + 1))) / (tau + 2).

    r rises from 0 at tau = 0 to 1 at tau = 1; a larger r only raises the IoU.

    Raises:
        ValueError: tau not in (0, 1).
    """
    if not 0 < view_iou < 1:
        raise ValueError(f"view_iou {view_iou}: must lie between 0 and 1")
    return (view_iou + math.sqrt(2 * view_iou * (view_iou + 1))) / (view_iou + 2)


def greatest_zoom(view_iou: float) -> float:
    """How much a view magnifies the resized image at most: the smallest crop is the intersection."""
    return 1 / overlap_ratio(view_iou)


def draw_crops(rng: np.random.Generator, outer: np.ndarray, view_iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Two crops [2, 4] of ``outer`` [4], with its aspect ratio and an IoU of at least ``view_iou``; their intersection.

    The crops begin as :func:`overlap_ratio` describes. Then the corner of each that touches the outer box moves towards
    the intersection by a uniform fraction of the way: the intersection stays and the union shrinks. The two are swapped
    with probability one half.
    """
    size = outer[2:] - outer[:2]
    # In outer crops of a few pixels the views overlap more, so that the intersection is at least one pixel wide.
    ratio = max(overlap_ratio(view_iou), MIN_SIDE / size.min())
    margin = (1 - ratio) / 2 * size
    top_left, bottom_right = outer[:2] + margin, outer[2:] - margin
    first, second = rng.random(2)
    crops = np.array([
        [*(outer[:2] + first * margin), *bottom_right],
        [*top_left, *(outer[2:] - second * margin)],
    ])  # fmt: skip
    if rng.random() < 0.5:
        crops = crops[[1, 0]]
    return crops, np.concatenate([top_left, bottom_right])


def choose_regions(
    rng: np.random.Generator, intersection: np.ndarray, proposals: np.ndarray, num_regions: int
) -> np.ndarray:
    """The regions [num_regions, 4] that both views show, in image pixels, each at least a pixel wide and high.

    The first region is the intersection itself; the others are the best proposals in it. If there are too few
    proposals, they are repeated in turn with jittered corners; if there are none, random boxes replace them.

    Args:
        intersection: [4], of the two crops, in image pixels.
        proposals: [N, 4] in image pixels, best first; unusable ones (see :func:`usable_proposals`) are ignored.
        num_regions: at least 1.
    """
    chosen = usable_proposals(proposals, intersection)[: num_regions - 1]
    missing = num_regions - 1 - len(chosen)
    if len(chosen) > 0:
        repeated = chosen[np.arange(missing) % len(chosen)]
        extra = clip_boxes(jitter_corners(rng, repeated), intersection)
    else:
        extra = random_boxes(rng, intersection, missing)
    return widen_boxes(np.concatenate([intersection[None], chosen, extra]), intersection)


def choose_differing_regions(
    rng: np.random.Generator, intersection: np.ndarray, proposals: np.ndarray, num_regions: int, max_iou: float
) -> np.ndarray:
    """As :func:`choose_regions`, but with an IoU below ``max_iou`` between any two regions, as far as possible.

    Greedy choice (non-maximum suppression) among the proposals, best first, then among RANDOM_REGIONS random boxes.
    If these are not enough, the chosen ones are repeated in turn with jittered corners.
    """
    proposals = usable_proposals(proposals, intersection)
    boxes = np.concatenate([intersection[None], proposals, random_boxes(rng, intersection, RANDOM_REGIONS)])
    chosen = boxes[differing(boxes, max_iou)[:num_regions]]
    others = chosen[1:] if len(chosen) > 1 else boxes[1:]
    repeated = others[np.arange(num_regions - len(chosen)) % len(others)]
    extra = clip_boxes(jitter_corners(rng, repeated), intersection)
    return widen_boxes(np.concatenate([chosen, extra]), intersection)


def differing(boxes: np.ndarray, max_iou: float) -> list[int]:
    """Rows of boxes [N, 4] xyxy, in their order, whose IoU with all rows chosen before is below ``max_iou``."""
    top_left = np.maximum(boxes[:, None, :2], boxes[:, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    common = (bottom_right - top_left).clip(0).prod(-1)  # [N, N]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    too_close = common >= max_iou * (areas[:, None] + areas - common)
    chosen: list[int] = []
    for row in range(len(boxes)):
        if not too_close[row, chosen].any():
            chosen.append(row)
    return chosen


def usable_proposals(proposals: np.ndarray, intersection: np.ndarray) -> np.ndarray:
    """Proposals [N, 4] clipped to the intersection [4], without those that have less than MIN_AREA of its area.

    Boxes with NaN or infinite coordinates or without a positive width and height are dropped. Views need no check of
    their own: they contain the intersection, and the ratio of two areas is the same in their pixels.
    """
    boxes = proposals[np.isfinite(proposals).all(axis=1)]
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    boxes = clip_boxes(boxes, intersection)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return boxes[areas >= MIN_AREA * (intersection[2:] - intersection[:2]).prod()]


def jitter_corners(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Move each coordinate of boxes [N, 4] by side * REPEAT_JITTER * (2 sigmoid(n) - 1), n ~ N(0, 1)."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + sides * REPEAT_JITTER * np.tanh(rng.standard_normal(boxes.shape) / 2)  # 2 sigmoid(n) - 1


def clip_boxes(boxes: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] cut to ``within`` [4]; those outside become empty."""
    return np.clip(boxes, np.tile(within[:2], 2), np.tile(within[2:], 2))


def widen_boxes(boxes: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Extend sides of boxes [N, 4] inside ``within`` [4] to at least one pixel, keeping the centre if possible."""
    half = np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_SIDE) / 2
    centre = np.clip((boxes[:, :2] + boxes[:, 2:]) / 2, within[:2] + half, within[2:] - half)
    return clip_boxes(np.concatenate([centre - half, centre + half], axis=1), within)
