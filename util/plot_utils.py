"""Draws boxes, two-view samples and the curves of a run.

Pictures need only Pillow, curves need matplotlib.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from util.box_labels import font_of, line_width, patch_size, place_labels, text_size
from util.errors import DataError
from util.files import written_whole
from util.inputs import NotJson, Unreadable, parse_json, read_text
from util.optional import require

Colour = tuple[int, int, int]
BACKGROUND = (24, 24, 24)
LOSS_PREFIX = "loss"
SCORES = (
    "AP",
    "AP50",
    "voc_mAP50",
    "loss_val",
    "own_iou",
    "others_iou",
    "recall",
    "best_recall",
    "feature_top1",
)  # of evaluation lines


def colour_of(index: int) -> Colour:
    """A bright colour for a category or region; consecutive numbers are far apart in hue (golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb(0.6180339887 * index % 1, 0.85 - 0.25 * (index % 2), 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Image.Image,
    boxes: Any,
    *,
    texts: Sequence[str] | None = None,
    colours: Sequence[int] | None = None,
    zoom: float = 1.0,
) -> Image.Image:
    """A copy of ``image``, enlarged by ``zoom``, with boxes on it.

    Args:
        image: RGB.
        boxes: [N, 4] xyxy in pixels of ``image``, an array or CPU tensor.
        texts: one per box (see :func:`describe`); None: no texts. The first boxes are on top and place their texts
            first; see :func:`util.box_labels.place_labels`.
        colours: a number per box, e.g. its label, see :func:`colour_of`; None: the index of the box.
        zoom: small images need it for readable text.
    """
    size = (round(image.width * zoom), round(image.height * zoom))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC) if zoom != 1 else image.convert("RGB").copy()
    draw = ImageDraw.Draw(picture)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * zoom
    width = line_width(size, len(boxes))
    own = [colour_of(index if colours is None else int(colours[index])) for index in range(len(boxes))]
    for (left, top, right, bottom), colour in reversed(list(zip(boxes, own, strict=True))):
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
    if texts is not None:
        font_size = text_size(size, len(boxes))
        labels = place_labels(size, boxes.tolist(), texts, font_size)
        for label, colour in zip(labels, own, strict=True):  # above all lines
            if label is not None:
                _write(draw, label.patch, label.text, colour, font_size)
    return picture


def describe(name: str, score: float | None = None) -> str:
    """The text of a box: ``mug`` or ``mug 0.87``."""
    return name if score is None else f"{name} {score:.2f}"


def write_text(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, *, colour: Colour, size: int
) -> tuple[float, float, float, float]:
    """Write on a filled patch above ``corner`` (a box's top left), moved inside the picture.

    Returns:
        The patch, xyxy.
    """
    wide, tall = patch_size(text, size)
    picture_width, picture_height = draw.im.size
    x = min(max(corner[0], 0), max(0, picture_width - wide))
    y = min(max(corner[1] - tall, 0), max(0, picture_height - tall))
    patch = (x, y, x + wide, y + tall)
    _write(draw, patch, text, colour, size)
    return patch


def _write(
    draw: ImageDraw.ImageDraw, patch: tuple[float, float, float, float], text: str, colour: Colour, size: int
) -> None:
    """Fill ``patch`` (xyxy) and write on it."""
    font = font_of(size)
    left, top, _, _ = font.getbbox(text)
    draw.rectangle(patch, fill=colour)
    brightness = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    draw.text((patch[0] + 2 - left, patch[1] + 2 - top), text, fill="black" if brightness > 110 else "white", font=font)


def contact_sheet(
    pictures: Sequence[Image.Image], *, columns: int, captions: Sequence[str] | None = None, gap: int = 6
) -> Image.Image:
    """Pictures of any sizes in a grid, each centred in its cell.

    Raises:
        ValueError: no pictures, or another number of captions.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    if captions is not None:
        pairs = zip(pictures, captions, strict=True)
        pictures = [_with_caption(picture, caption) for picture, caption in pairs]
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (sum(widths) + gap * (columns + 1), sum(heights) + gap * (len(rows) + 1)), BACKGROUND)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        x = gap
        for picture, width in zip(row, widths, strict=False):  # the last row may be short
            sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
            x += width + gap
        y += height + gap
    return sheet


def _with_caption(picture: Image.Image, caption: str) -> Image.Image:
    size = text_size(picture.size)
    captioned = Image.new("RGB", (picture.width, picture.height + 2 * size), BACKGROUND)
    captioned.paste(picture, (0, 2 * size))
    ImageDraw.Draw(captioned).text((2, size // 3), caption, fill="white", font=font_of(size))
    return captioned


def draw_detections(
    image: Image.Image,
    truth: dict[str, Any],
    found: dict[str, Any],
    names: dict[int, str],
    *,
    threshold: float = 0.3,
    zoom: float = 1.0,
) -> Image.Image:
    """The objects of an image and the detections, side by side; a category has the same colour in both.

    Args:
        image: RGB.
        truth: boxes [T, 4] xyxy in pixels of ``image`` and labels [T].
        found: boxes [N, 4] xyxy in pixels, labels [N] and scores [N]; arrays or CPU tensors.
        names: label -> name; detections with other labels are not drawn.
        threshold: detections with lower scores are not drawn.
        zoom: enlarges both pictures.
    """
    labels, scores = np.asarray(found["labels"]), np.asarray(found["scores"])
    shown = (scores >= threshold) & np.isin(labels, list(names))
    found = {"boxes": np.asarray(found["boxes"])[shown], "labels": labels[shown], "scores": scores[shown]}
    pictures = [draw_objects(image, objects, names, zoom=zoom) for objects in (truth, found)]
    return contact_sheet(pictures, columns=2, captions=["truth", f"found (score at least {threshold:.2f})"])


def draw_objects(
    image: Image.Image, objects: dict[str, Any], names: dict[int, str], *, zoom: float = 1.0
) -> Image.Image:
    """A copy of ``image``, enlarged by ``zoom``, with named boxes in the colours of their categories.

    Args:
        image: RGB.
        objects: boxes [N, 4] xyxy in pixels of ``image``, labels [N] and, of detections, scores [N], best first.
        names: label -> name.
        zoom: small images need it for legible text.
    """
    labels = np.asarray(objects["labels"])
    scores = objects.get("scores", [None] * len(labels))
    texts = [describe(names[int(label)], score) for label, score in zip(labels, scores, strict=True)]
    return draw_boxes(image, objects["boxes"], texts=texts, colours=labels, zoom=zoom)


def draw_two_views(
    views: Sequence[Image.Image],
    regions: Any,
    crops: Sequence[Sequence[Image.Image]] | None = None,
    *,
    zoom: float = 1.0,
    crop_side: int = 64,
) -> Image.Image:
    """Two views side by side, below each its crops; region i has the number i and the same colour in both.

    Args:
        views: two RGB pictures.
        regions: [2, R, 4] xyxy in pixels of each view, an array or CPU tensor.
        crops: for each view its R crops, drawn below it in frames.
        zoom: enlarges the views.
        crop_side: side of the drawn crops in pixels.
    """
    numbers = [str(index) for index in range(np.shape(regions)[1])]
    columns = [
        draw_boxes(view, boxes, texts=numbers, zoom=zoom)
        for view, boxes in zip(views, np.asarray(regions), strict=True)
    ]
    if crops is not None:
        strips = [_crop_strip(row, column.width, crop_side) for row, column in zip(crops, columns, strict=True)]
        columns = [contact_sheet(pair, columns=1, gap=0) for pair in zip(columns, strips, strict=True)]
    return contact_sheet(columns, columns=2)


def _crop_strip(crops: Sequence[Image.Image], width: int, side: int) -> Image.Image:
    """Numbered crops in frames of their regions' colours, in rows of at most ``width`` pixels."""
    tiles = []
    for index, crop in enumerate(crops):
        tile = Image.new("RGB", (side, side), colour_of(index))
        tile.paste(crop.convert("RGB").resize((side - 6, side - 6), Image.Resampling.BICUBIC), (3, 3))
        write_text(ImageDraw.Draw(tile), (0, 0), str(index), colour=colour_of(index), size=max(10, side // 6))
        tiles.append(tile)
    return contact_sheet(tiles, columns=max(1, (width - 4) // (side + 4)), gap=4)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records in a ``log.txt``, without an unfinished last line.

    Raises:
        DataError: no such file, or a line is not a record; the message names file and line.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such log file")
    try:
        lines = read_text(path).split("\n")
    except Unreadable as error:
        raise DataError(f"{path}: cannot be read as a log ({error})") from None
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = parse_json(line)
        except NotJson as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        if (
            not isinstance(record, dict)
            or not isinstance(record.get("kind"), str)
            or type(record.get("step")) is not int
        ):
            raise DataError(f'{path}, line {number}: not a log line, which has "kind" and "step"')
        records.append(record)
    return records


def curves(records: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """(steps, values) of each loss term (training lines) and each score (evaluation lines), losses first."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for kind in ("train", "eval"):
        for record in records:
            for name, value in record.items():
                wanted = name.startswith(LOSS_PREFIX) if kind == "train" else name in SCORES
                if record["kind"] == kind and wanted:
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(record["step"])
                    values.append(float(value) if isinstance(value, int | float) else math.nan)
    return found


def plot_curves(logs: dict[str, str | Path], out: str | Path) -> None:
    """Loss terms and scores over steps, one panel each, one line per run -> PNG ``out``.

    Args:
        logs: name of the run -> its log.txt.
        out: the picture; its folder must exist.

    Raises:
        DataError: a log cannot be read, or no log holds a loss or a score.
        UserError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "matplotlib", "drawing curves")
    runs = {name: curves(read_log(path)) for name, path in logs.items()}
    panels = list(dict.fromkeys(panel for run in runs.values() for panel in run))
    if not panels:
        raise DataError(f"{', '.join(map(str, logs.values()))}: no losses and no scores to draw yet")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = figure_module.Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set(title=panel, xlabel="step")
        axes.grid(alpha=0.3)
        for number, (name, run) in enumerate(runs.items()):
            if panel in run:
                marker = "o" if panel in SCORES else None
                axes.plot(*run[panel], label=name, color=f"C{number}", marker=marker, markersize=4)
        axes.legend(fontsize="small")
    save_figure(figure, out)


def save_figure(figure: Any, out: str | Path) -> None:
    """Write a figure of matplotlib as PNG."""
    with written_whole(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture in the format of the suffix of ``path``."""
    with written_whole(path) as temporary:
        picture.save(temporary, quality=85)
