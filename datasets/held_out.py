"""Holding out training images for evaluation, if a data set has no validation images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.records import DetectionRecords
from util import distributed
from util.errors import DataError, UserError
from util.files import write_json
from util.logger import say
from util.run_summary import number_of

USUAL_FRACTION = 0.2
"""Fraction of the labelled images to hold out by default."""

_COPY = ".rf."  # Roboflow names the augmented copies of one photograph NAME.rf.CODE.jpg


def draw_random(count: int, fraction: float, seed: int) -> np.ndarray:
    """Indices [m] int64, ascending, of a random fraction of ``count`` images, at least one; depends only on the seed.

    Raises:
        UserError: no image is left to train on.
    """
    held = max(1, round(fraction * count))
    if held >= count:
        raise _nothing_left(fraction, count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:held])


def draw_stratified(records: DetectionRecords, fraction: float, seed: int) -> np.ndarray:
    """Indices [m] int64, ascending, of a fraction of the images that contains the same fraction of each class, nearly.

    Iterative stratification (Sechidis et al. 2011): the images of the rarest class are assigned first, each to the part
    that lacks most of this class. Images without objects count as a class. Roboflow's copies of one photograph stay
    together. The choice depends on the seed and the data set only.

    Raises:
        UserError: no image is left to train on.
    """
    groups, shows = _groups(records)
    order = np.random.default_rng(seed).permutation(len(shows))
    lacks = np.outer([1 - fraction, fraction], shows.sum(0))  # [part, class]: how many images it still wants
    space = np.array([1 - fraction, fraction]) * len(shows)
    part = np.full(len(shows), -1)
    for label in np.argsort(shows.sum(0), kind="stable"):
        for group in order[shows[order, label] & (part[order] < 0)]:
            part[group] = max((0, 1), key=lambda k: (lacks[k, label], space[k]))
            lacks[part[group]] -= shows[group]
            space[part[group]] -= 1
    if not part.any():
        part[order[0]] = 1  # at least one
    held = np.flatnonzero(part[groups] == 1)
    if len(held) >= len(records):
        raise _nothing_left(fraction, len(records))
    return held


def _nothing_left(fraction: float, count: int) -> UserError:
    return UserError(
        f"--val_fraction {fraction} of {number_of(count, 'image')} leaves none to train on; add images, or lower it"
    )


def _groups(records: DetectionRecords) -> tuple[np.ndarray, np.ndarray]:
    """The group [n] of each image; which classes each group shows [groups, K + 1] bool, the last column: no class."""
    names = [path.partition(_COPY)[0] for path in records.relative_paths()]
    _, groups = np.unique(names, return_inverse=True)
    position = {category["label"]: place for place, category in enumerate(records.categories)}
    shows = np.zeros((groups.max(initial=-1) + 1, len(position) + 1), dtype=bool)
    places = np.array([position[label] for label in records.labels.tolist()], dtype=np.int64)
    shows[groups[records.image_of_box()], places] = True
    shows[:, -1] = ~shows.any(1)
    return groups, shows


def find_images(paths: Sequence[str], wanted: Sequence[str], source: str) -> np.ndarray:
    """Indices [m] int64 in ``paths`` of the images that a resumed run trained on or held out, in their order.

    Raises:
        DataError: an image is missing; the message names it and ``source``.
    """
    index_of = {path: index for index, path in enumerate(paths)}
    missing = next((path for path in wanted if path not in index_of), None)
    if missing is not None:
        raise DataError(
            f"{source}: the image {missing} is missing, and the resumed run trained or evaluated on it; put it back"
        )
    return np.array([index_of[path] for path in wanted], dtype=np.int64)


def write_list(paths: Sequence[str], total: int, output_dir: str, why: str = "") -> None:
    """Write the images held out to val_images.json, and say so; only in the main process."""
    path = f"{output_dir}/val_images.json"
    if distributed.is_main():
        write_json(list(paths), path)
    say(f"{why}{len(paths)} of {total} images are held out to evaluate on, listed in {path}")
