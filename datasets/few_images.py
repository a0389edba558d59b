"""Training on a part of the labelled images, as papers on pretraining report it."""

from __future__ import annotations

import numpy as np

from datasets.records import DetectionRecords


def draw_fraction(records: DetectionRecords, fraction: float, seed: int) -> np.ndarray:
    """Indices [m] int64, ascending, of a random fraction of the images that have boxes to train on; at least one.

    The choice depends on ``seed`` and the data set only. With one seed, a larger fraction contains the smaller one.
    """
    labelled = np.unique(records.image_of_box()[~records.crowd])
    count = max(1, round(fraction * len(labelled)))
    return np.sort(np.random.default_rng(seed).permutation(labelled)[:count])


def draw_per_class(records: DetectionRecords, count: int, seed: int) -> np.ndarray:
    """Indices [m] int64, ascending, of ``count`` random images per class, or of all if the class has fewer.

    An image that was drawn for one class may show others too, so a class may get more than ``count`` images.
    The choice depends on ``seed`` and the data set only.
    """
    image_of_box = records.image_of_box()
    drawn = [np.empty(0, dtype=np.int64)]
    for category in records.categories:
        with_class = np.unique(image_of_box[~records.crowd & (records.labels == category["label"])])
        rng = np.random.default_rng((seed, category["label"]))
        drawn.append(rng.permutation(with_class)[:count])
    return np.unique(np.concatenate(drawn))
