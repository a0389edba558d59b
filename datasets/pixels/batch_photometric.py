"""Colours and blur in PyTorch, for many pictures at once: on a GPU, or if no C++ compiler is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2

Steps = Sequence[tuple[str, float]]


def change_colours(pixels: Tensor, steps: Sequence[Steps]) -> Tensor:
    """Change the colours of N pictures of one size, each in its own way.

    Args:
        pixels: [N, 3, H, W] float32, whole numbers in 0..255; not modified.
        steps: per picture, (name in _CHANGES, strength) in order.

    Returns:
        [N, 3, H, W], whole numbers again.
    """
    for position in range(max(map(len, steps))):
        changed = pixels.clone()
        for name, change in _CHANGES.items():
            strengths = {i: s[position][1] for i, s in enumerate(steps) if position < len(s) and s[position][0] == name}
            if strengths:
                chosen = torch.tensor(list(strengths), device=pixels.device)
                factors = torch.tensor(list(strengths.values()), device=pixels.device)
                changed[chosen] = change(pixels[chosen], factors.view(-1, 1, 1, 1))
        pixels = changed
    return pixels


def blur(pixels: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """Blur pictures [N, 3, H, W] vertically and horizontally; the pixels at the border are repeated beyond it.

    Args:
        taps: per picture, weights [R] from the middle outwards.
    """
    radius = max(map(len, taps)) - 1
    kernels = torch.stack([F.pad(torch.cat([half.flip(0), half[1:]]), (radius + 1 - len(half),) * 2) for half in taps])
    kernels = kernels.to(pixels.device).repeat_interleave(3, dim=0)[:, None]  # [3N, 1, 2 radius + 1]
    planes = F.pad(pixels, (radius,) * 4, mode="replicate").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels[..., None], groups=len(kernels))
    return F.conv2d(planes, kernels[..., None, :], groups=len(kernels)).view(pixels.shape)


def _brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    return _whole(pixels * factors)


def _contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to the picture's mean luma, which is rounded to a whole number."""
    grey = _luma(pixels.double().mean(dim=(2, 3), keepdim=True)).add(0.5).floor().float()
    return _whole(pixels * factors + grey * (1 - factors))


def _saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to the luma of each pixel, which is rounded to a whole number."""
    return _whole(pixels * factors + _whole(_luma(pixels) + 0.5) * (1 - factors))


def _hue(pixels: Tensor, shifts: Tensor) -> Tensor:
    """Rotate the hue of HSV by a fraction s of the colour circle, at most 1/6.

    Let m and M be the least and the greatest channel of a pixel; they do not change. Around the circle each channel is
    a trapezoid between m and M. Red falls where green > blue and rises where blue > green; its slopes, continued
    beyond m and M, are M + m + red - green - blue (for example M + (M - green) if red is M and blue is m). A rotation
    by s moves them by 6 s (M - m). So the new red is

        M + m + red - green - blue - 6 s (M - m) sign(green - blue),   clipped to m..M,

    and likewise green and blue, without angles, divisions or cases.
    """
    high, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    slopes = high + low - pixels.sum(1, keepdim=True) + 2 * pixels
    falls = (pixels.roll(-1, dims=1) - pixels.roll(-2, dims=1)).sign()
    return _whole(torch.clamp(slopes - (high - low) * (6 * shifts) * falls, low, high) + 0.5)


def _luma(pixels: Tensor) -> Tensor:
    """[N, 3, ...] -> [N, 1, ...]."""
    red, green, blue = pixels.split(1, dim=1)
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def _whole(pixels: Tensor) -> Tensor:
    """Clip to 0..255 and round down, as Pillow does after each adjustment."""
    return pixels.clamp(0, 255).floor()


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
