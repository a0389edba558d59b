"""The things in a scene: three compact categories, told apart by shape and texture, and distractors of no category.

Each function draws one random instance in its own coordinates: ``x`` to the right and ``y`` downwards, [h, w], in
units of the object's radius, the object within about [-1, 1] on both axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tools.scenes.noise import Array, draw_colour, fractal_noise, mix, ridge, second_colour, stripes


@dataclass(frozen=True)
class Surface:
    """What there is to be lit of an object, on a grid [h, w].

    Attributes:
        outside: [h, w] a function that is negative on the object and positive off it.
        albedo: [h, w, 3] the share of light given back.
        height: [h, w] towards the viewer, in units of the object's radius.
        gloss: strength of the highlight.
        flat: whether it lies on the ground (and its shadow with it).
    """

    outside: Array
    albedo: Array
    height: Array
    gloss: float
    flat: bool = False


def ball(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A sphere with sectors, bands or patches around a random axis."""
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    a, b, c = np.moveaxis(np.stack([x, y, z], -1) @ _random_rotation(rng), -1, 0)
    kind = rng.integers(3)
    if kind == 0:
        pattern = stripes(np.arctan2(a, b) / (2 * np.pi) * rng.integers(3, 7), 8)
    elif kind == 1:
        pattern = stripes(np.arcsin(np.clip(c, -1, 1)) * rng.uniform(0.5, 1.6) + rng.uniform())
    else:
        nearest = np.abs(
            np.stack([a + 1.618 * b, a - 1.618 * b, b + 1.618 * c, b - 1.618 * c, c + 1.618 * a, c - 1.618 * a])
        )
        pattern = np.clip((nearest.max(0) / 1.902 - 0.92) * 30, 0, 1)  # the twelve corners of an icosahedron
    first = draw_colour(rng)
    dirt = 0.12 * fractal_noise(rng, x.shape, 4)
    albedo = mix(first, second_colour(rng, first), pattern) * (1 + dirt)[..., None]
    return Surface(x**2 + y**2 - 1, albedo, z, gloss=rng.uniform(0.1, 0.8))


def crate(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A box of boards seen on three of its faces (orthographic rays through a box)."""
    toward = rng.uniform(0.35, 1, 3)
    toward /= np.linalg.norm(toward)  # the viewer's direction in the crate's own axes
    right = np.cross(toward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(right, toward), toward]).astype(np.float32)
    half = rng.uniform(0.42, 0.66, 3).astype(np.float32)
    origin = np.stack([x, y], -1) @ axes[:2]
    leaves = (half - origin) / axes[2]
    enter, face, leave = ((-half - origin) / axes[2]).max(-1), leaves.argmin(-1), leaves.min(-1)
    on_face = (origin + leave[..., None] * axes[2]) / half  # [-1, 1] on the two axes of the face
    along = np.take_along_axis(on_face, ((face + 1) % 3)[..., None], -1)[..., 0]
    across = np.take_along_axis(on_face, ((face + 2) % 3)[..., None], -1)[..., 0]

    boards, frame = int(rng.integers(3, 6)), rng.uniform(0.15, 0.25)
    gap = ridge((across * boards / 2 + 0.5 * (boards % 2)) % 1 - 0.5, 0.07)
    border = np.maximum(np.abs(along), np.abs(across)) > 1 - frame
    if rng.uniform() < 0.5:
        border |= np.abs(along - across) < frame
    grain = np.sin(across * rng.uniform(25, 45) + 6 * fractal_noise(rng, x.shape, 4, 3))
    first = draw_colour(rng)
    board = 1 - 0.75 * gap + 0.12 * grain + 0.15 * np.sin(np.floor(across * boards / 2 + 4) * 12.9 + face * 5)
    albedo = mix(first * board[..., None], first * 0.7 * (1 + 0.15 * grain)[..., None], border)
    albedo = albedo * (1 + 0.4 * fractal_noise(rng, x.shape, 6))[..., None]
    return Surface(enter - leave, np.clip(albedo, 0.005, 1), leave + 0.02 * border, gloss=rng.uniform(0, 0.15))


def mug(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A cup seen from somewhat above: the opening with a drink in it, a painted wall, a handle at the side."""
    x = x + 0.2
    radius, tall, tilt = rng.uniform(0.5, 0.62), rng.uniform(0.45, 0.7), rng.uniform(0.25, 0.5)
    wall_x = x / (radius * (1 - rng.uniform(0, 0.2) * np.clip(y, -1, 1)))
    bulge = np.sqrt(np.clip(1 - wall_x**2, 0, None))
    depth = radius * tilt * bulge
    body = np.maximum(np.abs(wall_x) - 1, np.maximum(-tall - depth - y, y - tall - depth))
    reach = np.hypot((x - radius * 0.95) / 0.8, y)
    thick, from_ring = rng.uniform(0.09, 0.13), np.abs(reach - rng.uniform(0.3, 0.42))
    handle = np.maximum(from_ring - thick, radius * 0.8 - x)
    opening = np.hypot(wall_x, (y + tall) / (radius * tilt))  # < 1 within the rim's ellipse
    hollow = np.clip((0.9 - opening) * 15, 0, 1)

    first = draw_colour(rng)
    around = np.arcsin(np.clip(wall_x, -1, 1))
    band = (y - depth) * rng.uniform(1, 3)
    painted = stripes(band) if rng.uniform() < 0.5 else stripes(band) * stripes(around * rng.uniform(1, 2.5))
    inside = mix(first * 0.35, draw_colour(rng) * 0.4, np.clip((y + tall + 0.04) * 20, 0, 1))
    albedo = mix(mix(first, second_colour(rng, first), painted * (body < 0) * (opening > 1)), inside, hollow)
    loop = np.sqrt(np.clip(thick**2 - from_ring**2, 0, None))
    height = np.where(body < 0, np.where(opening < 1, 0.25 * y, bulge * radius), loop)
    return Surface(np.minimum(body, handle), albedo, height, gloss=rng.uniform(0.3, 1.0))


def pebble(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A lump of stone."""
    bumps = fractal_noise(rng, x.shape, 3)
    distance = np.hypot(x, y / rng.uniform(0.5, 0.9)) + 0.45 * bumps
    height = 0.7 * np.sqrt(np.clip(1 - distance**2, 0, None)) + 0.1 * bumps
    speckle = fractal_noise(rng, x.shape, 14)
    return Surface(distance - 0.9, draw_colour(rng) * (0.8 + speckle)[..., None], height, gloss=0.1)


def stick(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A crooked twig."""
    y = y + 0.12 * np.sin(x * rng.uniform(2, 5) + rng.uniform(0, 6)) + 0.1 * fractal_noise(rng, x.shape, 4)
    radius = rng.uniform(0.05, 0.12) * (1.2 - 0.5 * x)
    bark = fractal_noise(rng, x.shape, 16) + 0.3 * np.sin(x * 40)
    outside = np.maximum(np.abs(y) - radius, np.abs(x) - 1)
    height = np.sqrt(np.clip(radius**2 - y**2, 0, None))
    return Surface(outside, draw_colour(rng) * (0.7 + 0.5 * bark)[..., None].clip(0.1), height, gloss=0.0)


def paper(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A crumpled sheet, printed with lines of text."""
    wide, tall = rng.uniform(0.5, 0.95), rng.uniform(0.4, 0.8)
    outside = np.maximum(np.abs(x) - wide, np.abs(y) - tall)
    line = np.floor(y * 9)
    words = (
        (np.sin(x * 31 + line * 7.1) + np.sin(x * 17 + line * 3.7) > -0.6)
        & ((y * 9) % 1 > 0.55)
        & (np.abs(x) < wide - 0.12)
    )
    height = 0.25 * np.abs(fractal_noise(rng, x.shape, 3, 3))
    sheet = np.clip(draw_colour(rng) + 0.3, 0, 0.9)
    return Surface(outside, mix(sheet, sheet * 0.25, words * 0.8), height, gloss=0.05, flat=True)


def shard(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A flat splinter with straight edges."""
    angles = (np.arange(5) + rng.uniform(-0.35, 0.35, 5)) * 2 * np.pi / 5
    edges = [np.cos(a) * x + np.sin(a) * y - rng.uniform(0.35, 0.75) for a in angles]
    outside = np.max(edges, axis=0).astype(np.float32)
    tone = 0.8 + 0.6 * fractal_noise(rng, x.shape, 5)
    height = 0.15 * np.clip(-outside * 8, 0, 1) + 0.1 * fractal_noise(rng, x.shape, 3)
    return Surface(outside, draw_colour(rng) * tone[..., None], height, gloss=rng.uniform(0, 0.6), flat=True)


def _random_rotation(rng: np.random.Generator) -> Array:
    """A random orthogonal matrix [3, 3]."""
    return np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)


DrawObject = Callable[[Array, Array, np.random.Generator], Surface]
CATEGORIES: dict[str, DrawObject] = {
    "ball": ball,
    "crate": crate,
    "mug": mug,
}
DISTRACTORS: list[DrawObject] = [pebble, stick, paper, shard]
