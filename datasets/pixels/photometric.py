"""The photometric augmentation: colours and blur; no pixel moves.

Random draws and their application are separate, so that the changes of a picture can be inspected and repeated. The
adjustments are those of torchvision on Pillow images (except the hue, which Pillow rounds to 256 steps); the blur is
Pillow's.

On a CPU, compiled code applies them (``pixels.cpp``): a 128 x 128 crop takes 0.17 ms on one core of a Zen 3, where
Pillow takes 0.9 ms for the colours and 0.7 ms for the blur. Slower alternatives, measured: PyTorch step by step (0.5 ms
for the colours, 0.2 to 0.5 ms for the blur; calls and temporaries cost more than the arithmetic), all colours as one
Pillow table (0.5 ms), grouped convolutions or banded matrices for the blur (0.3 to 0.6 ms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.pixels import batch_photometric, compiled

JITTER_P, GREY_P, BLUR_P = 0.8, 0.2, 0.5
MAX_HUE_SHIFT = 0.1  # of the colour circle
FACTOR_RANGE = (0.6, 1.4)  # of brightness, contrast and saturation
SIGMA_RANGE = (0.1, 2.0)  # pixels
ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")
LEAST_TAP = 1 / 512  # smaller weights of the blur hardly change an 8-bit value


@dataclass(frozen=True)
class Photometric:
    """What to do with the colours of one picture, in this order.

    Attributes:
        jitter: (name, strength) of the adjustments, in order; may be empty. Brightness, contrast and saturation are
            factors (1 changes nothing), hue is a shift (0 changes nothing).
        grey: whether to remove the colours.
        sigma: of the Gaussian blur in pixels, or None for no blur.
    """

    jitter: tuple[tuple[str, float], ...]
    grey: bool
    sigma: float | None

    @property
    def steps(self) -> list[tuple[str, float]]:
        """(name, strength) of all changes of the colours; "grey" is a saturation of 0."""
        return [*self.jitter, *([("saturation", 0.0)] if self.grey else [])]

    @property
    def taps(self) -> np.ndarray:
        """Weights of the blur from the middle outwards, float32 [radius + 1]; [1] for none."""
        return np.ones(1, dtype=np.float32) if self.sigma is None else half_bell(self.sigma)


def draw_photometric(rng: np.random.Generator) -> Photometric:
    """Draw with the probabilities and ranges above; the adjustments are in random order."""
    *factors, hue, sigma, jitters, is_grey, blurs = rng.random(8).tolist()
    strengths = [_between(*FACTOR_RANGE, factor) for factor in factors] + [_between(-MAX_HUE_SHIFT, MAX_HUE_SHIFT, hue)]
    order = rng.permutation(len(ADJUSTMENTS)).tolist()
    return Photometric(
        jitter=tuple((ADJUSTMENTS[i], strengths[i]) for i in order) if jitters < JITTER_P else (),
        grey=is_grey < GREY_P,
        sigma=_between(*SIGMA_RANGE, sigma) if blurs < BLUR_P else None,
    )


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def change(pictures: Tensor, photometrics: Sequence[Photometric]) -> Tensor:
    """Change the colours of pictures of one size, each in its own way.

    Args:
        pictures: [N, 3, H, W] uint8, fastest in channels-last memory.
        photometrics: N of them.

    Returns:
        [N, 3, H, W] uint8, on the device of the pictures. A GPU changes all of them at once.
    """
    library = compiled.load() if pictures.device.type == "cpu" else None
    if library is None:
        return _in_pytorch(pictures, photometrics)
    out = torch.empty(pictures.shape, dtype=torch.uint8)
    rows = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    for picture, photometric, changed in zip(rows, photometrics, out.numpy(), strict=True):
        compiled.change(library, picture, photometric.steps, photometric.taps, changed)
    return out


def _in_pytorch(pictures: Tensor, photometrics: Sequence[Photometric]) -> Tensor:
    pixels = pictures.to(torch.float32, memory_format=torch.contiguous_format)
    pixels = batch_photometric.change_colours(pixels, [photometric.steps for photometric in photometrics])
    pixels = batch_photometric.blur(pixels, [torch.from_numpy(photometric.taps) for photometric in photometrics])
    return pixels.add_(0.5).to(torch.uint8)


class Normalisation:
    """Pictures [..., 3, H, W] uint8 -> float32, minus the mean and divided by the standard deviation per channel.

    Args:
        mean, std: of the three channels, for values in 0..1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1) * 255
        self.std = torch.tensor(std, dtype=torch.float32).view(3, 1, 1) * 255

    def __call__(self, pictures: Tensor) -> Tensor:
        """The normalised pictures, on the same device; contiguous."""
        mean, std = (values.to(pictures.device, non_blocking=True) for values in (self.mean, self.std))
        return pictures.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)


def half_bell(sigma: float) -> np.ndarray:
    """Weights of Pillow's Gaussian blur from the middle outwards: three boxes whose variances sum to sigma^2.

    A box of radius l + a, 0 <= a < 1, has 2 l + 1 pixels of full weight and one of weight a on either side (Gwosdek et
    al., "Theoretical foundations of Gaussian convolution by extended box filtering", 2011).
    """
    variance = sigma**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.array([part, *[1.0] * (2 * whole + 1), part])
    bell = np.convolve(np.convolve(box, box), box)
    half = bell[len(bell) // 2 :] / bell.sum()
    half = half[half >= LEAST_TAP]
    return (half / (2 * half.sum() - half[0])).astype(np.float32)
