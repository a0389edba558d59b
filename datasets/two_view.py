"""The training samples of Siamese DETR: two overlapping views of an image and the regions they share.

An image and its proposals become a sample in the order of the paper (arXiv 2303.18144): geometry and regions
(:mod:`datasets.view_geometry`), cutting views and region crops, and then colours (:mod:`datasets.photometric`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.images import load_image
from datasets.photometric import apply_photometric, draw_photometric
from datasets.view_geometry import ViewGeometry, choose_regions, draw_geometry
from util.nested_tensor import nested_tensor_from_tensor_list


@dataclass(frozen=True, kw_only=True)
class TwoViewSample:
    """Two views of one image.

    Attributes:
        views: [2, 3, H, W] float32, normalised by channel; both of one size.
        boxes: [2, R, 4] float32, xyxy in pixels of each view. Box i of view 0 and box i of view 1 are the same
            rectangle of the image; box 0 is all that both views show.
        size: [2] int64, (H, W).
        crops: [2, R, 3, s, s] float32, the regions of each view, normalised likewise.
        geometry: where the views lie in the image.
    """

    views: Tensor
    boxes: Tensor
    size: Tensor
    crops: Tensor
    geometry: ViewGeometry


class TwoViewTransform:
    """Image and proposals -> :class:`TwoViewSample`.

    Args:
        scales: short sides of the resized image to draw from, in pixels; max_size: limit of its long side.
        num_regions: R, at least 1.
        crop_size: s, side of the region crops in pixels.
        view_iou: tau in (0, 1), least IoU of the two views.
        mean, std: of the channels, what the backbone wants.
    """

    def __init__(
        self,
        *,
        scales: Sequence[int],
        max_size: int,
        num_regions: int,
        crop_size: int,
        view_iou: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.scales = list(scales)
        self.max_size = max_size
        self.num_regions = num_regions
        self.crop_size = crop_size
        self.view_iou = view_iou
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Image.Image, proposals: np.ndarray, rng: np.random.Generator) -> TwoViewSample:
        """Draw a sample; ``rng`` alone decides which.

        Args:
            image: RGB.
            proposals: [N, 4] xyxy in pixels of the image, best first; N may be 0, and boxes that make no sense are
                ignored.
        """
        geometry = draw_geometry(rng, image.size, scales=self.scales, max_size=self.max_size, view_iou=self.view_iou)
        proposals = geometry.from_source(proposals.astype(np.float64))
        regions = choose_regions(rng, geometry.intersection, proposals, self.num_regions)
        boxes = geometry.to_views(regions)
        views = cut_views(image, geometry)
        crop_size = (self.crop_size, self.crop_size)
        crops = [cut(view, box, crop_size) for view, view_boxes in zip(views, boxes, strict=True) for box in view_boxes]
        return TwoViewSample(
            views=self._finish(views, rng),
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            size=torch.tensor(geometry.view_size).flip(0),
            crops=self._finish(crops, rng).unflatten(0, (2, self.num_regions)),
            geometry=geometry,
        )

    def _finish(self, pictures: Iterable[Image.Image], rng: np.random.Generator) -> Tensor:
        """N pictures of one size, each with colours changed in its own way -> [N, 3, H, W], normalised."""
        changed = [np.asarray(apply_photometric(picture, draw_photometric(rng))) for picture in pictures]
        values = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)
        return values.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(self.mean).div_(self.std)

    def picture(self, normalised: Tensor) -> Image.Image:
        """A view or crop [3, h, w] of a sample (less its padding) as a picture to look at."""
        values = (normalised * self.std + self.mean).mul(255).round().clamp(0, 255)
        return Image.fromarray(values.to(torch.uint8).permute(1, 2, 0).numpy())


def cut_views(image: Image.Image, geometry: ViewGeometry) -> list[Image.Image]:
    """The two views, straight from the source in one resampling each: what is small in it is not blurred twice."""
    if geometry.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return [cut(image, box, geometry.view_size) for box in geometry.source_crops()]


def cut(image: Image.Image, box: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The rectangle ``box`` [4] (xyxy in pixels, with fractions) of a picture at (width, height) ``size``.

    Bilinear and antialiased. Pixels just outside the rectangle may count at its edges, as when the whole picture
    is resized first and cropped after that.
    """
    return image.resize(size, Image.Resampling.BILINEAR, box=tuple(box.tolist()))


class ImageSource(Protocol):
    """What :class:`TwoViewDataset` asks of images, see :class:`datasets.image_folder.UnlabelledImages`."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> Path:
        """The file of image ``index``."""


class ProposalSource(Protocol):
    """What :class:`TwoViewDataset` asks of proposals, see :class:`datasets.proposals.ProposalStore`."""

    def boxes(self, index: int) -> np.ndarray:
        """[N, 4] float32, xyxy in pixels of the upright image ``index``, best first."""


class TwoViewDataset(Dataset):
    """``dataset[(epoch, index)]`` -> :class:`TwoViewSample`, a function of the seed, the epoch and the index alone.

    Args:
        images: where the files are.
        proposals: regions of interest of each image, or None for random boxes in the intersection of the views.
        transform: makes the sample.
        seed: of all randomness.

    Raises (on reading a sample):
        DataError: an image that cannot be read; the message names the file.
    """

    def __init__(
        self, images: ImageSource, proposals: ProposalSource | None, transform: TwoViewTransform, seed: int
    ) -> None:
        self.images = images
        self.proposals = proposals
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> TwoViewSample:
        epoch, index = key
        image = load_image(self.images.path(index))
        # Without any proposal the transform draws random boxes.
        boxes = np.empty((0, 4), dtype=np.float32) if self.proposals is None else self.proposals.boxes(index)
        return self.transform(image, boxes, np.random.default_rng((self.seed, epoch, index)))


@dataclass
class TwoViewBatch:
    """Samples padded on the right and at the bottom to one size.

    Attributes:
        views: [B, 2, 3, H, W] float32, zero where padded.
        mask: [B, 2, H, W] bool, True at padded positions.
        boxes: [B, 2, R, 4] float32, xyxy in pixels of each view.
        size: [B, 2] int64, (height, width) of the views without padding.
        crops: [B, 2, R, 3, s, s] float32.
    """

    views: Tensor
    mask: Tensor
    boxes: Tensor
    size: Tensor
    crops: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TwoViewBatch:
        """The same batch on ``device``."""
        return TwoViewBatch(**{name: value.to(device, non_blocking=non_blocking) for name, value in vars(self).items()})

    def pin_memory(self) -> TwoViewBatch:
        """The same batch in page-locked memory; called by the data loader."""
        return TwoViewBatch(**{name: value.pin_memory() for name, value in vars(self).items()})

    def __len__(self) -> int:
        return len(self.views)


def collate_two_view(samples: list[TwoViewSample]) -> TwoViewBatch:
    """Samples -> padded batch."""
    # The two views of a sample have one size: padded together, as one image of six channels.
    padded = nested_tensor_from_tensor_list([sample.views.flatten(0, 1) for sample in samples])
    return TwoViewBatch(
        views=padded.tensors.unflatten(1, (2, 3)),
        mask=padded.mask.unsqueeze(1).repeat(1, 2, 1, 1),
        boxes=torch.stack([sample.boxes for sample in samples]),
        size=torch.stack([sample.size for sample in samples]),
        crops=torch.stack([sample.crops for sample in samples]),
    )
