"""The training samples of Siamese DETR: two overlapping views of an image and the regions they share.

An image and its proposals become a sample in the order of the paper (arXiv 2303.18144): geometry and regions
(:mod:`datasets.view_geometry`), cutting views and region crops, and then colours (:mod:`datasets.photometric`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from datasets.images import load_reduced
from datasets.photometric import Photometric, change_and_normalise, draw_photometric
from datasets.pretext_samples import PretextDataset
from datasets.resample import resample
from datasets.view_geometry import ViewGeometry, choose_regions, draw_geometry, greatest_zoom


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """All that is drawn for a sample.

    Attributes:
        geometry: where the views lie in the image.
        boxes: [2, R, 4] float64, the regions, xyxy in pixels of each view.
        photometrics: 2 + 2R, of the views and then of the crops, those of the first view first.
    """

    geometry: ViewGeometry
    boxes: np.ndarray
    photometrics: list[Photometric]


@dataclass(frozen=True)
class Finish:
    """The last part of making a sample: colours, blur and normalisation.

    Attributes:
        photometrics: as :class:`ViewPlan` has them.
        mean, std: [3] float32, of the channels.
    """

    photometrics: list[Photometric]
    mean: Tensor
    std: Tensor

    def __call__(self, views: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Views [2, 3, H, W] and crops [2, R, 3, s, s], uint8 -> float32."""
        changed = change_and_normalise(crops.flatten(0, 1), self.photometrics[2:], self.mean, self.std)
        return self.views(views), changed.unflatten(0, crops.shape[:2])

    def views(self, views: Tensor) -> Tensor:
        """Views [2, 3, H, W] alone."""
        return change_and_normalise(views, self.photometrics[:2], self.mean, self.std)


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
        finish: what is still to be done with views and crops, which are uint8 then; None if nothing is.
    """

    views: Tensor
    boxes: Tensor
    size: Tensor
    crops: Tensor
    geometry: ViewGeometry
    finish: Finish | None = None


class TwoViewTransform:
    """Image and proposals -> :class:`TwoViewSample`.

    Args:
        scales: short sides of the resized image to draw from, in pixels; max_size: limit of its long side.
        num_regions: R, at least 1.
        crop_size: s, side of the region crops in pixels.
        view_iou: tau in (0, 1), least IoU of the two views.
        mean, std: of the channels, what the backbone wants.
        finish_later: leave the photometric part and the normalisation to the batch, when it comes to its device.
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
        finish_later: bool = False,
    ) -> None:
        self.scales = list(scales)
        self.max_size = max_size
        self.num_regions = num_regions
        self.crop_size = crop_size
        self.view_iou = view_iou
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.finish_later = finish_later

    @property
    def useful_short_side(self) -> int:
        """Short side in pixels beyond which an image has no detail that a view could show."""
        return math.ceil(max(self.scales) * greatest_zoom(self.view_iou))

    def __call__(self, image: Image.Image, proposals: np.ndarray, rng: np.random.Generator) -> TwoViewSample:
        """Draw a sample; ``rng`` alone decides which.

        Args:
            image: RGB.
            proposals: [N, 4] xyxy in pixels of the image, best first; N may be 0, and boxes that make no sense are
                ignored.
        """
        return self.render(image, self.plan(image.size, proposals, rng))

    def plan(self, source_size: tuple[int, int], proposals: np.ndarray, rng: np.random.Generator) -> ViewPlan:
        """Everything random about a sample of an image of (width, height) ``source_size``."""
        geometry = draw_geometry(rng, source_size, scales=self.scales, max_size=self.max_size, view_iou=self.view_iou)
        proposals = geometry.from_source(proposals.astype(np.float64))
        regions = choose_regions(rng, geometry.intersection, proposals, self.num_regions)
        photometrics = [draw_photometric(rng) for _ in range(2 + 2 * self.num_regions)]
        return ViewPlan(geometry=geometry, boxes=geometry.to_views(regions), photometrics=photometrics)

    def render(self, image: Image.Image, plan: ViewPlan) -> TwoViewSample:
        """The sample as planned; nothing is random here. ``image`` may be read at a fraction of the planned size."""
        pictures = cut_views(image, plan.geometry)
        views, crops = as_planes(pictures), as_planes(cut_crops(pictures, plan.boxes, self.crop_size))
        finish = self.finish(plan)
        if not self.finish_later:
            views, crops = finish(views, crops)
        return TwoViewSample(
            views=views,
            boxes=torch.from_numpy(plan.boxes.astype(np.float32)),
            size=torch.tensor(plan.geometry.view_size).flip(0),
            crops=crops,
            geometry=plan.geometry,
            finish=finish if self.finish_later else None,
        )

    def finish(self, plan: ViewPlan) -> Finish:
        """The photometric part as planned."""
        return Finish(plan.photometrics, self.mean.flatten(), self.std.flatten())

    def picture(self, normalised: Tensor) -> Image.Image:
        """A view or crop [3, h, w] of a sample (less its padding) as a picture to look at."""
        values = (normalised * self.std + self.mean).mul(255).round().clamp(0, 255)
        return Image.fromarray(values.to(torch.uint8).permute(1, 2, 0).numpy())


def cut_views(image: Image.Image, geometry: ViewGeometry) -> np.ndarray:
    """The two views [2, H, W, 3] uint8, straight from the source in one resampling each: what is small in it is not
    blurred twice.

    ``image`` may be at half, a quarter, ... of the source's size, its last row and column rounded up.
    """
    boxes = geometry.source_crops() / round(max(geometry.source_size) / max(image.size))
    if geometry.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
    pixels = np.asarray(image)
    return np.stack([resample(pixels, box, geometry.view_size) for box in boxes])


def cut_crops(views: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """The regions ``boxes`` [2, R, 4] of views [2, H, W, 3], each at side x side: [2, R, side, side, 3] uint8."""
    crops = np.empty((*boxes.shape[:2], side, side, 3), dtype=np.uint8)
    for view, of_view, out in zip(views, boxes, crops, strict=True):
        for index, box in enumerate(of_view):
            out[index] = resample(view, box, (side, side))
    return crops


def as_planes(pictures: np.ndarray) -> Tensor:
    """Pictures [..., H, W, 3] as a tensor [..., 3, H, W] in the same memory."""
    return torch.from_numpy(pictures).movedim(-1, -3)


class TwoViewDataset(PretextDataset):
    """``dataset[(epoch, index)]`` -> :class:`TwoViewSample`; ``transform`` is a :class:`TwoViewTransform`."""

    def __getitem__(self, key: tuple[int, int]) -> TwoViewSample:
        image, size = load_reduced(self.images.path(key[1]), self.transform.useful_short_side)
        return self.transform.render(image, self.plan(key, size))

    def plan(self, key: tuple[int, int], size: tuple[int, int]) -> ViewPlan:
        """What is drawn for sample ``key`` = (epoch, index), whose image has (width, height) ``size``."""
        return self.transform.plan(size, self.proposals_of(key[1]), self.rng(key))


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


@dataclass
class UnfinishedBatch:
    """A batch that is finished by the device it comes to.

    Attributes:
        batch: as it will be, but for views and crops, which are uint8.
        finishes: what is to be done with them, for each sample.
    """

    batch: TwoViewBatch
    finishes: list[Finish]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TwoViewBatch:
        """The finished batch on ``device``; a GPU changes the crops of all samples at once."""
        batch = self.batch.to(device, non_blocking)
        views = torch.zeros_like(batch.views, dtype=torch.float32, memory_format=torch.contiguous_format)
        for index, (finish, (height, width)) in enumerate(zip(self.finishes, self.batch.size.tolist(), strict=True)):
            views[index, ..., :height, :width] = finish.views(batch.views[index, ..., :height, :width])
        photometrics = [photometric for finish in self.finishes for photometric in finish.photometrics[2:]]
        finish = self.finishes[0]
        crops = change_and_normalise(batch.crops.flatten(0, 2), photometrics, finish.mean, finish.std)
        return replace(batch, views=views, crops=crops.view(batch.crops.shape))

    def pin_memory(self) -> UnfinishedBatch:
        """The same batch in page-locked memory; called by the data loader."""
        return UnfinishedBatch(self.batch.pin_memory(), self.finishes)

    def __len__(self) -> int:
        return len(self.finishes)


def collate_two_view(samples: list[TwoViewSample]) -> TwoViewBatch | UnfinishedBatch:
    """Samples -> padded batch, finished if they are."""
    size = torch.stack([sample.size for sample in samples])
    height, width = size.amax(dim=0).tolist()
    views = zeros_to_send((len(samples), 2, 3, height, width), samples[0].views.dtype)
    mask = torch.ones(len(samples), 2, height, width, dtype=torch.bool)
    crops = zeros_to_send((len(samples), *samples[0].crops.shape), samples[0].crops.dtype)
    for index, (sample, (h, w)) in enumerate(zip(samples, size.tolist(), strict=True)):
        views[index, ..., :h, :w] = sample.views
        mask[index, ..., :h, :w] = False
        crops[index] = sample.crops
    boxes = torch.stack([sample.boxes for sample in samples])
    batch = TwoViewBatch(views=views, mask=mask, boxes=boxes, size=size, crops=crops)
    finishes = [sample.finish for sample in samples if sample.finish is not None]
    return UnfinishedBatch(batch, finishes) if finishes else batch


def zeros_to_send(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros; in a worker of a data loader in shared memory, so that no copy is made when they are sent."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as default_collate; zeros when new
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
