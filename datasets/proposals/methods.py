"""Methods that propose regions of an image without labels: EdgeBoxes, selective search, random boxes.

A method is built from its parameters and called as ``method(image, index)`` with an upright RGB image and its index in
the data set; it returns (boxes [N, 4] float32, xyxy in pixels of the image; scores [N] float32, in descending order).
It imports its library only when called, so it can be pickled and sent to worker processes.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from datasets.proposals.store import random_boxes
from util.errors import DataError
from util.inputs import Unreadable, read_bytes
from util.optional import require

SMALLEST_SIDE = 8  # pixels; smaller images have no contours, and OpenCV would read beyond its arrays
LARGEST_SIDE = 32766  # pixels; the limit of OpenCV's remap


class ProposalMethod(Protocol):
    """Makes the proposals of one image; see the module's docstring."""

    name: str

    def parameters(self) -> dict[str, Any]:
        """Everything that the boxes depend on besides the image; can be written as JSON."""

    def __call__(self, image: Image.Image, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and scores."""


def opencv(purpose: str) -> ModuleType:
    """OpenCV with its contributed modules, on one thread.

    Raises:
        UserError: OpenCV is not installed.
    """
    cv2 = require("cv2", "opencv-contrib-python-headless", purpose)
    require("cv2.ximgproc", "opencv-contrib-python-headless", purpose)
    cv2.setNumThreads(1)
    return cv2


@dataclass(frozen=True)
class EdgeBoxes:
    """EdgeBoxes (Zitnick and Dollár, ECCV 2014): boxes are scored by the contours that lie wholly inside them.

    Args:
        max_boxes: largest number of boxes per image.
        size: short side in pixels to which larger images are reduced; 0: no image is reduced.
        edge_model: file of OpenCV's structured forest, which finds the edges; None: :func:`colour_edges`.
    """

    max_boxes: int
    size: int = 320
    edge_model: str | None = None
    name = "edgebox"
    # alpha: the search takes slightly larger steps than with the authors' 0.65, in half the time and with the same
    # recall. beta 0.65: fewer near-duplicates among the best boxes. minBoxArea is in pixels of the reduced image.
    search = {  # noqa: RUF012 - never changed
        "alpha": 0.55,
        "beta": 0.65,
        "eta": 1.0,
        "minScore": 0.01,
        "edgeMinMag": 0.1,
        "edgeMergeThr": 0.5,
        "clusterMinMag": 0.5,
        "maxAspectRatio": 3.0,
        "minBoxArea": 400.0,
        "gamma": 2.0,
        "kappa": 1.5,
    }

    def parameters(self) -> dict[str, Any]:
        """The fields, the parameters of the edges (for an edge model, its digest), and OpenCV's version."""
        version = opencv("edgebox").__version__
        edges: dict[str, Any] = {"edges": "colour gradients", "sigma": EDGE_SIGMA, "strong": EDGE_PERCENTILE}
        if self.edge_model is not None:
            edges = {"edges": "structured forest", "sha256": file_digest(self.edge_model)}
            check_forest(self.edge_model)
        return {"max_boxes": self.max_boxes, "size": self.size, **edges, **self.search, "opencv": version}

    @cached_property
    def _forest(self) -> Any:
        return opencv("edgebox").ximgproc.createStructuredEdgeDetection(self.edge_model)

    def __call__(self, image: Image.Image, index: int) -> tuple[np.ndarray, np.ndarray]:
        cv2 = opencv("edgebox")
        pixels = np.asarray(image)
        shrink = min(LARGEST_SIDE / max(image.size), (self.size or math.inf) / min(image.size))
        if shrink < 1:
            reduced = [max(1, round(side * shrink)) for side in image.size]
            pixels = cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA)
        if min(pixels.shape[:2]) < SMALLEST_SIDE:
            return no_boxes()
        if self.edge_model is None:
            edges, orientation = colour_edges(pixels)
        else:
            strength = self._forest.detectEdges(pixels.astype(np.float32) / 255)
            orientation = self._forest.computeOrientation(strength)
            edges = self._forest.edgesNms(strength, orientation)
        if not edges.any():
            return no_boxes()
        finder = cv2.ximgproc.createEdgeBoxes(maxBoxes=self.max_boxes, **self.search)
        found, scores = finder.getBoundingBoxes(edges, orientation)
        return in_image(found, pixels.shape[:2], image, scores)


def check_forest(path: str) -> None:
    """Raise DataError if ``path`` is not a structured forest. (OpenCV divides by zero if its options are missing.)"""
    cv2 = opencv("edgebox")
    try:
        storage = cv2.FileStorage(path, cv2.FILE_STORAGE_READ)  # its nodes live as long as it does
        stride = storage.getNode("options").getNode("stride")
        is_forest = not stride.empty() and stride.real() > 0
    except (cv2.error, SystemError):
        is_forest = False
    if not is_forest:
        raise DataError(f"{path}: not a structured forest in OpenCV's format")


EDGE_SIGMA = 2.0  # of the smoothing, in pixels: removes texture, keeps outlines; smaller values take more time
EDGE_PERCENTILE = 99.0  # of the thinned gradients; gradients above it get strength 1


def colour_edges(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges from smoothed colour gradients, thinned to lines, in the form that EdgeBoxes expects.

    Each pixel takes its steepest gradient among the channels, and keeps it if both neighbours along the gradient are
    not steeper.

    Args:
        pixels: [H, W, 3] uint8.

    Returns:
        Strength [H, W] float32 in [0, 1], and the direction across the edge [H, W] float32, radians in [0, pi).
    """
    cv2 = opencv("edgebox")
    smooth = cv2.GaussianBlur(pixels.astype(np.float32) / 255, (0, 0), EDGE_SIGMA)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, dx, dy, ksize=3) for dx, dy in ((1, 0), (0, 1)))
    steepest = np.hypot(across, down).argmax(axis=2)[..., None]
    dx, dy = (np.take_along_axis(slope, steepest, axis=2)[..., 0] for slope in (across, down))
    strength = np.hypot(dx, dy)
    unit_x, unit_y = dx / np.maximum(strength, 1e-12), dy / np.maximum(strength, 1e-12)
    y, x = np.indices(strength.shape, dtype=np.float32)
    for sign in (1, -1):
        beside = cv2.remap(
            np.hypot(dx, dy), x + sign * unit_x, y + sign * unit_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        strength[strength < beside] = 0
    if strength.any():
        strength = np.minimum(strength / np.percentile(strength[strength > 0], EDGE_PERCENTILE), 1)
    # For angles just below 0, np.mod rounds to pi, which is outside the range.
    orientation = np.mod(np.arctan2(dy, dx), np.pi)
    return strength.astype(np.float32), np.where(orientation < np.float32(np.pi), orientation, 0).astype(np.float32)


@dataclass(frozen=True)
class SelectiveSearch:
    """Selective search (Uijlings et al., IJCV 2013) in OpenCV's fast mode.

    Args:
        max_boxes: largest number of boxes per image.
        size: side of the square to which images are resized, 128 as in DETReg; 0: they are not resized.
    """

    max_boxes: int
    size: int = 128
    name = "selective_search"

    def parameters(self) -> dict[str, Any]:
        """The fields and OpenCV's version."""
        return {"max_boxes": self.max_boxes, "size": self.size, "opencv": opencv(self.name).__version__}

    def __call__(self, image: Image.Image, index: int) -> tuple[np.ndarray, np.ndarray]:
        cv2 = opencv(self.name)
        pixels = np.asarray(image)[..., ::-1]
        if self.size:
            pixels = cv2.resize(pixels, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        if min(pixels.shape[:2]) < SMALLEST_SIDE:
            return no_boxes()
        # OpenCV shuffles the boxes with the C library's generator, whose state depends on the images before.
        ctypes.CDLL(None).srand(1)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(pixels))
        search.switchToSelectiveSearchFast()
        return in_image(search.process()[: self.max_boxes], pixels.shape[:2], image, None)


@dataclass(frozen=True)
class RandomBoxes:
    """Random boxes in the whole image, a function of the seed and the image's index in the data set."""

    max_boxes: int
    seed: int = 0
    name = "random"

    def parameters(self) -> dict[str, Any]:
        """All fields."""
        return {"max_boxes": self.max_boxes, "seed": self.seed}

    def __call__(self, image: Image.Image, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, index))
        boxes = random_boxes(rng, np.array([0.0, 0.0, *image.size]), self.max_boxes)
        return boxes.astype(np.float32), falling_scores(len(boxes))


def in_image(
    found: np.ndarray, worked_on: tuple[int, int], image: Image.Image, scores: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's boxes [N, 4], xywh in a picture of (height, width) ``worked_on``, as xyxy in pixels of ``image``.

    Args:
        scores: [N] or [N, 1], in descending order; None: the boxes are best first but have no scores, and get
            :func:`falling_scores`.
    """
    if len(found) == 0:
        return no_boxes()
    boxes = np.array(found, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    height, width = worked_on
    boxes *= np.tile([image.width / width, image.height / height], 2)
    boxes = np.clip(boxes, 0, np.tile(image.size, 2)).astype(np.float32)
    values = falling_scores(len(boxes)) if scores is None else np.asarray(scores, dtype=np.float32).reshape(-1)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[keep], values[keep]


def no_boxes() -> tuple[np.ndarray, np.ndarray]:
    """The result for an image without proposals: empty arrays."""
    return np.empty((0, 4), dtype=np.float32), np.empty(0, dtype=np.float32)


def falling_scores(count: int) -> np.ndarray:
    """Scores that fall evenly from 1, for methods that only rank their boxes."""
    return (1 - np.arange(count) / max(count, 1)).astype(np.float32)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except Unreadable as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


METHODS = {"edgebox": EdgeBoxes, "selective_search": SelectiveSearch, "random": RandomBoxes}
