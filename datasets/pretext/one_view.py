"""The training samples of the baselines: one view of an image, and regions of it.

The regions are random patches in UP-DETR (arXiv 2011.09094) and the best proposals in DETReg (arXiv 2106.04550).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.images import load_image
from datasets.pixels.photometric import Normalisation, change, draw_photometric
from datasets.pixels.resample import resample
from datasets.pretext.samples import PretextDataset
from datasets.pretext.two_view import as_planes
from datasets.pretext.view_geometry import clip_boxes
from datasets.proposals.store import random_boxes
from datasets.transforms import RandomResize, detection_augmentation
from util.box_ops import box_xyxy_to_cxcywh
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

MIN_PATCH = 8  # pixels of the view; from UP-DETR's code
MIN_REGION = 1.0  # pixels of the view; a smaller region shows nothing


@dataclass(frozen=True, kw_only=True)
class OneViewSample:
    """A view of an image.

    Attributes:
        view: [3, H, W] float32, normalised per channel.
        boxes: [R, 4] float32, cxcywh normalised by (W, H); R may be 0.
        crops: [R, 3, s, s] float32, the pixels of the regions with changed colours, normalised like the view.
    """

    view: Tensor
    boxes: Tensor
    crops: Tensor


class OneViewTransform:
    """Image and proposals -> :class:`OneViewSample`.

    Args:
        crop_size: s, side of the crops in pixels.
        mean, std: per channel, as the backbone expects them.
    """

    def __init__(self, *, crop_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.crop_size = crop_size
        self.normalise = Normalisation(mean, std)

    def cut(self, picture: Image.Image, boxes: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Cut out the boxes [R, 4] (xyxy in pixels of the picture) and change their colours: [R, 3, s, s]."""
        pixels = np.array(picture)
        crops = np.empty((len(boxes), self.crop_size, self.crop_size, 3), dtype=np.uint8)
        for crop, box in zip(crops, boxes, strict=True):
            crop[:] = resample(pixels, box, (self.crop_size, self.crop_size))
        return self.normalise(change(as_planes(crops), [draw_photometric(rng) for _ in boxes]))

    def sample(self, view: Image.Image, boxes: np.ndarray, crops: Tensor) -> OneViewSample:
        """The sample of a view with its boxes [R, 4] (xyxy in pixels of the view) and crops."""
        normalised = box_xyxy_to_cxcywh(torch.from_numpy(boxes / np.tile(view.size, 2)))
        return OneViewSample(view=self.normalise(as_planes(np.array(view))), boxes=normalised.float(), crops=crops)


class PatchTransform(OneViewTransform):
    """Image -> :class:`OneViewSample` with random patches of the view.

    Args:
        scales: short sides of the view to draw from, in pixels; max_size: limit of its long side.
        num_regions: R.
        finish: crop_size, mean, std of :class:`OneViewTransform`.
    """

    def __init__(self, *, scales: Sequence[int], max_size: int, num_regions: int, **finish: Any) -> None:
        super().__init__(**finish)
        self.resize = RandomResize(scales, max_size)
        self.num_regions = num_regions

    def __call__(self, image: Image.Image, proposals: np.ndarray, rng: np.random.Generator) -> OneViewSample:
        """Draw a sample; all randomness comes from ``rng``. ``proposals`` are not used."""
        view, _ = self.resize(image, {"boxes": np.empty((0, 4), dtype=np.float32)}, rng)
        boxes = random_patches(rng, view.size, self.num_regions)
        return self.sample(view, boxes, self.cut(view, boxes, rng))


class ProposalTransform(OneViewTransform):
    """Image and proposals -> :class:`OneViewSample`, augmented like a detector's training images.

    The crops come from the original image, as in DETReg's code: they are not flipped, and not cut off at the edges of
    the view.

    Args:
        scales: short sides of the view to draw from, in pixels; max_size: limit of its long side.
        num_proposals: how many of the image's best proposals to use; those outside a cropped view are dropped.
        random: draw as many random boxes instead.
        finish: crop_size, mean, std of :class:`OneViewTransform`.
    """

    def __init__(
        self, *, scales: Sequence[int], max_size: int, num_proposals: int, random: bool, **finish: Any
    ) -> None:
        super().__init__(**finish)
        self.augment = detection_augmentation(scales, max_size)
        self.num_proposals = num_proposals
        self.random = random

    def __call__(self, image: Image.Image, proposals: np.ndarray, rng: np.random.Generator) -> OneViewSample:
        """Draw a sample; all randomness comes from ``rng``.

        Args:
            image: RGB.
            proposals: [N, 4] xyxy in pixels of the image, best first; N may be 0. Boxes that are not finite or have no
                area in the image are ignored.
        """
        if self.random:
            proposals = random_boxes(rng, np.array([0.0, 0.0, *image.size]), self.num_proposals)
        regions = usable_boxes(proposals, image.size)[0][: self.num_proposals]
        # The labels are the indices of the regions: they tell which boxes are still in the view.
        target = {"boxes": regions.astype(np.float32), "labels": np.arange(len(regions))}
        view, target = self.augment(image, target, rng)
        boxes, rows = usable_boxes(target["boxes"], view.size)
        return self.sample(view, boxes, self.cut(image, regions[target["labels"][rows]], rng))


def random_patches(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """``count`` boxes [count, 4] (xyxy) at whole pixels of a picture of (width, height).

    Sides are uniform from MIN_PATCH to those of the picture; positions are uniform among those where the box fits. In
    a picture narrower or lower than MIN_PATCH, patches are as wide or as high as the picture.
    """
    size = np.array(size)
    sides = rng.integers(np.minimum(MIN_PATCH, size), size, size=(count, 2), endpoint=True)
    corners = rng.integers(size - sides, endpoint=True)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float64)


def usable_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] (xyxy) clipped to a picture of (width, height), without unusable ones.

    Unusable are boxes with NaN or infinite coordinates, and those less than MIN_REGION wide or high in the picture.

    Returns:
        The boxes [M, 4] float64, and their row numbers [M] among the N.
    """
    rows = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    clipped = clip_boxes(boxes[rows].astype(np.float64), np.array([0.0, 0.0, *size]))
    large = ((clipped[:, 2:] - clipped[:, :2]) >= MIN_REGION).all(axis=1)
    return clipped[large], rows[large]


class OneViewDataset(PretextDataset):
    """``dataset[(epoch, index)]`` -> :class:`OneViewSample`; ``transform`` is a :class:`OneViewTransform`."""

    def __getitem__(self, key: tuple[int, int]) -> OneViewSample:
        image = load_image(self.images.path(key[1]), reading=self.reading)
        return self.transform(image, self.proposals_of(key[1]), self.rng(key))


@dataclass
class OneViewBatch:
    """B samples.

    Attributes:
        images: the views, padded.
        boxes: per image [R_i, 4] float32, cxcywh in [0, 1].
        crops: [sum of R_i, 3, s, s] float32, image after image.
    """

    images: NestedTensor
    boxes: list[Tensor]
    crops: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> OneViewBatch:
        """The same batch on ``device``."""
        return OneViewBatch(
            self.images.to(device, non_blocking=non_blocking),
            [boxes.to(device, non_blocking=non_blocking) for boxes in self.boxes],
            self.crops.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> OneViewBatch:
        """The same batch in page-locked memory; called by the data loader."""
        return OneViewBatch(
            self.images.pin_memory(), [boxes.pin_memory() for boxes in self.boxes], self.crops.pin_memory()
        )

    def first_crops(self) -> Tensor:
        """The index of each image's first crop, [B] int64 on the batch's device."""
        counts = torch.tensor([0, *map(len, self.boxes[:-1])])
        return counts.cumsum(0).to(self.crops.device, non_blocking=True)

    def __len__(self) -> int:
        return len(self.images)


def collate_one_view(samples: list[OneViewSample], pad_to: int = 1) -> OneViewBatch:
    """Samples -> batch, padded to multiples of ``pad_to``."""
    return OneViewBatch(
        images=nested_tensor_from_tensor_list([sample.view for sample in samples], pad_to),
        boxes=[sample.boxes for sample in samples],
        crops=torch.cat([sample.crops for sample in samples]),
    )
