"""Image files: finding them in a folder and reading files of any format as upright 8-bit RGB."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from util.errors import DataError
from util.inputs import Unreadable, require_file

_EXTENSIONS = ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp"
IMAGE_EXTENSIONS = frozenset(_EXTENSIONS.split())
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that Pillow may read, whatever the file's name: its PostScript reader, say, would start Ghostscript."""

MAX_PIXELS = 178_956_970
"""The most pixels that an image may have, Pillow's own limit: a small file can claim to have any number."""

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
# What Pillow's decoders raise on damaged files, besides OSError.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    MemoryError,
)


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        max_pixels: the most pixels that an image may have.
        allow_truncated: read JPEG files whose end is missing; the missing part becomes grey.
    """

    max_pixels: int = MAX_PIXELS
    allow_truncated: bool = False


STRICTLY = Reading()
UNKNOWN_SIZE = (1, 1)
"""Of an image that cannot be read: the check of images leaves it out, or stops at it."""
NO_FILE = "no such image file"


def load_image(path: str | Path, size: tuple[int, int] | None = None, reading: Reading = STRICTLY) -> Image.Image:
    """Read an image file as RGB, 8 bits per channel, upright as its EXIF orientation says.

    16-bit grey is scaled to 8 bits, CMYK and palettes become RGB, transparency is dropped (the stored colours stay).

    Args:
        path: the file.
        size: (width, height) in the annotations of this image. Some annotations were made on the stored pixels,
            without regard to EXIF: if only the stored pixels have this ``size``, they are returned as they are.
            (Not for TIFF files, which Pillow turns upright while it loads them.)
        reading: which files are accepted.

    Raises:
        DataError: the file is missing, not a file, empty, truncated, not an image, too large, or not of the annotated
            size; the message names it.
    """
    with _open_image(path, reading) as file:
        upright = _load_upright(file)
        if size is None or upright.size == tuple(size):
            return _to_rgb(upright)
        if file.size == tuple(size):
            return _to_rgb(file)
    raise DataError(
        f"{path}: the image is {upright.width}x{upright.height} but its annotation says {size[0]}x{size[1]}; "
        "correct the annotation or restore the image"
    )


def load_reduced(path: str | Path, short_side: int, reading: Reading = STRICTLY) -> tuple[Image.Image, tuple[int, int]]:
    """As :func:`load_image`, but decode a JPEG at 1/2, 1/4 or 1/8 of its size, as long as the short side keeps at least
    ``short_side`` pixels. That takes a fraction of the time.

    Returns:
        The image (width and height rounded up) and the (width, height) of the full image.

    Raises:
        DataError: as :func:`load_image`.
    """
    with _open_image(path, reading) as file:
        stored, orientation = file.size, file.getexif().get(ExifTags.Base.Orientation, 1)
        is_reduced = False
        for part in (8, 4, 2):
            # In a rotated image, a row or column that was rounded up might come first and shift all others.
            exact = orientation == 1 or all(side % part == 0 for side in stored)
            if min(stored) // part >= short_side and exact:
                is_reduced = file.draft(None, tuple(side // part for side in stored)) is not None
                break
        image = _to_rgb(_load_upright(file))
        if not is_reduced:
            return image, image.size
        return image, stored[::-1] if orientation in SIDEWAYS else stored


def upright_size(path: str | Path, reading: Reading = STRICTLY) -> tuple[int, int]:
    """(width, height) that :func:`load_image` would return; only the header of the file is read.

    Raises:
        DataError: the file is missing or not an image; the message names it.
    """
    return upright_and_stored_size(path, reading)[0]


def upright_and_stored_size(path: str | Path, reading: Reading = STRICTLY) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of an image file, upright and as its pixels are stored, from its header alone.

    :func:`load_image` takes annotations of either.

    Raises:
        DataError: missing, or not an image; the message names the file.
    """
    with _open_image(path, reading) as file:
        sideways = file.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS and file.format != "TIFF"
        return (file.size[::-1] if sideways else file.size), file.size


def measured_size(path: str | Path) -> tuple[int, int]:
    """:func:`upright_size`; :data:`UNKNOWN_SIZE` if the file cannot be read, which the check of images tells."""
    try:
        return upright_size(path)
    except DataError:
        return UNKNOWN_SIZE


def read_any(image: str | Path | Image.Image | np.ndarray | torch.Tensor, reading: Reading = STRICTLY) -> Image.Image:
    """An image in any form, as RGB, 8 bits per channel, upright.

    Args:
        image: a path, a PIL image, a uint8 array [H, W, 3] or [H, W], or a uint8 tensor [3, H, W].
        reading: which files are accepted.

    Raises:
        DataError: the file cannot be read, or an array has another shape or type.
    """
    if isinstance(image, str | Path):
        return load_image(image, reading=reading)
    if isinstance(image, Image.Image):
        try:
            return _to_rgb(_load_upright(image))
        except _DECODER_ERRORS as error:
            raise DataError(f"an image that was passed in cannot be read ({error})") from None
    pixels = image.movedim(0, -1).cpu().numpy() if isinstance(image, torch.Tensor) and image.dim() == 3 else image
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)):
        raise DataError(
            f"an image that was passed in has shape {tuple(image.shape)} and type {image.dtype}; pass arrays as uint8 "
            "[H, W, 3] or [H, W], tensors as uint8 [3, H, W]"
        )
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


@contextmanager
def _open_image(path: str | Path, reading: Reading) -> Iterator[Image.Image]:
    """The opened file, not decoded yet. Any error while it is open becomes a DataError that names it."""
    try:
        require_file(path)
        # A stream: Pillow memory-maps a file that it opens by name, and then garbles uncompressed TIFF files with an
        # EXIF orientation.
        with open(path, "rb") as stream, _settings(reading), Image.open(stream, formats=FORMATS) as file:
            width, height = file.size
            if width * height > reading.max_pixels:
                raise DataError(
                    f"{path}: too large: {width}x{height} is {width * height:,} pixels, and the limit is "
                    f"{reading.max_pixels:,}; make the image smaller, or raise --max_image_pixels"
                )
            ImageFile.LOAD_TRUNCATED_IMAGES = reading.allow_truncated and file.format in ("JPEG", "MPO")
            yield file
    except Unreadable as error:
        raise DataError(f"{path}: {NO_FILE if not os.path.lexists(path) else error}") from None
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: {_reason(path, error)}") from None


@contextmanager
def _settings(reading: Reading) -> Iterator[None]:
    """Set Pillow's global settings for one file: its own limit is off, because ``reading`` has one."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _load_upright(file: Image.Image) -> Image.Image:
    file.load()  # before the rotation: Pillow turns TIFF files upright itself while it loads them
    return ImageOps.exif_transpose(file)


def _reason(path: str | Path, error: Exception) -> str:
    if os.path.getsize(path) == 0:
        return "empty file (0 bytes), not an image; replace or remove it"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of any known format; replace or remove it"
    lines = str(error).splitlines() or [type(error).__name__]
    advice = ", or pass --allow_truncated" if "truncated" in lines[0] and _is_jpeg(path) else ""
    return f"not an image, or damaged ({lines[0]}); replace or remove it{advice}"


def _is_jpeg(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\xff\xd8"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey16_to_rgb(image)
    if image.mode == "F":
        raise ValueError("floating-point grey values have no known range; convert the file to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounding; Pillow's own conversion would clip at 255."""
    grey = np.asarray(image)
    if grey.size and (grey.min() < 0 or grey.max() > 65535):
        raise ValueError("32-bit grey values beyond 0..65535; convert the file to 8 or 16 bits")
    return Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def list_images(folder: str | Path) -> list[str]:
    """Paths of all images in ``folder`` and below, relative to it, with forward slashes, sorted.

    An image is a file whose extension is in IMAGE_EXTENSIONS, in upper or lower case. Links to folders are followed.
    Hidden files and folders, whose names begin with a dot, are skipped.

    Raises:
        DataError: no such folder, a folder without permission to read, a dangling link, or no image at all.
    """
    return list_with_times(folder)[0]


def list_with_times(folder: str | Path) -> tuple[list[str], dict[str, int]]:
    """As :func:`list_images`; and when each folder, ``folder`` being "", last got or lost an entry: nanoseconds."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    times: dict[str, int] = {}
    paths = sorted(_walk(folder, "", (), times))
    if not paths:
        raise DataError(f"{folder}: no images in this folder or below (looked for {_EXTENSIONS})")
    return paths, times


def _walk(folder: Path, prefix: str, ancestors: tuple[str, ...], times: dict[str, int]) -> Iterator[str]:
    """Image paths below ``folder``, each with ``prefix`` in front; links back to one of ``ancestors`` are skipped.

    The folders' times go into ``times``, by prefix.
    """
    here = os.path.realpath(folder)
    if here in ancestors:
        return
    try:
        times[prefix] = os.stat(folder).st_mtime_ns  # before its entries: what comes later makes it younger
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, here), times)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise DataError(f"{entry.path}: dangling link to {os.readlink(entry.path)}; repair or remove it")
            yield prefix + entry.name
