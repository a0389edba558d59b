"""The box of an object that has only a mask, as COCO's tools compute it."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datasets.images import MAX_PIXELS

_LARGEST_SIDE = 65_535
_MOST_RLE_DIGITS = 13  # five bits each, what fits 64 bits


def box_of_mask(segmentation: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(x, y, width, height) in pixels of a mask in one of COCO's formats.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, or run lengths ``{"size": [height, width], "counts":
            list or text}``.
        size: (width, height) of the image.

    Raises:
        ValueError: any other value; the message says what is wrong.
    """
    width, height = size
    if max(size) > _LARGEST_SIDE or width * height > MAX_PIXELS:
        raise ValueError(f"an image of {width}x{height} is too large for a mask")
    if isinstance(segmentation, dict):
        runs = coco_mask.frPyObjects if isinstance(segmentation.get("counts"), list) else lambda rle, *_: rle
        rle = runs(_checked_runs(segmentation, size), height, width)
    else:
        polygons = [_checked_polygon(polygon, size) for polygon in _as_list(segmentation)]
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    x, y, box_width, box_height = coco_mask.toBbox(rle).tolist()
    return x, y, box_width, box_height


def _as_list(segmentation: Any) -> list:
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("neither polygons nor run lengths")
    # a single polygon is often written without the outer list
    return segmentation if isinstance(segmentation[0], list) else [segmentation]


def _checked_polygon(polygon: Any, size: tuple[int, int]) -> list[float]:
    """The corners, moved into the image, so that its size limits the cost of drawing the polygon."""
    if not isinstance(polygon, list) or not all(type(value) in (int, float) for value in polygon):
        raise ValueError("a polygon is not a list of numbers")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon needs three corners or more, x and y of each")
    corners = np.array([float(value) for value in polygon]).reshape(-1, 2)
    if not np.isfinite(corners).all():
        raise ValueError("a polygon's corner is no number")
    return np.clip(corners, 0, size).ravel().tolist()


def _checked_runs(rle: dict, size: tuple[int, int]) -> dict:
    """Run lengths in the correct form: with a malformed text, pycocotools would read beyond its end."""
    counts, (width, height) = rle.get("counts"), size
    if rle.get("size") != [height, width]:
        raise ValueError(f"run lengths for {rle.get('size')!r:.40}, not for [{height}, {width}]")
    if isinstance(counts, list):
        if not all(type(count) is int and 0 <= count <= width * height for count in counts):
            raise ValueError("a run length is not a number of pixels")
        if sum(counts) != width * height:
            raise ValueError("the run lengths do not add up to the image")
    elif not (isinstance(counts, str) and counts and _is_compressed(counts)):
        raise ValueError("the run lengths are neither a list nor a text in COCO's code")
    return {"size": [height, width], "counts": counts}


def _is_compressed(counts: str) -> bool:
    digits = 0
    for character in counts:
        value = ord(character) - 48
        if not 0 <= value < 64:
            return False
        digits = digits + 1 if value & 32 else 0
        if digits >= _MOST_RLE_DIGITS:
            return False
    return digits == 0
