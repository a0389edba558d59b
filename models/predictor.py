"""From images to detections, for the scripts, the evaluation and Python:

from models.predictor import load_detector
model = load_detector("out/finetune/checkpoint.pth")
detections = model("street.jpg")
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.images import STRICTLY, Reading, read_any, upright_size
from datasets.inference import sorted_batches
from datasets.transforms import ToTensor, detection_eval_transforms, resized_size
from models.backbone import backbone_normalization
from models.checkpoints.open import Restored, restore
from models.detections import Detections, make_detections
from models.detr import DETR
from models.postprocess import PostProcess, RegionPostProcess
from models.precision import computing
from util.errors import CheckpointError, UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list
from util.script import select_device

MAX_DETECTIONS = 100
THRESHOLD = 0.5
REGION = {"label": 0, "id": 1, "name": "region"}
"""The only category of a detector that was pretrained on class-agnostic regions (DETReg)."""

_NO_TARGET = ({"boxes": np.zeros((0, 4), dtype=np.float32)}, np.random.default_rng(0))
"""Target and randomness for transforms that need neither."""

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


@torch.no_grad()
def forward(detector: DETR, images: NestedTensor, device: torch.device, amp: str = "none") -> dict[str, Any]:
    """What a detector predicts for a padded batch, without gradients.

    Args:
        detector: in evaluation mode, on ``device``.
        images: tensors [B, 3, H, W] as the backbone wants them, mask [B, H, W]; on any device.
        amp: see :data:`util.precision.AMP_TYPES`.

    Returns:
        As :meth:`DETR.predict`, on ``device``.
    """
    with computing(detector, device, amp):
        return detector(images.to(device, non_blocking=True))


def detect(
    detector: DETR,
    postprocess: PostProcess,
    images: NestedTensor,
    sizes: Tensor,
    device: torch.device,
    amp: str = "none",
) -> list[dict[str, Tensor]]:
    """Detections in a padded batch, as :class:`PostProcess` gives them, on ``device``.

    Args:
        detector, images, device, amp: as of :func:`forward`.
        sizes: [B, 2] (height, width) in pixels of the original images.
    """
    return postprocess(forward(detector, images, device, amp), sizes.to(device))


class Predictor:
    """A detector that takes images of any size and returns its detections.

    Attributes:
        detector: in evaluation mode, on ``device``.
        postprocess: logits and boxes -> detections.
        categories: label -> ``{"label", "id", "name"}``.
        device, amp: where and in which precision it computes.
        eval_size, eval_max_size: short side to which images are resized, and limit of the long side, in pixels.
        reading: which image files are accepted.
    """

    def __init__(
        self,
        detector: DETR,
        postprocess: PostProcess,
        categories: Sequence[dict[str, Any]],
        *,
        backbone: str,
        device: torch.device,
        amp: str = "none",
        eval_size: int = 800,
        eval_max_size: int = 1333,
        reading: Reading = STRICTLY,
    ) -> None:
        """``backbone`` is the name of the detector's backbone; it decides how pixels are normalised."""
        self.detector = detector.to(device).eval()
        self.postprocess = postprocess
        self.categories = {category["label"]: category for category in categories}
        self.device = device
        self.amp = amp
        self.eval_size = eval_size
        self.eval_max_size = eval_max_size
        self.reading = reading
        self.normalization = backbone_normalization(backbone)
        self._transforms = detection_eval_transforms(eval_size, eval_max_size, *self.normalization)

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        threshold: float = THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
        batch_size: int = 1,
    ) -> Detections | list[Detections]:
        """Detect in one image, or in each of a list of images.

        Args:
            images: a path, a PIL image, a uint8 array [H, W, 3] or [H, W], a uint8 tensor [3, H, W]; or a list of
                these. EXIF orientation is applied.
            threshold: lowest score of a detection.
            max_detections: the largest number of detections per image.
            batch_size: images per forward pass. Images of the same size need no padding, and their detections do not
                depend on it.

        Returns:
            :class:`Detections`, or a list of them in the order of the images.

        Raises:
            DataError: an image cannot be read.
        """
        if isinstance(images, ImageLike):
            return self([images], threshold=threshold, max_detections=max_detections)[0]
        found: dict[int, Detections] = {}
        sizes = {index: self._resized(image) if batch_size > 1 else (0, 0) for index, image in enumerate(images)}
        for batch in sorted_batches(sizes, batch_size):
            pictures = [read_any(images[index], self.reading) for index in batch]
            prepared = nested_tensor_from_tensor_list([self.prepare(picture) for picture in pictures])
            results = self.detect(prepared, torch.tensor([(p.height, p.width) for p in pictures]))
            for index, picture, result in zip(batch, pictures, results, strict=True):
                found[index] = self.finish(
                    result, picture.size, images[index], threshold=threshold, max_detections=max_detections
                )
        return [found[index] for index in range(len(images))]

    def _resized(self, image: ImageLike) -> tuple[int, int]:
        size = upright_size(image, self.reading) if isinstance(image, str | Path) else read_any(image).size
        return self.resized(size)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) at which the detector sees an image of (width, height) ``size``."""
        return resized_size(size, self.eval_size, self.eval_max_size)

    def only(self, names: Sequence[str]) -> None:
        """Detect only these categories.

        Raises:
            UserError: the detector does not know one of them; the message suggests similar names.
        """
        known = {category["name"]: label for label, category in self.categories.items()}
        for name in names:
            if name not in known:
                similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(similar)}?" if similar else f"it knows {', '.join(known)}"
                raise UserError(f"--classes {name}: the detector knows no such class; {hint}")
        self.categories = {known[name]: self.categories[known[name]] for name in names}

    def prepare(self, image: Image.Image) -> Tensor:
        """An RGB image as input of the detector: resized and normalised, float32 [3, H, W]."""
        return self._transforms(image, *_NO_TARGET)[0]

    def normalise(self, image: Image.Image) -> Tensor:
        """An RGB image at its own size, normalised, float32 [3, H, W]."""
        return ToTensor(*self.normalization)(image, *_NO_TARGET)[0]

    def detect(self, images: NestedTensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """All detections in a padded batch; ``sizes`` [B, 2] are (height, width) of the original images."""
        return detect(self.detector, self.postprocess, images, sizes, self.device, self.amp)

    def finish(
        self, result: dict[str, Tensor], size: tuple[int, int], image: Any, *, threshold: float, max_detections: int
    ) -> Detections:
        """The detections to report of one image, from its entry of :meth:`detect`; ``size`` is (width, height)."""
        return make_detections(
            result, self.categories, threshold=threshold, max_detections=max_detections, size=size, image=image,
            reading=self.reading,
        )  # fmt: skip

    def draw(self, detections: Detections) -> Image.Image:
        """The image with its detections."""
        return detections.draw()


def load_detector(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    amp: str = "none",
    eval_size: int | None = None,
    eval_max_size: int | None = None,
    max_detections: int = MAX_DETECTIONS,
    **untold: Any,
) -> Predictor:
    """A trained detector from a checkpoint of this project or of others.

    Args:
        checkpoint: a file, a run's output folder (its newest checkpoint) or a Hugging Face model folder.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or any name that torch knows.
        amp: "none", "bf16" or "fp16".
        eval_size, eval_max_size: short side to which images are resized, and limit of the long side, in pixels; None:
            the checkpoint's.
        max_detections: the largest number of detections that a call will ask for.
        untold: flags of the architecture that the checkpoint does not tell: nheads, num_queries, dilation, backbone.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its detector does not detect by itself.
    """
    restored = restore(checkpoint, untold)
    return predictor_of(
        restored,
        device=device,
        amp=amp,
        eval_size=eval_size,
        eval_max_size=eval_max_size,
        max_detections=max_detections,
    )


def predictor_of(
    restored: Restored,
    *,
    device: str,
    amp: str,
    eval_size: int | None,
    eval_max_size: int | None,
    max_detections: int = MAX_DETECTIONS,
    reading: Reading = STRICTLY,
) -> Predictor:
    """As :func:`load_detector`, from a checkpoint that has been read."""
    categories = _categories_of(restored)
    kind = RegionPostProcess if restored.finds_regions else PostProcess
    size, longest = restored.eval_sizes
    return Predictor(
        restored.detector,
        kind(restored.detector.classification, top_k=max(MAX_DETECTIONS, max_detections)),
        categories,
        backbone=restored.args.backbone,
        device=select_device(device),
        amp=amp,
        eval_size=eval_size or size,
        eval_max_size=eval_max_size or longest,
        reading=reading,
    )


def _categories_of(restored: Restored) -> list[dict[str, Any]]:
    """The meaning of the labels; a category without a known id gets its label as id.

    Raises:
        CheckpointError: the detector does not detect by itself.
    """
    if restored.finds_regions:
        return [REGION]
    if restored.method is not None:
        raise CheckpointError(
            f"{restored.path}: pretrained by {restored.method}, it detects nothing by itself: show it a region with "
            "main_predict.py --query IMAGE X1 Y1 X2 Y2, or finetune it with main_finetune.py --pretrain"
        )
    if restored.categories is None:
        num_labels = restored.detector.num_logits - (restored.detector.classification == "softmax")
        return [{"label": label, "id": label, "name": f"class {label}"} for label in range(num_labels)]
    return [
        {**category, "id": category["label"] if category["id"] is None else category["id"]}
        for category in restored.categories
    ]
