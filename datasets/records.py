"""The images and boxes of an annotated data set, packed into a few arrays.

A million boxes as Python objects would take gigabytes, and every worker process would copy them (touching an object
changes its reference count). Readers such as :mod:`datasets.coco` fill a :class:`RecordBuilder`; its
:meth:`~RecordBuilder.pack` removes unusable boxes.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

_PLACES_TOLD = 3
_CLIP_TOLERANCE = 1e-3  # pixels; boxes that reach less than this beyond their image are not reported (rounding)


@dataclass(frozen=True)
class DroppedBoxes:
    """How many of the ``total`` boxes in the files were unusable, how many reached outside their image, and where."""

    total: int
    dropped: int
    clipped: int
    dropped_places: list[str]
    clipped_places: list[str]

    def describe(self) -> str:
        """One phrase for the user."""
        parts = []
        if self.dropped:
            where = some(self.dropped_places, self.dropped)
            parts.append(f"{self.dropped} of {self.total} boxes dropped: no area inside the image ({where})")
        else:
            parts.append(f"{self.total} box{'' if self.total == 1 else 'es'}")
        if self.clipped:
            parts.append(f"{self.clipped} clipped to the image ({some(self.clipped_places, self.clipped)})")
        if 2 * (self.dropped + self.clipped) > self.total:
            parts.append(
                "more than half of the boxes do not fit their images: perhaps corners and sizes are mixed up; look at "
                "them with tools/check_data.py"
            )
        return ", ".join(parts)


def some(places: Sequence[str], count: int) -> str:
    """The first of ``count`` places, for a message."""
    told = list(places[:_PLACES_TOLD])
    return "; ".join(told) + ("; ..." if count > len(told) else "")


class ImageFiles:
    """The image files of a data set.

    Attributes:
        root: folder that ``paths`` are relative to.
        paths: [n] bytes (see :func:`pack_paths`).
    """

    root: Path
    paths: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The file of image ``index``."""
        return self.root / os.fsdecode(self.paths[index])

    def relative_paths(self) -> list[str]:
        """Paths of all images relative to the root, with forward slashes."""
        return [os.fsdecode(path) for path in self.paths]


@dataclass(frozen=True, kw_only=True)
class DetectionRecords(ImageFiles):
    """n images and their N usable boxes; boxes of image i are rows offsets[i]:offsets[i+1].

    Attributes:
        root: folder that ``paths`` are relative to.
        source: file or folder of the annotations, for messages.
        metric: "coco" or "voc": how the data set is evaluated.
        categories: each ``{"label": int, "id": int, "name": str}``, sorted by label; the model predicts labels, the
            annotation files and evaluations use ids.
        paths: [n] bytes (see :func:`pack_paths`).
        image_ids: [n] int64.
        sizes: [n, 2] int32, (width, height) in pixels.
        offsets: [n + 1] int64.
        boxes: [N, 4] float32, xyxy in pixels, inside the image, of positive width and height.
        labels: [N] int64.
        areas: [N] float64, of the object (COCO: of its segmentation), in square pixels.
        crowd: [N] bool, groups of objects: not trained on, ignored by the devkit's scores.
        difficult: [N] bool: trained on, ignored by the devkit's scores.
        dropped: which boxes were dropped or clipped.
        notes: what else the user should know about the files, one phrase each.
    """

    root: Path
    source: str
    metric: str
    categories: list[dict]
    paths: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    dropped: DroppedBoxes
    notes: list[str]

    def image_of_box(self) -> np.ndarray:
        """[N] int64, the index of each box's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def select(self, indices: np.ndarray) -> DetectionRecords:
        """Only the images ``indices`` [m] int64, with their boxes; ``dropped`` still describes the whole data set."""
        counts = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[indices] - offsets[:-1], counts)
        of_images = {name: getattr(self, name)[indices] for name in ("paths", "image_ids", "sizes")}
        of_boxes = {name: getattr(self, name)[rows] for name in ("boxes", "labels", "areas", "crowd", "difficult")}
        return replace(self, offsets=offsets, **of_images, **of_boxes)


def pack_paths(paths: list[str]) -> np.ndarray:
    """Paths as one array of bytes; ``os.fsdecode(array[i])`` gives the i-th back."""
    return np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)


class RecordBuilder:
    """Collects images and boxes one by one in compact arrays."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._image_ids = array("q")
        self._sizes = array("i")
        self._boxes = array("d")
        self._areas = array("d")
        self._image_of_box = array("q")
        self._labels = array("q")
        self._degenerate = array("b")
        self._crowd = array("b")
        self._difficult = array("b")

    def add_image(self, path: str, image_id: int, size: tuple[int, int]) -> int:
        """Add an image (path relative to the root, size (width, height)) and return its index."""
        self._paths.append(path)
        self._image_ids.append(image_id)
        self._sizes.extend(size)
        return len(self._paths) - 1

    def path(self, index: int) -> str:
        """The file of image ``index``, relative to the root."""
        return self._paths[index]

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of image ``index``."""
        return self._sizes[2 * index], self._sizes[2 * index + 1]

    def add_box(
        self,
        image_index: int,
        box: tuple[float, float, float, float],
        label: int,
        *,
        degenerate: bool = False,
        area: float | None = None,
        crowd: bool = False,
        difficult: bool = False,
    ) -> None:
        """Add a box (xyxy in pixels, finite); ``area`` None: the area of the clipped box."""
        self._image_of_box.append(image_index)
        self._boxes.extend(box)
        self._labels.append(label)
        self._degenerate.append(degenerate)
        self._areas.append(np.nan if area is None else area)
        self._crowd.append(crowd)
        self._difficult.append(difficult)

    def pack(
        self,
        *,
        root: Path,
        source: str,
        metric: str,
        categories: list[dict],
        place: Callable[[int, int], str],
        notes: Sequence[str] = (),
    ) -> DetectionRecords:
        """Drop boxes without area inside their image, clip the others to it, and sort them by image.

        Args:
            place: (index of a box in order of addition, index of its image) -> its place in the files, for messages.
            notes: see :class:`DetectionRecords`.
        """
        image = np.array(self._image_of_box, dtype=np.int64)
        sizes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)
        given = np.array(self._boxes, dtype=np.float64).reshape(-1, 4)
        boxes = np.clip(given, 0, np.tile(sizes[image], 2)).astype(np.float32)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & ~np.array(self._degenerate, dtype=bool)
        clipped = keep & (np.abs(given - boxes) > _CLIP_TOLERANCE).any(axis=1)

        def places(chosen: np.ndarray) -> list[str]:
            return [place(int(n), int(image[n])) for n in np.flatnonzero(chosen)[:_PLACES_TOLD]]

        order = np.flatnonzero(keep)
        order = order[np.argsort(image[order], kind="stable")]
        boxes = boxes[order]
        areas = np.array(self._areas, dtype=np.float64)[order]
        counts = np.bincount(image[order], minlength=len(self._paths))
        return DetectionRecords(
            root=root,
            source=source,
            metric=metric,
            categories=categories,
            paths=pack_paths(self._paths),
            image_ids=np.array(self._image_ids, dtype=np.int64),
            sizes=sizes,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=boxes,
            labels=np.array(self._labels, dtype=np.int64)[order],
            areas=np.where(np.isnan(areas), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), areas),
            crowd=np.array(self._crowd, dtype=bool)[order],
            difficult=np.array(self._difficult, dtype=bool)[order],
            dropped=DroppedBoxes(len(keep), int((~keep).sum()), int(clipped.sum()), places(~keep), places(clipped)),
            notes=list(notes),
        )
