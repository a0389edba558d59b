"""Entries of a labelled data set that are probably mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets.records import DetectionRecords
from datasets.tree import plain

TINY = 4  # pixels
WHOLE = 0.99  # of the image's area
FEW = 10  # images
MANY = 100  # objects: the usual number of queries


@dataclass(frozen=True)
class Doubt:
    """One kind of doubtful entries: what they are, how many, and where (all places, or the first ones)."""

    what: str
    count: int
    places: list[str]


def doubts_of(records: DetectionRecords) -> list[Doubt]:
    """The doubtful entries of one split."""
    dropped = records.dropped
    found = [
        Doubt("boxes without area inside their image: left out", dropped.dropped, dropped.dropped_places),
        Doubt("boxes that reach beyond their image: clipped", dropped.clipped, dropped.clipped_places),
        *(_boxes(records, what, chosen) for what, chosen in _kinds(records)),
        _crowded(records),
    ]
    return [doubt for doubt in found if doubt.count]


def _kinds(records: DetectionRecords) -> Iterator[tuple[str, np.ndarray]]:
    """Kinds of doubtful boxes; for each, [N] bool which boxes are of this kind."""
    sides = records.boxes[:, 2:] - records.boxes[:, :2]
    image_areas = records.sizes[records.image_of_box()].astype(np.float64).prod(1)
    yield f"boxes with a side below {TINY} pixels", sides.min(1, initial=np.inf) < TINY
    yield "boxes that cover their whole image", sides.prod(1) >= WHOLE * image_areas
    place = np.column_stack([records.image_of_box(), records.boxes.round()])
    yield "boxes that are there twice, with the same class", _repeated(np.column_stack([place, records.labels]))
    others = _repeated(place) & ~_repeated(np.column_stack([place, records.labels]))
    yield "boxes that are there twice, with different classes", others


def _repeated(rows: np.ndarray) -> np.ndarray:
    """[N] bool: whether an earlier row is equal."""
    if not len(rows):
        return np.zeros(0, dtype=bool)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)] != np.arange(len(rows))


def _boxes(records: DetectionRecords, what: str, chosen: np.ndarray) -> Doubt:
    names = {category["label"]: category["name"] for category in records.categories}
    paths, image_of_box = records.relative_paths(), records.image_of_box()
    places = [
        f"{names[int(records.labels[row])]} [{', '.join(f'{side:g}' for side in records.boxes[row].round(1))}] of "
        f"{paths[image_of_box[row]]}"
        for row in np.flatnonzero(chosen)
    ]
    return Doubt(what, int(chosen.sum()), places)


def _crowded(records: DetectionRecords) -> Doubt:
    counts, paths = np.diff(records.offsets), records.relative_paths()
    chosen = np.flatnonzero(counts > MANY)
    places = [f"{paths[index]} ({counts[index]})" for index in chosen]
    return Doubt(f"images with more than {MANY} objects: raise --num_queries", len(chosen), places)


def doubts_of_classes(splits: dict[str, DetectionRecords]) -> list[Doubt]:
    """What is doubtful about the classes of the whole data set."""
    categories = splits["train"].categories
    images = {split: images_by_class(records) for split, records in splits.items()}
    names = [category["name"] for category in categories]
    by_plain: dict[str, list[str]] = {}
    for name in names:
        by_plain.setdefault("".join(plain(name).split()).replace("_", "").replace("-", ""), []).append(name)
    same = [" / ".join(alike) for alike in by_plain.values() if len(alike) > 1]
    shown = images["train"]
    none = [name for name in names if not shown[name]]
    few = [f"{name} ({shown[name]})" for name in names if 0 < shown[name] < FEW]
    unseen = [name for name in names if "val" in images and not images["val"][name]]
    found = [
        Doubt("class names that differ in letter case or spaces alone", len(same), same),
        Doubt("classes without a box to train on", len(none), none),
        Doubt(f"classes on fewer than {FEW} images to train on", len(few), few),
        Doubt("classes that are not among the images to evaluate on", len(unseen), unseen),
    ]
    return [doubt for doubt in found if doubt.count]


def images_by_class(records: DetectionRecords) -> dict[str, int]:
    """Name of each class -> how many images show it."""
    image_of_box = records.image_of_box()
    return {
        category["name"]: len(np.unique(image_of_box[records.labels == category["label"]]))
        for category in records.categories
    }
