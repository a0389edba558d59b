"""YOLO's labels: one text file per image, one line ``class cx cy w h`` per box, as fractions of the image's sides."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from datasets.image_folder import UnlabelledImages
from datasets.image_names import ImageNames
from datasets.images import UNKNOWN_SIZE, measured_size
from datasets.layout import Layout, not_found
from datasets.records import DetectionRecords, RecordBuilder, some
from datasets.tree import Tree
from datasets.yolo_labels import Box, LabelLine, read_labels
from datasets.yolo_places import LOOKS, Labels, YoloLayout, yolo_layout
from util.errors import DataError
from util.records import DataRecord
from util.resources import MOST_CLASSES_WITHOUT_BOXES

_ROUNDING = 1e-3  # of the image's side; boxes that reach less than this beyond the image are rounding in the file
_IN_PIXELS = 2.0  # larger values cannot be fractions


def read_yolo(
    tree: Tree, split: str, categories: list[dict] | None = None, *, check_files: bool = True
) -> DetectionRecords:
    """Read and check the labels of a split.

    Image ids are the images' positions 0..n-1, sorted by path. Sizes are those of the upright image files. Categories
    are the names in data.yaml or classes.txt, else the numbers; ids count from 1. ``categories``, for example those of
    the training set, fix them by name instead.

    Args:
        check_files: raise an error if image files are missing.

    Raises:
        DataError: no such split, malformed or missing files; the message names the file.
    """
    layout = _layout_with(tree, split)
    images, labels = sorted(layout.splits[split]), Labels(tree)
    found = {image: labels.of(image) for image in images}
    if not any(found.values()):
        raise DataError(
            f"{tree.root}: none of the {len(images)} images of {split} has a label file: the image's name with .txt, "
            f"beside the image, or in labels/ where the image is in images/; the first image is {images[0]}"
        )
    if check_files:
        _refuse_missing(tree, images)
    has_keypoints = layout.config is not None and layout.config.has_keypoints
    lines = {path: list(read_labels(tree.root / path, has_keypoints=has_keypoints)) for path in found.values() if path}
    _refuse_pixels(tree, lines)
    names, notes = _names(tree, layout, lines, has_keypoints)
    label_of_class, categories = _categories(names, lines, categories, tree)
    builder, places = RecordBuilder(), []
    for number, (image, path) in enumerate(found.items()):
        size = measured_size(tree.root / image)
        builder.add_image(image, number, size)
        for line, label, box in lines.get(path, ()) if size != UNKNOWN_SIZE else ():
            if label not in label_of_class:
                raise DataError(f"{tree.root / str(path)}, line {line}: {_unknown(label, names)}")
            _add(builder, number, box, label_of_class[label], size)
            places.append(f"line {line} of {path}")
    return builder.pack(
        root=tree.root,
        source=f"{tree.root}, labels of {split}",
        metric="coco",
        categories=categories,
        place=lambda n, image: places[n],
        notes=[*layout.notes, *notes, *_notes(found, lines, labels)],
    )


def _layout_with(tree: Tree, split: str) -> YoloLayout:
    layout = yolo_layout(tree)
    if layout is not None and split in layout.splits:
        return layout
    purpose = "train" if split == "train" else "evaluate"
    reason = f" ({'; '.join(layout.notes)})" if layout and layout.notes else ""
    raise not_found(tree, [YOLO], f"{tree.root}: no YOLO data set here to {purpose} on{reason}")


def _notes(found: Mapping[str, str | None], lines: Mapping[str, list[LabelLine]], labels: Labels) -> list[str]:
    """What is unusual about the images and their labels."""
    notes = []
    if without := sum(path is None for path in found.values()):
        notes.append(f"{without} of {len(found)} images have no label file and count as images without objects")
    if alone := labels.without_image({path.rpartition("/")[0] for path in lines}):
        notes.append(f"{len(alone)} label files belong to no image and are not used ({some(alone, len(alone))})")
    if wrong := _count_in_pixels(lines):
        notes.append(f"{wrong} boxes have numbers above 1, perhaps pixels: YOLO's are shares of the image, 0 to 1")
    return notes


def _count_in_pixels(lines: Mapping[str, list[LabelLine]]) -> int:
    return sum(max(map(abs, box)) > _IN_PIXELS for of_file in lines.values() for *_, box in of_file)


def _refuse_pixels(tree: Tree, lines: Mapping[str, list[LabelLine]]) -> None:
    count = sum(map(len, lines.values()))
    if count and _count_in_pixels(lines) == count:
        raise DataError(
            f"{tree.root}: all {count} boxes seem to be in pixels (the first file is {next(iter(lines))}), but YOLO's "
            "numbers are shares of the image, 0 to 1: divide cx and w by the width, cy and h by the height"
        )


def _refuse_missing(tree: Tree, images: list[str]) -> None:
    names = ImageNames(tree.root, tree)
    missing = [image for image in images if not names.has(image)]
    if missing:
        raise DataError(
            f"{tree.root}: {len(missing)} of {len(images)} images are missing: {some(missing, len(missing))}; add "
            "them, or train without them by --damaged skip"
        )


def _names(
    tree: Tree, layout: YoloLayout, lines: Mapping[str, list[LabelLine]], has_keypoints: bool
) -> tuple[Mapping[int, str], list[str]]:
    """The names of the classes; if no file has them, their numbers in all splits."""
    if layout.names is not None:
        return layout.names, []
    highest = -1
    for path in Labels(tree).in_use():
        of_file = lines[path] if path in lines else read_labels(tree.root / path, has_keypoints=has_keypoints)
        highest = max([highest, *(label for _, label, _ in of_file)])
    names = {number: str(number) for number in range(min(highest + 1, MOST_CLASSES_WITHOUT_BOXES))}
    return names, ["no data.yaml or classes.txt names the classes, so their names are their numbers"]


def _categories(
    names: Mapping[int, str], lines: Mapping[str, list[LabelLine]], fixed: list[dict] | None, tree: Tree
) -> tuple[dict[int, int], list[dict]]:
    """Number of a class -> label, and the categories."""
    num_boxes = sum(map(len, lines.values()))
    if fixed is not None:
        label_of_name = {category["name"]: category["label"] for category in fixed}
        return {number: label_of_name[name] for number, name in names.items() if name in label_of_name}, fixed
    if len(names) > max(MOST_CLASSES_WITHOUT_BOXES, num_boxes):
        raise DataError(
            f"{tree.root}: {len(names)} classes for {num_boxes} boxes: no detector learns so many, and its class head "
            "alone would fill the memory; name those that occur"
        )
    labels = {number: label for label, number in enumerate(names)}
    return labels, [{"label": labels[number], "id": number + 1, "name": name} for number, name in names.items()]


def _unknown(label: int, names: Mapping[int, str]) -> str:
    if label in names:
        return f'class {label} "{names[label]}" is not one of the training data; use the same names in both'
    named = "class 0" if set(names) == {0} else f"classes {min(names)} to {max(names)}"
    return (
        f"class {label} has no name; there are names for {named}. Classes count from 0: correct the label, or add the "
        "name to data.yaml or classes.txt"
    )


def _add(builder: RecordBuilder, index: int, box: Box, label: int, size: tuple[int, int]) -> None:
    """Add a box; one that reaches beyond the image only by rounding ends at its edge."""
    cx, cy, w, h = box
    corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    edges = [min(1.0, max(0.0, value)) for value in corners]
    corners = [edge if abs(edge - value) < _ROUNDING else value for edge, value in zip(edges, corners, strict=True)]
    width, height = size
    x0, y0, x1, y1 = (value * side for value, side in zip(corners, (width, height) * 2, strict=True))
    builder.add_box(index, (x0, y0, x1, y1), label, degenerate=w <= 0 or h <= 0)


def _read_labelled(args: argparse.Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    return read_yolo(Tree(args.data_path), split, categories, check_files=args.damaged == "error")


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    tree = Tree(args.data_path)
    layout = yolo_layout(tree)
    if layout is None or split not in layout.splits:
        raise not_found(tree, [YOLO], f"{tree.root}: no YOLO data set here with images of {split}")
    return UnlabelledImages(tree.root, sorted(layout.splits[split]))


def _find(args: argparse.Namespace, tree: Tree | None) -> Layout | None:
    layout = None if tree is None else yolo_layout(tree)
    return None if layout is None else Layout(title=layout.title, splits=layout.where)


YOLO = DataRecord(
    title="YOLO, Ultralytics",
    read_labelled=_read_labelled,
    read_unlabelled=_read_unlabelled,
    find=_find,
    looks=LOOKS,
)
