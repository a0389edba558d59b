"""A label file in YOLO's format: one line per object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from util.errors import DataError
from util.inputs import Unreadable, read_text

Box = tuple[float, float, float, float]
"""cx, cy, w, h as fractions of the image."""

LabelLine = tuple[int, int, Box]
"""(number of the line, class, box)."""


def read_labels(file: Path, *, has_keypoints: bool = False) -> Iterator[LabelLine]:
    """The objects of all lines that are not empty.

    A line may have more than a box. A polygon (an even count of at least six numbers) becomes the box around it. A
    score after the box is ignored, and so are keypoints, if the data.yaml says that there are keypoints.

    Raises:
        DataError: the file cannot be read, or a line has another form; the message names the file and the line.
    """
    try:
        lines = read_text(file).splitlines()
    except Unreadable as error:
        raise DataError(f"{file}: cannot be read as labels ({error})") from None
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if words:
            yield number, *_parse(words, f"{file}, line {number}", has_keypoints)


def _parse(words: list[str], where: str, has_keypoints: bool) -> tuple[int, Box]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where}: must be numbers, class cx cy w h, not {' '.join(words)[:60]!r}")
    label, shares = values[0], values[1:]
    if not (label.is_integer() and 0 <= label < 1e6):
        raise DataError(f"{where}: the class must be a whole number from 0, not {words[0][:20]}")
    if len(shares) in (4, 5) or (has_keypoints and len(shares) > 5):
        return int(label), tuple(shares[:4])
    if len(shares) >= 6 and len(shares) % 2 == 0:
        return int(label), _around(shares)
    raise DataError(f"{where}: must be class cx cy w h, or class and a polygon, not {len(words)} numbers")


def _around(polygon: list[float]) -> Box:
    """The box around the corners x0 y0 x1 y1 ..."""
    left, right, top, bottom = min(polygon[::2]), max(polygon[::2]), min(polygon[1::2]), max(polygon[1::2])
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
