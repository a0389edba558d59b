"""Places the texts of boxes so that each can be read: at a free place on its box, smaller if there are many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import ImageFont

LEAST_TEXT = 10
"""Size in pixels of the smallest readable font."""

ROOMY = 12
"""Number of texts on a picture from which on the font shrinks."""

MOST_HIDDEN = 0.25
"""Largest share of the picture that all texts together may hide, so that something is seen of a small picture."""

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """A text and the patch behind it, xyxy in pixels of the picture."""

    text: str
    patch: Rectangle


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def text_size(size: tuple[int, int], num_texts: int = 1) -> int:
    """A readable font size in pixels for a picture of (width, height) ``size`` with ``num_texts`` texts."""
    return max(LEAST_TEXT, round(min(size) / 26 * _crowding(num_texts)))


def line_width(size: tuple[int, int], num_boxes: int = 1) -> int:
    """Width in pixels of the lines of ``num_boxes`` boxes on a picture of (width, height) ``size``."""
    return max(1, round(min(size) / 150 * _crowding(num_boxes)))


def _crowding(count: int) -> float:
    """The factor by which texts and lines shrink where there are many."""
    return math.sqrt(ROOMY / max(count, ROOMY))


def patch_size(text: str, font_size: int) -> tuple[float, float]:
    """(width, height) of the patch behind a text."""
    left, top, right, bottom = font_of(font_size).getbbox(text)
    return right - left + 4, bottom - top + 4


def place_labels(
    size: tuple[int, int], boxes: Sequence[Rectangle], texts: Sequence[str], font_size: int
) -> list[Label | None]:
    """A label for each box; the first boxes choose first.

    A label lies at an edge of its box and overlaps no other label. If there is no place, only its last word (the score)
    is written; if there is no place for that either, the label is None. So it is if the labels would hide more than
    :data:`MOST_HIDDEN` of the picture.

    Args:
        size: (width, height) of the picture.
        boxes: xyxy in its pixels.
        texts: one per box.
        font_size: see :func:`text_size`.
    """
    taken: list[Rectangle] = []
    labels: list[Label | None] = []
    free = MOST_HIDDEN * size[0] * size[1]
    for box, text in zip(boxes, texts, strict=True):
        label = next(filter(None, (_place(size, box, form, font_size, taken, free) for form in _forms(text))), None)
        labels.append(label)
        if label is not None:
            taken.append(label.patch)
            free -= math.prod(patch_size(label.text, font_size))
    return labels


def _forms(text: str) -> list[str]:
    """A text and, if it has several words, the last word."""
    return list(dict.fromkeys([text, text.rpartition(" ")[2]]))


def _place(
    size: tuple[int, int], box: Rectangle, text: str, font_size: int, taken: Sequence[Rectangle], free: float
) -> Label | None:
    """The label at a place that is not ``taken``, of at most ``free`` square pixels."""
    wide, tall = patch_size(text, font_size)
    if wide > size[0] or wide * tall > free:
        return None
    for x, y in _corners(size, box, wide, tall):
        patch = (x, y, x + wide, y + tall)
        if not any(_overlap(patch, other) for other in taken):
            return Label(text, patch)
    return None


def _corners(size: tuple[int, int], box: Rectangle, wide: float, tall: float) -> list[tuple[float, float]]:
    """Top left corners for a patch inside the picture, the best first: above the box, then down its edges."""
    left, top, right, bottom = box
    steps = range(-1, max(3, min(12, int((bottom - top) / tall))))
    corners = [(x, top + step * tall) for x in (left, right - wide) for step in steps]
    corners += [(left, bottom), (right - wide, bottom)]
    limit_x, limit_y = max(0, size[0] - wide), max(0, size[1] - tall)
    return [(min(max(x, 0), limit_x), min(max(y, 0), limit_y)) for x, y in corners]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
