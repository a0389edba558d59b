"""One scene: things are laid on a ground one after the other, lit by one lamp and photographed.

Everything is computed in linear light; the camera turns it into an sRGB picture at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter

from tools.scenes.backgrounds import draw_ground
from tools.scenes.noise import Array, fractal_noise
from tools.scenes.objects import CATEGORIES, DISTRACTORS, DrawObject, Surface

NUM_OBJECTS = (1, 2)  # of a category, least and most
NUM_DISTRACTORS = (0, 1)
RADII = (0.24, 0.38)  # of things, as shares of the picture's short side
CENTRES = (0.15, 0.85)  # of things, as shares of the picture's sides
GROUND_BLUR = 0.02  # standard deviation, as a share of the short side
GROUND_CONTRAST = 0.4
MIN_VISIBLE_SHARE = 0.6  # of the whole object, what lies outside the picture counted as hidden
MIN_VISIBLE_SIDE = 8  # pixels, both sides of the visible part's box
_MARGIN = 1.25  # the grid of an object reaches somewhat beyond its radius


Window = tuple[slice, slice]


@dataclass(frozen=True)
class Lamp:
    """A distant light and the sky: ``colour`` and ``sky`` [3] are what each of them sends.

    ``direction`` [3] is the unit vector to the light: x right, y down, z to the viewer.
    """

    direction: Array
    colour: Array
    sky: Array


@dataclass(frozen=True)
class Thing:
    """A surface laid down with its grid's corner at pixel (left, top).

    ``name`` is its category, None for distractors; ``cover`` [h, w] how far it covers each pixel of its grid (0..1).
    """

    name: str | None
    surface: Surface
    cover: Array
    left: int
    top: int
    radius: float

    def window(self, shape: tuple[int, int]) -> tuple[Window, Window]:
        """The part of a picture [h, w] under the grid, and the part of the grid inside the picture."""
        return _overlap(self.top, self.left, self.cover.shape, shape)


@dataclass(frozen=True)
class Scene:
    """A rendered picture and, for each annotated object, its category and visible mask [h, w] bool."""

    image: Image.Image
    names: list[str]
    masks: list[Array]


def render_scene(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """Draw a random scene of (h, w) pixels.

    Objects of a category that end up less visible than :data:`MIN_VISIBLE_SHARE` (or :data:`MIN_VISIBLE_SIDE`) are
    taken out of the scene, so that every object of a category that can be seen is annotated.
    """
    lamp = _draw_lamp(rng)
    albedo, height = draw_ground(rng, shape)
    things = remove_hidden(_draw_things(rng, shape), shape)
    ground = shade(albedo, height, 0.05, lamp) * (1 + 0.35 * fractal_noise(rng, shape, 1.5, 2))[..., None]
    canvas = lay_down(out_of_focus(ground), things, lamp)
    owner = owners(things, shape)
    labelled = [i for i, thing in enumerate(things) if thing.name is not None]
    return Scene(
        image=photograph(canvas, rng),
        names=[things[i].name for i in labelled],
        masks=[owner == i for i in labelled],
    )


def _overlap(top: int, left: int, grid: tuple[int, int], shape: tuple[int, int]) -> tuple[Window, Window]:
    """Where a grid [h, w] with its corner at pixel (left, top) meets a picture [h, w]: in the picture, in the grid."""
    ends = [(top, grid[0], shape[0]), (left, grid[1], shape[1])]
    in_picture = tuple(slice(max(0, start), max(0, min(start + side, limit))) for start, side, limit in ends)
    in_grid = tuple(slice(max(0, -start), max(0, min(side, limit - start))) for start, side, limit in ends)
    return in_picture, in_grid


def _draw_lamp(rng: np.random.Generator) -> Lamp:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(25, 65))
    direction = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    warmth, contrast = rng.uniform(-0.15, 0.2), rng.uniform(0.5, 0.85)
    colour = np.array([1 + warmth, 1, 1 - warmth]) * contrast * 1.5
    sky = np.array([1 - warmth / 2, 1, 1 + warmth]) * (1 - contrast)
    return Lamp(np.float32(direction), np.float32(colour), np.float32(sky))


def _draw_things(rng: np.random.Generator, shape: tuple[int, int]) -> list[Thing]:
    """Objects and distractors in the order in which they are laid down."""
    num_objects, num_distractors = (rng.integers(*limits, endpoint=True) for limits in (NUM_OBJECTS, NUM_DISTRACTORS))
    names = [*rng.choice(list(CATEGORIES), num_objects).tolist(), *[None] * num_distractors]
    rng.shuffle(names)
    return [_draw_thing(rng, shape, name) for name in names]


def _draw_thing(rng: np.random.Generator, shape: tuple[int, int], name: str | None) -> Thing:
    draw: DrawObject = CATEGORIES[name] if name else DISTRACTORS[rng.integers(len(DISTRACTORS))]
    radius = float(min(shape) * RADII[0] * (RADII[1] / RADII[0]) ** rng.uniform())
    centre_y, centre_x = rng.uniform(*CENTRES, 2) * shape
    top, left = int(centre_y - radius * _MARGIN), int(centre_x - radius * _MARGIN)
    side = int(2 * radius * _MARGIN) + 2
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    offset = np.stack([columns + 0.5 + left - centre_x, rows + 0.5 + top - centre_y], -1) / radius
    x, y = np.moveaxis(offset.astype(np.float32) @ _placement(rng, name), -1, 0)
    surface = draw(x, y, rng)
    return Thing(name, surface, coverage(surface.outside), left, top, radius)


def _placement(rng: np.random.Generator, name: str | None) -> Array:
    """A matrix [2, 2] from the picture's plane to the object's: a rotation, and a tilt for all but balls."""
    angle, tilted = rng.uniform(0, 2 * np.pi, 2)
    squeeze = 1.0 if name == "ball" else rng.uniform(1, 1.35)
    rotations = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in (angle, tilted)]
    return (rotations[1] @ np.diag([squeeze, 1.0]) @ rotations[1].T @ rotations[0]).astype(np.float32)


def coverage(outside: Array) -> Array:
    """How far (0..1) the region where ``outside`` [h, w] is negative covers each pixel; its edge is a pixel soft."""
    down, right = np.gradient(outside)
    pixels = outside / np.maximum(np.hypot(down, right), 1e-4)
    return np.clip(0.5 - pixels, 0, 1).astype(np.float32)


def owners(things: list[Thing], shape: tuple[int, int]) -> Array:
    """For every pixel [h, w] the index of the thing that is seen there, -1 for the ground."""
    owner = np.full(shape, -1)
    for index, thing in enumerate(things):
        picture, grid = thing.window(shape)
        owner[picture][thing.cover[grid] > 0.5] = index
    return owner


def remove_hidden(things: list[Thing], shape: tuple[int, int]) -> list[Thing]:
    """Without the objects of a category that are too little visible. Taking one away never hides another."""
    owner = owners(things, shape)
    return [thing for i, thing in enumerate(things) if thing.name is None or _is_visible(thing, owner == i)]


def _is_visible(thing: Thing, mask: Array) -> bool:
    if mask.sum() < MIN_VISIBLE_SHARE * (thing.cover > 0.5).sum():
        return False
    left, top, right, bottom = visible_box(mask)
    return min(right - left, bottom - top) >= MIN_VISIBLE_SIDE


def visible_box(mask: Array) -> tuple[int, int, int, int]:
    """The tight box xyxy, in pixels, around the True pixels of ``mask`` [h, w]; zeros where there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def shade(albedo: Array, height: Array, gloss: float, lamp: Lamp) -> Array:
    """Light [h, w, 3] from a surface: sky, Lambert's cosine and Blinn's highlight. ``height`` [h, w] in pixels."""
    down, right = np.gradient(height)
    normal = np.stack([-right, -down, np.ones_like(height)], -1).astype(np.float32)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    halfway = lamp.direction + np.float32([0, 0, 1])
    halfway /= np.linalg.norm(halfway)
    diffuse = np.clip(normal @ lamp.direction, 0, None)[..., None]
    highlight = gloss * np.exp(60 * (normal @ halfway - 1))[..., None]
    sky = 0.4 + 0.6 * normal[..., 2:]  # less of it reaches what is turned away
    return albedo * (lamp.sky * sky + lamp.colour * diffuse) + lamp.colour * highlight


def out_of_focus(ground: Array) -> Array:
    """The ground [h, w, 3] blurred and pale, as behind a near subject: what lies on it has the clearest edges."""
    softness = GROUND_BLUR * min(ground.shape[:2])
    blurred = gaussian_filter(ground, (softness, softness, 0))
    mean = blurred.mean((0, 1), dtype=np.float64)
    return (mean + GROUND_CONTRAST * (blurred - mean)).astype(np.float32)


def lay_down(canvas: Array, things: list[Thing], lamp: Lamp) -> Array:
    """A copy of the picture [h, w, 3] with ``things`` and their shadows over it, the last one on top."""
    canvas, shape = canvas.copy(), canvas.shape[:2]
    for thing in things:
        _cast_shadow(canvas, thing, lamp)
        picture, grid = thing.window(shape)
        light = shade(thing.surface.albedo, thing.surface.height * thing.radius, thing.surface.gloss, lamp)[grid]
        cover = thing.cover[grid][..., None]
        canvas[picture] += (light - canvas[picture]) * cover
    return canvas


def _cast_shadow(canvas: Array, thing: Thing, lamp: Lamp) -> None:
    """Darken ``canvas`` in place: a soft shadow away from the lamp, and a dark seam where the thing touches."""
    rise = thing.radius * (0.1 if thing.surface.flat else 0.45)
    right, down = (-lamp.direction[:2] / lamp.direction[2] * rise).round().astype(int).tolist()
    for depth, softness, dx, dy in ((0.6, 1 + rise * 0.3, right, down), (0.3, 2 + thing.radius * 0.04, 0, 0)):
        border = int(3 * softness)
        cover = ImageOps.expand(Image.fromarray((thing.cover * 255).astype(np.uint8)), border)
        blurred = np.asarray(cover.filter(ImageFilter.GaussianBlur(softness)), np.float32)
        picture, grid = _overlap(thing.top - border + dy, thing.left - border + dx, blurred.shape, canvas.shape[:2])
        canvas[picture] *= 1 - depth / 255 * blurred[grid][..., None]


def photograph(light: Array, rng: np.random.Generator) -> Image.Image:
    """A camera: exposure, vignette, defocus, shot and read noise, tone curve. Linear [h, w, 3] -> sRGB picture."""
    tall, wide = light.shape[:2]
    rows, columns = np.ogrid[-1 : 1 : tall * 1j, -1 : 1 : wide * 1j]
    vignette = 1 - rng.uniform(0, 0.25) * (rows**2 + columns**2)[..., None]
    light = light * vignette * rng.uniform(0.28, 0.42) / max(float(light.mean()), 0.02)
    light = light.astype(np.float32)
    noise = rng.standard_normal(light.shape, np.float32)
    light = light + noise * np.sqrt(light.clip(0) * rng.uniform(0, 4e-4) + 1e-5)
    curve = 1 - np.exp(-1.6 * light.clip(0))  # highlights roll off instead of clipping
    picture = Image.fromarray((255 * np.clip(curve, 0, 1) ** (1 / 2.2) + 0.5).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.9)))
