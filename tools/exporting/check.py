"""Checks that a written file gives the same detections as the detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.images import load_image
from datasets.transforms import resized_size
from models.predictor import Predictor
from tools.exporting.write import INSTALL
from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list
from util.optional import require

TOLERANCE = 1e-4
"""Largest difference in scores and in boxes, as fractions of the image."""

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""boxes [B, N, 4], scores [B, N], labels [B, N]."""

Run = Callable[[NestedTensor], Found]


def open_file(path: Path, *, takes_mask: bool) -> Run:
    """A function that runs a written file.

    Raises:
        UserError: a package is missing.
    """
    return _open_onnx(path, takes_mask) if path.suffix == ".onnx" else _open_pt2(path, takes_mask)


def _open_onnx(path: Path, takes_mask: bool) -> Run:
    runtime = require("onnxruntime", INSTALL, "checking an ONNX file")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: NestedTensor) -> Found:
        values = {"pixel_values": images.tensors.numpy()}
        if takes_mask:
            values["mask"] = images.mask.numpy()
        return tuple(session.run(["boxes", "scores", "labels"], values))

    return run


def _open_pt2(path: Path, takes_mask: bool) -> Run:
    module = torch.export.load(path).module()

    def run(images: NestedTensor) -> Found:
        with torch.no_grad():
            found = module(images.tensors, images.mask) if takes_mask else module(images.tensors)
        return tuple(value.numpy() for value in found)

    return run


def compare(run: Run, predictor: Predictor, batches: Sequence[NestedTensor]) -> float:
    """The largest difference between a file and the detector, over all batches.

    Raises:
        UserError: the difference is larger than :data:`TOLERANCE`.
    """
    worst = max(difference(run(batch), expected(predictor, batch)) for batch in batches)
    if not worst <= TOLERANCE:
        raise UserError(f"the file differs from the detector by {worst:.2g}, more than {TOLERANCE:g}: do not use it")
    return worst


def expected(predictor: Predictor, images: NestedTensor) -> Found:
    """The detections of the detector itself, boxes as fractions of the images."""
    results = predictor.detect(images, torch.ones(len(images), 2))
    return tuple(torch.stack([result[name] for result in results]).numpy() for name in ("boxes", "scores", "labels"))


def difference(found: Found, wanted: Found) -> float:
    """The largest difference in scores and boxes between two sets of detections of the same images.

    Each detection is compared with the most similar one of its label, because detections with equal scores (within the
    tolerance) may come in any order, and the last ones may be different boxes.
    """
    return max(
        max(_one_way(a, b), _one_way(b, a))
        for a, b in zip(zip(*found, strict=True), zip(*wanted, strict=True), strict=True)
    )


def _one_way(found: Found, wanted: Found) -> float:
    """The largest distance from a detection in ``found`` to the nearest one in ``wanted``, of one image."""
    boxes, scores, labels = found
    other_boxes, other_scores, other_labels = wanted
    distance = np.abs(boxes[:, None] - other_boxes[None]).max(-1)
    distance = np.maximum(distance, np.abs(scores[:, None] - other_scores[None]))
    distance = np.where(labels[:, None] == other_labels[None], distance, np.inf).min(1)
    last = scores <= other_scores.min() + TOLERANCE
    beyond = np.abs(scores - other_scores.min())
    return float(np.where(last, np.minimum(distance, beyond), distance).max())


def check_batches(
    predictor: Predictor, images: Sequence[Image.Image], size: tuple[int, int] | None
) -> list[NestedTensor]:
    """Batches of real images to compare on.

    Args:
        images: RGB.
        size: (height, width) that the file takes; None: any size, so each image is tested alone at two sizes, and all
            together, padded.
    """
    if size is not None:
        return [_unpadded(predictor, image.resize(size[::-1], Image.Resampling.BILINEAR)) for image in images]
    batches = [
        _unpadded(predictor, image.resize(resized_size(image.size, short, predictor.eval_max_size)))
        for image in images
        for short in (predictor.eval_size, round(0.7 * predictor.eval_size))
    ]
    together = [batch.tensors[0] for batch in batches[:4]]
    return [*batches, nested_tensor_from_tensor_list(together)]


def _unpadded(predictor: Predictor, image: Image.Image) -> NestedTensor:
    return nested_tensor_from_tensor_list([predictor.normalise(image)])


def load_check_images(paths: Sequence[str]) -> list[Image.Image]:
    """The images to compare on; if ``paths`` is empty, two synthetic ones, one upright and one wide."""
    return [load_image(path) for path in paths] or [draw_image((240, 320)), draw_image((400, 250))]


def draw_image(size: tuple[int, int]) -> Image.Image:
    """Coloured rectangles on noise, (width, height); the same at every call."""
    rng = np.random.default_rng(size)
    pixels = rng.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    for _ in range(6):
        x, y = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        width, height = rng.integers(20, size[0] // 2), rng.integers(20, size[1] // 2)
        pixels[y : y + height, x : x + width] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


def as_tensor(batch: NestedTensor, *, takes_mask: bool) -> tuple[Tensor, ...]:
    """A batch as the inputs of an export form."""
    return (batch.tensors, batch.mask) if takes_mask else (batch.tensors,)
