"""Augmentations of an image and its boxes together, as in DETR (arXiv 2005.12872).

Every transform is called with (image, target, rng): a PIL image, a dictionary with ``boxes`` float32 [T, 4] xyxy in
pixels of the image and ``labels`` int64 [T] (numpy; other entries stay as they are), and the only source of
randomness. It returns a new image and a new target. :class:`ToTensor` comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F

from datasets.pixels.photometric import change, draw_photometric

Target = dict[str, Any]
Transform = Callable[[Image.Image, Target, np.random.Generator], tuple[Any, Target]]

# DETR's crop branch for short sides up to 800; scaled in proportion for other sizes.
_SHORT_SIDE_OF_DETR = 800
_RESIZE_BEFORE_CROP = (400, 500, 600)
_CROP_SIDES = (384, 600)

_SHRINK = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of strong_augmentation


class Compose:
    """One transform after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Image.Image, target: Target, rng: np.random.Generator) -> tuple[Any, Target]:
        for transform in self.transforms:
            image, target = transform(image, target, rng)
        return image, target


class RandomSelect:
    """The first transform with probability ``p``, else the second."""

    def __init__(self, first: Transform, second: Transform, p: float = 0.5) -> None:
        self.first = first
        self.second = second
        self.p = p

    def __call__(self, image: Image.Image, target: Target, rng: np.random.Generator) -> tuple[Any, Target]:
        chosen = self.first if rng.random() < self.p else self.second
        return chosen(image, target, rng)


class RandomHorizontalFlip:
    """Mirror left and right with probability ``p``."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image, target: Target, rng: np.random.Generator) -> tuple[Image.Image, Target]:
        if rng.random() >= self.p:
            return image, target
        boxes = target["boxes"][:, [2, 1, 0, 3]]
        boxes[:, [0, 2]] = image.width - boxes[:, [0, 2]]
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), target | {"boxes": boxes}


def resized_size(size: tuple[int, int], short_side: int, max_size: int | None) -> tuple[int, int]:
    """(width, height) after resizing to ``short_side``, or to less if the long side would exceed ``max_size``.

    As DETR's ``get_size_with_aspect_ratio``, with the same rounding, except that no side becomes 0 or exceeds
    ``max_size`` (in DETR it may, by a pixel, or by more for aspect ratios above 4).
    """
    short, long = min(size), max(size)
    if max_size is not None and long / short * short_side > max_size:
        short_side = max(1, round(max_size * short / long))
    long_side = int(short_side * long / short)
    if max_size is not None:
        long_side = min(long_side, max_size)
    width, height = size
    return (short_side, long_side) if width < height else (long_side, short_side)


class RandomResize:
    """Resize the short side to one of ``scales``, keeping the aspect ratio; bilinear, antialiased."""

    def __init__(self, scales: Sequence[int], max_size: int | None = None) -> None:
        self.scales = list(scales)
        self.max_size = max_size

    def __call__(self, image: Image.Image, target: Target, rng: np.random.Generator) -> tuple[Image.Image, Target]:
        short_side = self.scales[rng.integers(len(self.scales))]
        size = resized_size(image.size, short_side, self.max_size)
        ratio = np.divide(size, image.size, dtype=np.float32)
        boxes = target["boxes"] * np.tile(ratio, 2)
        return image.resize(size, Image.Resampling.BILINEAR), target | {"boxes": boxes}


class RandomSizeCrop:
    """Cut out a rectangle at a random place, with sides uniform in min_size..max_size (at most the image's own).

    Boxes are clipped to it; boxes outside are removed, with their labels.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, image: Image.Image, target: Target, rng: np.random.Generator) -> tuple[Image.Image, Target]:
        width, height = (self._side(side, rng) for side in image.size)
        left = int(rng.integers(image.width - width, endpoint=True))
        top = int(rng.integers(image.height - height, endpoint=True))
        boxes = target["boxes"] - np.array([left, top, left, top], dtype=np.float32)
        boxes = boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        cropped = image.crop((left, top, left + width, top + height))
        return cropped, target | {"boxes": boxes[inside], "labels": target["labels"][inside]}

    def _side(self, side: int, rng: np.random.Generator) -> int:
        return int(rng.integers(min(self.min_size, side), min(self.max_size, side), endpoint=True))


class RandomColours:
    """Colours, grey and blur as the views of pretraining get them (``datasets/pixels/photometric.py``)."""

    def __call__(self, image: Image.Image, target: Target, rng: np.random.Generator) -> tuple[Image.Image, Target]:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
        changed = change(pixels, [draw_photometric(rng)])[0]
        return Image.fromarray(changed.permute(1, 2, 0).numpy()), target


class ToTensor:
    """The image as float32 [3, H, W], normalised per channel; the target as tensors.

    Boxes become cxcywh normalised by (W, H), and ``size`` int64 [2] = (H, W) joins the target.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = list(mean)
        self.std = list(std)

    def __call__(
        self, image: Image.Image, target: Target, rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tensor = F.normalize(F.to_tensor(image), self.mean, self.std, inplace=True)
        corners = target["boxes"].reshape(-1, 2, 2) / np.array(image.size, dtype=np.float32)
        boxes = np.concatenate([corners.mean(axis=1), corners[:, 1] - corners[:, 0]], axis=1)
        target = target | {"boxes": boxes, "size": np.array([image.height, image.width])}
        return tensor, {name: torch.as_tensor(value) for name, value in target.items()}


def detection_augmentation(scales: Sequence[int], max_size: int) -> Compose:
    """DETR's training augmentation: flip, resize, and for half of the images a crop before the resize."""
    ratio = max(scales) / _SHORT_SIDE_OF_DETR
    before_crop = [max(1, round(side * ratio)) for side in _RESIZE_BEFORE_CROP]
    crop = [max(1, round(side * ratio)) for side in _CROP_SIDES]
    resize = RandomResize(scales, max_size)
    cropped = Compose([RandomResize(before_crop), RandomSizeCrop(*crop), resize])
    return Compose([RandomHorizontalFlip(), RandomSelect(resize, cropped)])


def strong_augmentation(scales: Sequence[int], max_size: int) -> Compose:
    """More than DETR's, for small data sets: scales from half to twice the usual ones, and changed colours.

    For half of the images the short side is one of ``scales`` times 0.5 to 1. For the others a piece of half of its
    usual size or more is cut out, and enlarged to one of ``scales``.
    """
    smaller = sorted({max(1, round(side * share)) for side in scales for share in _SHRINK})
    largest = max(scales)
    piece = Compose(
        [
            RandomResize(scales, max_size),
            RandomSizeCrop(max(1, largest // 2), largest),
            RandomResize(scales, max_size),
        ]
    )
    return Compose([RandomHorizontalFlip(), RandomSelect(RandomResize(smaller, max_size), piece), RandomColours()])


def no_augmentation(scales: Sequence[int], max_size: int) -> Compose:
    """The image at the largest of ``scales``, as in evaluation."""
    return Compose([RandomResize([max(scales)], max_size)])


AUGMENTATIONS = {"detr": detection_augmentation, "strong": strong_augmentation, "none": no_augmentation}
"""The choices of ``--augment``."""


def detection_train_transforms(
    scales: Sequence[int], max_size: int, mean: Sequence[float], std: Sequence[float], augment: str = "detr"
) -> Compose:
    """One of :data:`AUGMENTATIONS`, then conversion to tensors."""
    return Compose([*AUGMENTATIONS[augment](scales, max_size).transforms, ToTensor(mean, std)])


def detection_eval_transforms(size: int, max_size: int, mean: Sequence[float], std: Sequence[float]) -> Compose:
    """Resize to one short side and convert to tensors; nothing is random."""
    return Compose([RandomResize([size], max_size), ToTensor(mean, std)])
