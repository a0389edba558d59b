"""Random fields and colours that textures are made of. All arrays are float32."""

from __future__ import annotations

import numpy as np
from PIL import Image

Array = np.ndarray


def fractal_noise(rng: np.random.Generator, shape: tuple[int, int], cells: float, octaves: int = 4) -> Array:
    """Smooth noise [h, w] of several scales, about zero mean and within (-1, 1).

    Args:
        rng: source of the random numbers.
        shape: (h, w) of the field.
        cells: bumps of the coarsest octave along the longer side; each further octave doubles them at half the height.
        octaves: number of scales.
    """
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        per_pixel = cells * 2**octave / max(shape)
        if per_pixel > 1:
            break
        grid = [max(2, round(side * per_pixel) + 1) for side in shape]
        coarse = Image.fromarray(rng.uniform(-1, 1, grid).astype(np.float32))
        fine = coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        total += np.asarray(fine) * 0.5 ** (octave + 1)
    return total


def draw_colour(rng: np.random.Generator, vivid: float = 0.9) -> Array:
    """A colour [3] of linear light: any hue, from grey to a saturation of ``vivid``, from dark to bright.

    Things of all categories and of none draw from this one distribution, so that colour tells nothing.
    """
    hue, saturation, value = rng.uniform(0, 6), vivid * rng.beta(1.2, 1.8), rng.uniform(0.25, 0.95)
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    srgb = value * (1 - saturation * (1 - ramp))
    return (srgb**2.2).astype(np.float32)


def second_colour(rng: np.random.Generator, first: Array, vivid: float = 0.9) -> Array:
    """A colour [3] that is told apart from ``first`` by its brightness."""
    colour = draw_colour(rng, vivid)
    wanted = first.mean() * 3 + 0.05 if first.mean() < 0.2 else first.mean() * 0.3
    return np.clip(colour * wanted / max(colour.mean(), 0.02), 0, 0.9).astype(np.float32)


def mix(first: Array, second: Array, share: Array) -> Array:
    """Colours [..., 3] (or one colour [3]) blended by ``share`` [h, w]: 0 gives the first, 1 the second."""
    return first + (second - first) * share[..., None]


def stripes(phase: Array, sharpness: float = 4.0) -> Array:
    """A 0/1 pattern with soft edges that repeats whenever ``phase`` grows by 1."""
    return np.clip(0.5 + sharpness * np.sin(2 * np.pi * phase), 0, 1)


def ridge(distance: Array, width: float) -> Array:
    """1 where ``distance`` is 0, falling smoothly to 0 around ``width``."""
    return np.exp(-((distance / width) ** 2))
