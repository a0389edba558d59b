"""Rectangles of pictures at other sizes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from datasets.pixels import compiled


def resample(picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The rectangle ``box`` [4] (xyxy in pixels, with fractions) of a picture, at (width, height) ``size``.

    Bilinear and antialiased, as Pillow has it. Pixels just outside the rectangle may count at its edges, as when the
    whole picture is resized first and cropped after that.

    Args:
        picture: [H, W, 3] uint8.

    Returns:
        [height, width, 3] uint8.
    """
    library = compiled.load()
    if library is not None:
        return compiled.resample(library, picture, box, size)
    resized = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, box=tuple(box.tolist()))
    return np.asarray(resized)
