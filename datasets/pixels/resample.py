"""Cutting a rectangle out of a picture and resizing it, in one step."""

from __future__ import annotations

import numpy as np
from PIL import Image

from datasets.pixels import compiled


def resample(picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The rectangle ``box`` [4] (xyxy in pixels, with fractions) of a picture, resized to (width, height) ``size``.

    Bilinear and antialiased, like Pillow's. Pixels just outside the rectangle may contribute at its edges, as if the
    whole picture were resized first and then cropped.

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
