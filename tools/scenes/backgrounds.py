"""The ground that a scene lies on: stone, boards, tiles, cloth or grass, seen under a random angle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tools.scenes.noise import Array, draw_colour, fractal_noise, mix, ridge, second_colour

VIVID = 0.45  # grounds are duller than the things on them


def ground_coordinates(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, Array]:
    """(x, y) [h, w] on a plane that is turned, scaled and tilted away; the picture spans about 4 units."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32) / max(shape) * 2 - 1
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(1.2, 3)
    far = 1 + rng.uniform(-0.3, 0.3) * columns + rng.uniform(-0.3, 0.3) * rows
    x = zoom * (np.cos(angle) * columns - np.sin(angle) * rows) / far
    y = zoom * (np.sin(angle) * columns + np.cos(angle) * rows) / far
    return x.astype(np.float32), y.astype(np.float32)


def stone(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Concrete, sand or earth."""
    coarse, fine = fractal_noise(rng, x.shape, 4, 6), fractal_noise(rng, x.shape, 60, 2)
    first = draw_colour(rng, VIVID)
    return mix(first, second_colour(rng, first, VIVID), np.clip(0.3 + coarse * 0.9, 0, 0.8)), 0.6 * coarse + 0.25 * fine


def boards(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A wooden floor."""
    row = np.floor(y * 1.5 + 0.5)
    joint = ridge((y * 1.5) % 1 - 0.5, 0.03) + ridge((x * 0.4 + row * 0.37) % 1 - 0.5, 0.008)
    grain = np.sin(y * rng.uniform(30, 60) + 8 * fractal_noise(rng, x.shape, 5, 4) + row)
    tone = 0.85 + 0.1 * grain + 0.2 * np.sin(row * 12.9) + 0.4 * fractal_noise(rng, x.shape, 6)
    return draw_colour(rng, VIVID) * (tone * (1 - 0.7 * joint.clip(0, 1)))[..., None], 0.08 * grain - 0.5 * joint


def tiles(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Tiles, or bricks where the rows are shifted."""
    ratio, shift = rng.uniform(1, 2.2), rng.choice([0.0, 0.5])
    row = np.floor(y * 1.6 + 0.5)
    column = x * 1.6 / ratio + shift * row
    grout = np.maximum(ridge((y * 1.6) % 1 - 0.5, 0.06), ridge(column % 1 - 0.5, 0.06 / ratio))
    shade = 0.8 + 0.25 * np.sin(np.floor(column + 0.5) * 7.3 + row * 3.1)
    first = draw_colour(rng, VIVID)
    tile = first * (shade + 0.5 * fractal_noise(rng, x.shape, 8, 5))[..., None]
    return mix(tile, second_colour(rng, first, VIVID), grout), -0.8 * grout + 0.3 * fractal_noise(rng, x.shape, 20)


def cloth(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A woven, checked cloth with folds."""
    folds = fractal_noise(rng, x.shape, 3, 3)
    u, v = x + 0.15 * folds, y + 0.15 * folds
    check = (np.sin(u * rng.uniform(3, 9)) > rng.uniform(-0.5, 0.5)) * 0.5 + (np.sin(v * rng.uniform(3, 9)) > 0) * 0.5
    weave = np.sin(u * 50) * np.sin(v * 50)
    first = draw_colour(rng, VIVID)
    albedo = mix(first, second_colour(rng, first, VIVID), check * rng.uniform(0.2, 0.9))
    return albedo * (1 + 0.12 * weave)[..., None], 4 * folds + 0.08 * weave


def grass(x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Blades in all lengths: noise that is drawn out along one direction."""
    tall, wide = x.shape
    blades = sum(fractal_noise(rng, (tall, wide * 4), 160, 2)[:, shift : shift + wide] for shift in (0, 3 * wide))
    tufts = fractal_noise(rng, x.shape, 10, 4)
    bend = np.clip(np.arange(tall)[:, None] + (tufts * 12).astype(int), 0, tall - 1)
    blades = np.take_along_axis(blades, bend, 0)
    first = draw_colour(rng, VIVID)
    albedo = mix(first * 0.5, np.clip(first * 1.4 + 0.03, 0, 1), np.clip(0.4 + blades + tufts, 0, 1))
    return albedo, 1.5 * blades + 2 * tufts


Ground = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]
GROUNDS: list[Ground] = [stone, boards, tiles, cloth, grass]


def draw_ground(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Albedo [h, w, 3] and height [h, w] in pixels of a random ground."""
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    albedo, height = ground(*ground_coordinates(rng, shape), rng)
    return np.clip(albedo, 0.005, 1).astype(np.float32), height.astype(np.float32)
