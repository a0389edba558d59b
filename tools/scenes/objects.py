"""The things in a scene: four categories, told apart by shape and texture, and distractors of no category.

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


def bottle(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A body of revolution with shoulder and neck, a label around the body and a cap."""
    body, neck = rng.uniform(0.3, 0.42), rng.uniform(0.1, 0.14)
    shoulder, slope = rng.uniform(-0.35, -0.05), rng.uniform(6, 16)
    radius = neck + (body - neck) / (1 + np.exp(-slope * (y - shoulder)))
    radius = np.where(y < -0.85, neck * 1.3, radius)
    outside = np.maximum(np.abs(x) - radius, np.abs(y) - 1 + 0.12 * (x / body) ** 2 * (y > 0))
    height = np.sqrt(np.clip(radius**2 - x**2, 0, None))
    glass, paper = draw_colour(rng) * 0.6, np.clip(draw_colour(rng) + 0.25, 0, 0.9)
    top, bottom = shoulder + rng.uniform(0.3, 0.4), rng.uniform(0.65, 0.85)
    label = np.clip(np.minimum(y - top, bottom - y) * 40, 0, 1)
    around = np.arcsin(np.clip(x / radius, -1, 1))
    print_ = stripes(y * rng.uniform(3, 7)) * (np.sin(around * rng.uniform(5, 14) + rng.uniform(0, 6)) > 0)
    streak = ridge(np.abs(x) / radius - 0.65, 0.12) * 0.5 + 0.75  # light gathered near the walls of the glass
    albedo = mix(glass * streak[..., None], mix(paper, second_colour(rng, paper), print_), label)
    albedo = mix(albedo, second_colour(rng, glass), (y < -0.82).astype(np.float32))
    return Surface(outside, albedo, height, gloss=rng.uniform(0.6, 1.2))


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


def leaf(x: Array, y: Array, rng: np.random.Generator) -> Surface:
    """A bent, pointed blade with midrib and side veins, serrated or smooth, on a stem."""
    y = y - rng.uniform(-0.35, 0.35) * (x**2 - 0.4)
    span = np.clip(1 - ((x - 0.15) / 0.85) ** 2, 0, None)  # the blade reaches from -0.7 to 1
    blunt, skew = rng.uniform(0.7, 1.2), rng.uniform(-0.4, 0.4)
    width = rng.uniform(0.3, 0.5) * span**blunt * (1 - skew * (x - 0.15))
    veins, lean = rng.uniform(6, 11), rng.uniform(0.6, 1.2)
    if rng.uniform() < 0.5:
        width = width * (1 + 0.16 * ((x * veins * 1.5) % 1 - 0.5))
    stem = np.maximum(np.abs(y) - 0.03, np.abs(x + 0.7) - 0.3)
    outside = np.minimum(np.maximum(np.abs(y) - width, np.abs(x - 0.15) - 0.85), stem)
    side = ridge(((x - lean * np.abs(y)) * veins) % 1 - 0.5, 0.13)
    rib = ridge(y, 0.035)
    blotch = fractal_noise(rng, x.shape, 5)
    first = draw_colour(rng)
    albedo = mix(first, second_colour(rng, first), np.clip(rng.uniform(0.1, 0.6) * (blotch * 2 + np.abs(y)), 0, 1))
    albedo = mix(albedo, albedo.mean() * 0.5 + albedo * 1.3, np.clip(0.35 * side + 0.9 * rib, 0, 1))
    height = -0.35 * np.abs(y) + 0.015 * side + 0.03 * rib + 0.12 * blotch
    return Surface(outside, np.clip(albedo, 0.01, 1), height, gloss=rng.uniform(0.05, 0.4), flat=True)


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
    "bottle": bottle,
    "crate": crate,
    "leaf": leaf,
}
DISTRACTORS: list[DrawObject] = [pebble, stick, paper, shard]
