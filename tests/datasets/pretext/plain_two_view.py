"""The pixels of a two-view sample in plain code, picture by picture with Pillow and torchvision.

The reference for :meth:`datasets.pretext.two_view.TwoViewTransform.render`: for one plan, both must agree.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import functional as F

from datasets.pixels.photometric import Photometric
from datasets.pretext.two_view import ViewPlan

ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def render_plainly(
    image: Image.Image, plan: ViewPlan, crop_size: int, mean: list[float], std: list[float]
) -> tuple[Tensor, Tensor]:
    """Views [2, 3, H, W] and crops [2, R, 3, s, s] as planned, float32, normalised."""
    views = cut_plainly(image, plan)
    return finish_plainly(views, cut_crops_plainly(views, plan, crop_size), plan, mean, std)


def cut_plainly(image: Image.Image, plan: ViewPlan) -> list[Image.Image]:
    """The two views: mirror the source, then one resampling each."""
    geometry = plan.geometry
    crops = geometry.crops / np.tile(geometry.scale, 2)
    if geometry.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return [cut(image, np.clip(box, 0, np.tile(image.size, 2)), geometry.view_size) for box in crops]


def cut_crops_plainly(views: list[Image.Image], plan: ViewPlan, crop_size: int) -> list[Image.Image]:
    """The regions of the first view, then those of the second."""
    return [cut(view, box, (crop_size,) * 2) for view, boxes in zip(views, plan.boxes, strict=True) for box in boxes]


def cut(image: Image.Image, box: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The rectangle ``box`` [4] at (width, height) ``size``, bilinear and antialiased."""
    return image.resize(size, Image.Resampling.BILINEAR, box=tuple(box.tolist()))


def change_plainly(image: Image.Image, photometric: Photometric) -> Image.Image:
    """The photometric part, by functions of torchvision and Pillow."""
    for name, strength in photometric.jitter:
        image = ADJUST[name](image, strength)
    if photometric.grey:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if photometric.sigma is not None:
        image = image.filter(ImageFilter.GaussianBlur(photometric.sigma))
    return image


def finish_plainly(
    views: list[Image.Image], crops: list[Image.Image], plan: ViewPlan, mean: list[float], std: list[float]
) -> tuple[Tensor, Tensor]:
    """Pictures with their colours changed, as normalised tensors."""
    tensors = [
        F.normalize(F.to_tensor(change_plainly(picture, photometric)), mean, std)
        for picture, photometric in zip(views + crops, plan.photometrics, strict=True)
    ]
    return torch.stack(tensors[:2]), torch.stack(tensors[2:]).unflatten(0, plan.boxes.shape[:2])
