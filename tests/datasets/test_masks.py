"""Boxes of masks, against numbers by hand and pycocotools' own decoding."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from datasets.masks import box_of_mask


def rle_of(pixels: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def runs_of(pixels: np.ndarray) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn, down the columns."""
    flat = np.concatenate([[0], pixels.T.ravel(), [2]])
    ends = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], ends])).tolist() if flat[1] == 0 else np.diff([0, *ends]).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths(seed):
    rng = np.random.default_rng(seed)
    pixels = np.zeros((20, 30), dtype=np.int64)
    (y0, y1), (x0, x1) = (np.sort(rng.choice(side, 2, replace=False)) for side in (19, 29))
    pixels[y0 : y1 + 1, x0 : x1 + 1] = 1
    pixels[y0, x0] = 0  # a corner is missing: the box stays, since no side is but one pixel
    expected = (x0, y0, x1 + 1 - x0, y1 + 1 - y0)
    assert box_of_mask(rle_of(pixels), (30, 20)) == expected
    assert box_of_mask({"size": [20, 30], "counts": runs_of(pixels)}, (30, 20)) == expected


def test_polygons():
    assert box_of_mask([[2, 3, 12, 3, 12, 9, 2, 9]], (30, 20)) == (2, 3, 10, 6)
    assert box_of_mask([[2, 3, 5, 3, 5, 9, 2, 9], [20, 1, 25, 1, 25, 4, 20, 4]], (30, 20)) == (2, 1, 23, 8), "both"
    assert box_of_mask([2, 3, 12, 3, 12, 9, 2, 9], (30, 20)) == (2, 3, 10, 6), "without the outer list"
    assert box_of_mask([[-1e9, -5, 12, -5, 12, 9, -1e9, 9]], (30, 20)) == (0, 0, 12, 9), "as far as the image goes"


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "neither polygons nor"),
        ("text", "neither polygons nor"),
        ([[1, 2, 3]], "three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three corners"),
        ([[1, 2, 3, 4, 5, float("nan")]], "no number"),
        ([[1, 2, 3, 4, 5, "6"]], "not a list of numbers"),
        ([[1, 2, 3, 4, 5, 6], 7], "not a list of numbers"),
        ({"size": [20, 30]}, "neither a list nor a text"),
        ({"size": [30, 20], "counts": [600]}, r"for \[30, 20\], not for \[20, 30\]"),
        ({"size": [20, 30], "counts": [1, 2]}, "do not add up"),
        ({"size": [20, 30], "counts": [-1, 601]}, "not a number of pixels"),
        ({"size": [20, 30], "counts": [0.5, 599.5]}, "not a number of pixels"),
        ({"size": [20, 30], "counts": "PPPP"}, "neither a list nor a text"),  # each digit says that another one follows
        ({"size": [20, 30], "counts": "\0"}, "neither a list nor a text"),
        ({"size": [20, 30], "counts": ""}, "neither a list nor a text"),
        ({"size": [20, 30], "counts": "P" * 20 + "0"}, "neither a list nor a text"),
    ],
)
def test_what_is_no_mask(segmentation, message):
    with pytest.raises(ValueError, match=message):
        box_of_mask(segmentation, (30, 20))


def test_images_too_large_for_masks():
    with pytest.raises(ValueError, match="too large"):
        box_of_mask([[1, 1, 5, 1, 5, 5]], (10**8, 10**8))
