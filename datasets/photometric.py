"""The photometric part of the augmentation: colours and sharpness, nothing that moves a pixel.

Drawing and applying are apart, so that what happened to a picture can be inspected and repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

JITTER_P, GREY_P, BLUR_P = 0.8, 0.2, 0.5
MAX_HUE_SHIFT = 0.1  # of the colour circle
FACTOR_RANGE = (0.6, 1.4)  # of brightness, contrast and saturation
SIGMA_RANGE = (0.1, 2.0)  # pixels

_ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


@dataclass(frozen=True)
class Photometric:
    """What to do with the colours of one picture, in this order.

    Attributes:
        jitter: (name, strength) of the adjustments, in the order of application; empty for none. Brightness, contrast
            and saturation are factors, 1 changes nothing; hue is a shift, 0 changes nothing.
        grey: whether the colours are lost.
        sigma: of the Gaussian blur in pixels, or None.
    """

    jitter: tuple[tuple[str, float], ...]
    grey: bool
    sigma: float | None


def draw_photometric(rng: np.random.Generator) -> Photometric:
    """Draw with the probabilities and ranges above; the adjustments come in random order."""
    strengths = {name: float(rng.uniform(*FACTOR_RANGE)) for name in ("brightness", "contrast", "saturation")}
    strengths["hue"] = float(rng.uniform(-MAX_HUE_SHIFT, MAX_HUE_SHIFT))
    order = rng.permutation(list(strengths)).tolist()
    sigma = float(rng.uniform(*SIGMA_RANGE))
    jitters, is_grey, blurs = rng.random(3) < (JITTER_P, GREY_P, BLUR_P)
    return Photometric(
        jitter=tuple((name, strengths[name]) for name in order) if jitters else (),
        grey=bool(is_grey),
        sigma=sigma if blurs else None,
    )


def apply_photometric(image: Image.Image, photometric: Photometric) -> Image.Image:
    """The RGB picture with its colours changed, of the same size."""
    for name, strength in photometric.jitter:
        image = _ADJUST[name](image, strength)
    if photometric.grey:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if photometric.sigma is not None:
        image = image.filter(ImageFilter.GaussianBlur(photometric.sigma))
    return image
