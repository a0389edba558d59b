"""The training samples of Siamese DETR: two overlapping views of an image and the regions they share.

The steps are those of the paper (arXiv 2303.18144), in its order: draw the geometry and the regions
(:mod:`datasets.pretext.view_geometry`), cut out the views and the region crops, change their colours
(:mod:`datasets.pixels.photometric`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from datasets.images import load_reduced
from datasets.pixels.photometric import Normalisation, Photometric, change, draw_photometric
from datasets.pixels.resample import resample
from datasets.pretext.samples import PretextDataset
from datasets.pretext.view_geometry import (
    ViewGeometry,
    choose_differing_regions,
    choose_regions,
    draw_geometry,
    greatest_zoom,
)
from util.nested_tensor import up_to_multiple


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """Everything random about a sample.

    Attributes:
        geometry: where the views lie in the image.
        boxes: [2, R, 4] float64, the regions, xyxy in pixels of each view.
        photometrics: 2 + 2R: of the two views, then of the crops of view 0, then of the crops of view 1.
    """

    geometry: ViewGeometry
    boxes: np.ndarray
    photometrics: list[Photometric]


@dataclass(frozen=True, kw_only=True)
class TwoViewSample:
    """Two views of one image.

    Attributes:
        views: [2, 3, H, W] uint8, both of one size.
        boxes: [2, R, 4] float32, xyxy in pixels of each view. Box i of view 0 and box i of view 1 are the same
            rectangle of the image; box 0 is the intersection of the views.
        size: [2] int64, (H, W).
        crops: [2, R, 3, s, s] uint8, the regions of each view.
        geometry: where the views lie in the image.
        normalise: still to be applied to views and crops, on their device.
        photometrics: still to be applied before that, see :class:`ViewPlan`; empty if the colours are already changed.
    """

    views: Tensor
    boxes: Tensor
    size: Tensor
    crops: Tensor
    geometry: ViewGeometry
    normalise: Normalisation
    photometrics: list[Photometric] = field(default_factory=list)


class TwoViewTransform:
    """Image and proposals -> :class:`TwoViewSample`.

    Args:
        scales: short sides of the resized image to draw from, in pixels; max_size: limit of its long side.
        num_regions: R, at least 1.
        crop_size: s, side of the region crops in pixels.
        view_iou: tau in (0, 1), the least IoU of the two views.
        region_nms: in (0, 1]; a region with at least this IoU with a better one is not chosen. None: no such limit.
        mean, std: per channel, as the backbone expects them.
        change_later: change the colours not here but in the batch, on its device.
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
        region_nms: float | None = None,
        change_later: bool = False,
    ) -> None:
        self.scales = list(scales)
        self.max_size = max_size
        self.num_regions = num_regions
        self.crop_size = crop_size
        self.view_iou = view_iou
        self.region_nms = region_nms
        self.normalise = Normalisation(mean, std)
        self.change_later = change_later

    @property
    def useful_short_side(self) -> int:
        """Short side in pixels from which on a larger image adds no detail to the views."""
        return math.ceil(max(self.scales) * greatest_zoom(self.view_iou))

    def __call__(self, image: Image.Image, proposals: np.ndarray, rng: np.random.Generator) -> TwoViewSample:
        """Draw a sample; all randomness comes from ``rng``.

        Args:
            image: RGB.
            proposals: [N, 4] xyxy in pixels of the image, best first; N may be 0. Boxes that are not finite or have no
                area in the image are ignored.
        """
        return self.render(image, self.plan(image.size, proposals, rng))

    def plan(self, source_size: tuple[int, int], proposals: np.ndarray, rng: np.random.Generator) -> ViewPlan:
        """Draw everything random about a sample of an image of (width, height) ``source_size``."""
        geometry = draw_geometry(rng, source_size, scales=self.scales, max_size=self.max_size, view_iou=self.view_iou)
        proposals = geometry.from_source(proposals.astype(np.float64))
        regions = self.choose(rng, geometry.intersection, proposals)
        photometrics = [draw_photometric(rng) for _ in range(2 + 2 * self.num_regions)]
        return ViewPlan(geometry=geometry, boxes=geometry.to_views(regions), photometrics=photometrics)

    def choose(self, rng: np.random.Generator, intersection: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        """The regions [R, 4] in image pixels; see :func:`choose_regions`."""
        if self.region_nms is None:
            return choose_regions(rng, intersection, proposals, self.num_regions)
        return choose_differing_regions(rng, intersection, proposals, self.num_regions, self.region_nms)

    def render(self, image: Image.Image, plan: ViewPlan) -> TwoViewSample:
        """The sample that ``plan`` describes; nothing is random here. ``image`` may be smaller than planned."""
        pictures = cut_views(image, plan.geometry)
        views, crops = as_planes(pictures), as_planes(cut_crops(pictures, plan.boxes, self.crop_size))
        if not self.change_later:
            views, crops = change_colours(views, crops, plan.photometrics)
        return TwoViewSample(
            views=views,
            boxes=torch.from_numpy(plan.boxes.astype(np.float32)),
            size=torch.tensor(plan.geometry.view_size).flip(0),
            crops=crops,
            geometry=plan.geometry,
            normalise=self.normalise,
            photometrics=plan.photometrics if self.change_later else [],
        )


def change_colours(views: Tensor, crops: Tensor, photometrics: Sequence[Photometric]) -> tuple[Tensor, Tensor]:
    """Views [2, 3, H, W] and crops [2, R, 3, s, s], uint8, changed as :class:`ViewPlan` says."""
    changed = change(crops.flatten(0, 1), photometrics[2:])
    return change(views, photometrics[:2]), changed.unflatten(0, crops.shape[:2])


def cut_views(image: Image.Image, geometry: ViewGeometry) -> np.ndarray:
    """The two views [2, H, W, 3] uint8, each cut from the source in one resampling, so that nothing is blurred twice.

    ``image`` may have 1/2, 1/4 or 1/8 of the source's size, rounded up.
    """
    boxes = geometry.source_crops() / round(max(geometry.source_size) / max(image.size))
    if geometry.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
    pixels = np.asarray(image)
    return np.stack([resample(pixels, box, geometry.view_size) for box in boxes])


def cut_crops(views: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """The regions ``boxes`` [2, R, 4] of views [2, H, W, 3], each resized: [2, R, side, side, 3] uint8."""
    crops = np.empty((*boxes.shape[:2], side, side, 3), dtype=np.uint8)
    for view, of_view, out in zip(views, boxes, crops, strict=True):
        for index, box in enumerate(of_view):
            out[index] = resample(view, box, (side, side))
    return crops


def as_planes(pictures: np.ndarray) -> Tensor:
    """Pictures [..., H, W, 3] as a tensor [..., 3, H, W] that shares their memory."""
    return torch.from_numpy(pictures).movedim(-1, -3)


def as_picture(pixels: Tensor) -> Image.Image:
    """A view or crop [3, H, W] uint8 to look at."""
    return Image.fromarray(pixels.movedim(0, -1).numpy())


class TwoViewDataset(PretextDataset):
    """``dataset[(epoch, index)]`` -> :class:`TwoViewSample`; ``transform`` is a :class:`TwoViewTransform`."""

    def __getitem__(self, key: tuple[int, int]) -> TwoViewSample:
        image, size = load_reduced(self.images.path(key[1]), self.transform.useful_short_side, self.reading)
        return self.transform.render(image, self.plan(key, size))

    def plan(self, key: tuple[int, int], size: tuple[int, int]) -> ViewPlan:
        """The plan of sample ``key`` = (epoch, index), whose image has (width, height) ``size``."""
        return self.transform.plan(size, self.proposals_of(key[1]), self.rng(key))


@dataclass
class TwoViewBatch:
    """Samples padded on the right and at the bottom to one size.

    Attributes:
        views: [B, 2, 3, H, W] float32, normalised per channel, zero where padded.
        mask: [B, 2, H, W] bool, True at padded positions.
        boxes: [B, 2, R, 4] float32, xyxy in pixels of each view.
        size: [B, 2] int64, (height, width) of the views without padding.
        crops: [B, 2, R, 3, s, s] float32, normalised like the views.
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
    """A batch as a worker sends it, with 8-bit pictures. (Float pictures, four times as large, would cost a worker a
    third of its time.)

    Attributes:
        batch: the batch, with views and crops still uint8.
        normalise: to be applied to them.
        photometrics: to be applied before that, per sample; or empty.
    """

    batch: TwoViewBatch
    normalise: Normalisation
    photometrics: list[list[Photometric]]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TwoViewBatch:
        """The finished batch on ``device``."""
        batch = self.batch.to(device, non_blocking)
        if self.photometrics:
            batch = self._change_colours(batch)
        views = self.normalise(batch.views).masked_fill_(batch.mask[:, :, None], 0.0)
        return replace(batch, views=views, crops=self.normalise(batch.crops))

    def _change_colours(self, batch: TwoViewBatch) -> TwoViewBatch:
        """Change the crops of all samples at once, but the views, which differ in size, sample by sample."""
        views = torch.zeros_like(batch.views)
        for index, (of_one, (height, width)) in enumerate(
            zip(self.photometrics, self.batch.size.tolist(), strict=True)
        ):
            views[index, ..., :height, :width] = change(batch.views[index, ..., :height, :width], of_one[:2])
        of_crops = [photometric for of_one in self.photometrics for photometric in of_one[2:]]
        return replace(batch, views=views, crops=change(batch.crops.flatten(0, 2), of_crops).view(batch.crops.shape))

    def pin_memory(self) -> UnfinishedBatch:
        """The same batch in page-locked memory; called by the data loader."""
        return replace(self, batch=self.batch.pin_memory())

    def __len__(self) -> int:
        return len(self.batch)


def collate_two_view(samples: list[TwoViewSample], pad_to: int = 1) -> UnfinishedBatch:
    """Samples -> batch, padded to multiples of ``pad_to``."""
    size = torch.stack([sample.size for sample in samples])
    height, width = (up_to_multiple(side, pad_to) for side in size.amax(dim=0).tolist())
    views = zeros_to_send((len(samples), 2, 3, height, width))
    mask = torch.ones(len(samples), 2, height, width, dtype=torch.bool)
    crops = zeros_to_send((len(samples), *samples[0].crops.shape))
    for index, (sample, (h, w)) in enumerate(zip(samples, size.tolist(), strict=True)):
        views[index, ..., :h, :w] = sample.views
        mask[index, ..., :h, :w] = False
        crops[index] = sample.crops
    boxes = torch.stack([sample.boxes for sample in samples])
    photometrics = [sample.photometrics for sample in samples if sample.photometrics]
    return UnfinishedBatch(
        TwoViewBatch(views=views, mask=mask, boxes=boxes, size=size, crops=crops), samples[0].normalise, photometrics
    )


def zeros_to_send(shape: Sequence[int]) -> Tensor:
    """A uint8 tensor of zeros. In a worker of a data loader it lies in shared memory, so sending it makes no copy."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as default_collate; zeros when new
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
