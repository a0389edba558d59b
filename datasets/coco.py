"""Detection data sets in COCO's format: a folder of images and one JSON file of annotations."""

from __future__ import annotations

import argparse
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.coco_places import LOOKS, coco_places
from datasets.image_folder import UnlabelledImages, output_of_training
from datasets.image_names import ImageNames
from datasets.images import measured_size
from datasets.layout import Layout, not_found
from datasets.masks import box_of_mask
from datasets.records import DetectionRecords, RecordBuilder, some
from datasets.tree import Tree
from util.errors import DataError, UserError
from util.inputs import NotJson, Unreadable, read_json
from util.records import DETECTION_SCALES, DataRecord, Flag
from util.resources import MOST_CLASSES_WITHOUT_BOXES

_LARGEST_NUMBER = 1e9  # larger coordinates or areas (pixels) are errors in the file, as are NaN and infinity
_IDS_AND_NAMES = (
    "1 person 2 bicycle 3 car 4 motorcycle 5 airplane 6 bus 7 train 8 truck 9 boat 10 traffic_light 11 fire_hydrant "
    "13 stop_sign 14 parking_meter 15 bench 16 bird 17 cat 18 dog 19 horse 20 sheep 21 cow 22 elephant 23 bear "
    "24 zebra 25 giraffe 27 backpack 28 umbrella 31 handbag 32 tie 33 suitcase 34 frisbee 35 skis 36 snowboard "
    "37 sports_ball 38 kite 39 baseball_bat 40 baseball_glove 41 skateboard 42 surfboard 43 tennis_racket 44 bottle "
    "46 wine_glass 47 cup 48 fork 49 knife 50 spoon 51 bowl 52 banana 53 apple 54 sandwich 55 orange 56 broccoli "
    "57 carrot 58 hot_dog 59 pizza 60 donut 61 cake 62 chair 63 couch 64 potted_plant 65 bed 67 dining_table "
    "70 toilet 72 tv 73 laptop 74 mouse 75 remote 76 keyboard 77 cell_phone 78 microwave 79 oven 80 toaster 81 sink "
    "82 refrigerator 84 book 85 clock 86 vase 87 scissors 88 teddy_bear 89 hair_drier 90 toothbrush"
)
COCO_CATEGORIES = {
    int(number): name.replace("_", " ")
    for number, name in zip(_IDS_AND_NAMES.split()[::2], _IDS_AND_NAMES.split()[1::2], strict=True)
}


def coco_paths(data_path: str | Path, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of ``split`` ("train" or "val"); see :func:`datasets.coco_places.coco_places`.

    Raises:
        DataError: they are not there; the trees that were looked for and found are printed.
    """
    tree = Tree(data_path)
    places = coco_places(tree)
    if places is not None and split not in places.splits:
        there = ", ".join(str(place.annotations) for place in places.splits.values())
        raise DataError(
            f"{data_path}: this COCO data set has no images to {_purpose(split)} on, only {there}; put them in a "
            f"folder named {split}, or name them by --{split}_ann FILE --{split}_images DIR"
        )
    if places is None:
        raise not_found(
            tree,
            [COCO],
            f"{data_path}: no COCO data set here to {_purpose(split)} on; above is what was looked for and found. For "
            f"any other place: --{split}_ann FILE --{split}_images DIR",
        )
    place = places.splits[split]
    return place.annotations, place.images


def _purpose(split: str) -> str:
    return "train" if split == "train" else "evaluate"


def coco_image_folder(data_path: str | Path, split: str) -> Path | None:
    """Folder of the images of ``split`` ("train" or "val") in the usual layout, which needs no annotations."""
    folders = [Path(data_path) / name for name in (f"{split}2017", split)]
    return next((folder for folder in folders if folder.is_dir()), None)


def read_coco(
    images_dir: str | Path, ann_file: str | Path, categories: list[dict] | None = None, *, check_files: bool = True
) -> DetectionRecords:
    """Read and check an annotation file.

    Labels are the raw category ids if the categories are exactly COCO's 80 (as in the public checkpoints), else 0..K-1
    in order of id. ``categories``, for example those of the training set, fix the labels instead; other categories are
    then an error. A category without boxes that is the supercategory of all the others (Roboflow adds one) is left out.
    Images come in order of id, including those without boxes.

    An "area" that is 0, negative or ``true`` is replaced by the area of the box, a missing box by that of the mask, and
    a missing size by that of the image file. The records' notes say so.

    Args:
        check_files: raise an error if image files are missing.

    Raises:
        DataError: no such file or folder, not JSON, missing or malformed entries, numbers that are not finite, unknown
            image or category ids, missing image files; the message names the file and the entry.
    """
    images_dir, ann_file = Path(images_dir), Path(ann_file)
    content = _read_json(ann_file)
    images, annotations, listed = (_list(content, key, ann_file) for key in ("images", "annotations", "categories"))
    grouping = None if categories else _grouping_category(listed, annotations)
    kept = [category for category in listed if category is not grouping]
    fixed, categories = categories, _categories(kept, ann_file, categories)
    label_of_id = {category["id"]: category["label"] for category in categories}
    if len(categories) > max(MOST_CLASSES_WITHOUT_BOXES, len(annotations)) and fixed is None:
        raise DataError(
            f"{ann_file}: {len(categories)} categories for {len(annotations)} boxes are too many: the class head alone "
            'would fill the memory; list in "categories" only those that occur'
        )

    builder = RecordBuilder()
    index_of_id, notes = _add_images(builder, images, images_dir, ann_file, check_files)
    for number, annotation in enumerate(annotations):
        _add_annotation(builder, annotation, index_of_id, label_of_id, f"{ann_file}: annotations[{number}]")
    if grouping is not None:
        notes.append(f'the category "{grouping["name"]}" has no boxes and only groups the others: it is left out')
    return builder.pack(
        root=images_dir,
        source=str(ann_file),
        metric="coco",
        categories=categories,
        place=lambda n, image: f"annotation {annotations[n].get('id')} of {builder.path(image)}",
        notes=[*notes, *_notes(annotations)],
    )


def _notes(annotations: list[dict]) -> list[str]:
    """What is unusual about the annotations as a whole, once each of them has been checked."""
    notes = []
    unusable = sum(_is_unusable_area(annotation.get("area")) for annotation in annotations)
    if unusable:
        notes.append(
            f'{unusable} of {len(annotations)} boxes have an impossible "area"; width x height is used instead'
        )
    masks = sum(map(_has_mask_alone, annotations))
    if masks:
        notes.append(f"{masks} of {len(annotations)} annotations have a mask and no box; the box of the mask is used")
    boxes = [annotation["bbox"] for annotation in annotations if annotation.get("bbox")]
    if boxes and max(map(max, boxes)) <= 1:
        notes.append("all boxes lie between 0 and 1: they look normalised, but COCO's format wants pixels")
    return notes


def _has_mask_alone(annotation: dict) -> bool:
    return annotation.get("bbox") in (None, []) and bool(annotation.get("segmentation"))


def _grouping_category(listed: list[dict], annotations: list[dict]) -> dict | None:
    """The category that has no boxes and is the supercategory of all the others, if there is one."""
    used = {str(annotation.get("category_id")).removesuffix(".0") for annotation in annotations}
    for category in listed:
        others = [other for other in listed if other is not category]
        groups = others and all(other.get("supercategory") == category.get("name") for other in others)
        if groups and str(category.get("id")).removesuffix(".0") not in used:
            return category
    return None


def _is_unusable_area(area: float | None) -> bool:
    """Whether an "area" is given that no object can have."""
    return area is not None and (isinstance(area, bool) or area <= 0)


def _read_json(path: Path) -> dict:
    try:
        content = read_json(path)
    except NotJson as error:
        raise DataError(f"{path}: {error}") from None
    except Unreadable as error:
        raise DataError(f"{path}: cannot read this annotation file ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: not COCO annotations: the JSON holds a {type(content).__name__}, not an object")
    return content


def _list(content: dict, key: str, path: Path) -> list[dict]:
    if key not in content:
        raise DataError(f'{path}: not COCO annotations: no "{key}" (COCO has images, annotations and categories)')
    entries = content[key]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f'{path}: "{key}" must be a list of objects')
    if not entries and key != "annotations":
        raise DataError(f'{path}: "{key}" is empty')
    return entries


def _integer(entry: dict, key: str, where: str, default: int | None = None) -> int:
    value = entry.get(key, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise DataError(f'{where}: "{key}" must be an integer, not {reprlib.repr(value)}')
    return int(value)


def _string(entry: dict, key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value or "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(f'{where}: "{key}" must be a text, not {reprlib.repr(value)}')
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and -_LARGEST_NUMBER < value < _LARGEST_NUMBER


def _categories(listed: list[dict], path: Path, fixed: list[dict] | None) -> list[dict]:
    """The categories of the file with their labels (see :func:`read_coco`)."""
    names: dict[int, str] = {}
    for number, entry in enumerate(listed):
        where = f"{path}: categories[{number}]"
        category_id = _integer(entry, "id", where)
        if category_id in names:
            raise DataError(f"{where}: the id {category_id} is given twice")
        names[category_id] = _string(entry, "name", where)
    if len(set(names.values())) < len(names):
        double = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise DataError(f'{path}: two categories have the name "{double}"; give each its own')
    if fixed is not None:
        known = {category["id"]: category["name"] for category in fixed}
        for category_id, name in names.items():
            if known.get(category_id, name) != name:
                raise DataError(
                    f'{path}: category {category_id} is "{name}" here and "{known[category_id]}" in the training data; '
                    "use the same ids and names in both"
                )
        return fixed
    raw_ids = names == COCO_CATEGORIES
    return [
        {"label": category_id if raw_ids else position, "id": category_id, "name": names[category_id]}
        for position, category_id in enumerate(sorted(names))
    ]


def _add_images(
    builder: RecordBuilder, images: list[dict], images_dir: Path, path: Path, check_files: bool
) -> tuple[dict[int, int], list[str]]:
    """Add the images in order of id; return their indices by id, and notes on what is unusual."""
    by_id: dict[int, tuple[str, tuple[int, int] | None]] = {}
    for number, entry in enumerate(images):
        where = f"{path}: images[{number}]"
        image_id = _integer(entry, "id", where)
        if image_id in by_id:
            raise DataError(f"{where}: the id {image_id} is given twice")
        by_id[image_id] = (_string(entry, "file_name", where), _size(entry, where))
    by_id = dict(sorted(by_id.items()))
    names = ImageNames(images_dir)
    found = names.find_all([name for name, _ in by_id.values()])
    if check_files:
        _refuse_missing([name for (name, _), file in zip(by_id.values(), found, strict=True) if file is None],
                        len(found), images_dir, path)  # fmt: skip
    notes, index_of_id, measured = [], {}, 0
    for (image_id, (name, size)), file in zip(by_id.items(), found, strict=True):
        if size is None:
            size = measured_size(images_dir / (file or name))
            measured += 1
        index_of_id[image_id] = builder.add_image(file or name, image_id, size)
    if names.otherwise:
        notes.append(f"{names.otherwise} images have another name on the disk ({names.example})")
    if measured:
        notes.append(f"{measured} of {len(found)} images have no width and height; those of the image files are used")
    return index_of_id, notes


def _size(entry: dict, where: str) -> tuple[int, int] | None:
    """(width, height) as annotated; None: nothing is, or 0."""
    sides = [0 if entry.get(key) is None else _integer(entry, key, where) for key in ("width", "height")]
    if min(sides) < 0 or max(sides) >= _LARGEST_NUMBER:
        raise DataError(f"{where}: width and height must be positive, not {sides[0]} and {sides[1]}")
    return (sides[0], sides[1]) if min(sides) > 0 else None


def _refuse_missing(missing: list[str], total: int, images_dir: Path, path: Path) -> None:
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of its {total} images {'is' if len(missing) == 1 else 'are'} missing in "
            f"{images_dir}: {some(missing, len(missing))}; add them, or train without them by --damaged skip"
        )


def _add_annotation(
    builder: RecordBuilder, entry: dict, index_of_id: dict[int, int], label_of_id: dict[int, int], where: str
) -> None:
    image_id, category_id = _integer(entry, "image_id", where), _integer(entry, "category_id", where)
    if image_id not in index_of_id:
        raise DataError(f'{where}: no image has the id {image_id}; add it to "images" or remove the annotation')
    if category_id not in label_of_id:
        raise DataError(
            f"{where}: category {category_id} is not one of {reprlib.repr(sorted(label_of_id))}, the ids of the "
            "training data; correct it, or add the category there"
        )
    bbox, area = entry.get("bbox"), entry.get("area")
    if _has_mask_alone(entry):
        try:
            bbox = list(box_of_mask(entry["segmentation"], builder.size(index_of_id[image_id])))
        except ValueError as error:
            raise DataError(f'{where}: no "bbox", and its "segmentation" cannot be used ({error})') from None
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(value) for value in bbox)):
        raise DataError(f'{where}: "bbox" must be four finite numbers [x, y, width, height], not {reprlib.repr(bbox)}')
    if area is not None and not _is_number(area):
        raise DataError(f'{where}: "area" must be a finite number, not {reprlib.repr(area)}')
    crowd = 0 if entry.get("iscrowd") is None else _integer(entry, "iscrowd", where)
    if crowd not in (0, 1):
        raise DataError(f'{where}: "iscrowd" must be 0 or 1, not {crowd}')
    x, y, width, height = bbox
    builder.add_box(
        index_of_id[image_id],
        (x, y, x + width, y + height),
        label_of_id[category_id],
        degenerate=width <= 0 or height <= 0,
        area=None if _is_unusable_area(area) else area,
        crowd=crowd == 1,
    )


def _read_labelled(args: argparse.Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    annotations, images = _typed_files(args, split)
    if annotations is None:
        annotations, images = coco_paths(args.data_path, split)
    return read_coco(images, annotations, categories, check_files=args.damaged == "error")


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    usual = coco_image_folder(args.data_path, split)
    if usual is not None:
        return UnlabelledImages.from_folder(usual, output_of_training(args))
    annotations, images = coco_paths(args.data_path, split)
    return UnlabelledImages(images, read_coco(images, annotations).relative_paths())


def _find(args: argparse.Namespace, tree: Tree | None) -> Layout | None:
    typed = {split: file for split in ("train", "val") if (file := _typed_files(args, split)[0]) is not None}
    places = None if tree is None or len(typed) == 2 else coco_places(tree)
    found = {split: _below(tree.root, place.annotations) for split, place in places.splits.items()} if places else {}
    title = places.title if places and not typed else "COCO"
    return Layout(title=title, splits=found | typed) if found or typed else None


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _typed_files(args: argparse.Namespace, split: str) -> tuple[str | None, str | None]:
    """Annotation file and image folder that the flags of ``split`` name, or None."""
    return getattr(args, f"{split}_ann"), getattr(args, f"{split}_images")


def _check(args: argparse.Namespace, splits: Sequence[str]) -> None:
    for split in ("train", "val"):
        annotations, images = _typed_files(args, split)
        if (annotations is None) != (images is None):
            raise UserError(f"--{split}_ann FILE and --{split}_images DIR go together: pass both or neither")
        if annotations is None and args.data_path is None and split in splits:
            if split == "val" and args.train_ann is not None and "train" in splits:
                continue  # some of the training images are held out
            raise UserError(f"pass --data_path DIR, or --{split}_ann FILE with --{split}_images DIR")


def _file_flags(split: str) -> tuple[Flag, Flag]:
    return (
        Flag(name=f"{split}_ann", help="annotations in COCO's format", options={"metavar": "FILE"}, is_place=True),
        Flag(name=f"{split}_images", help="the images they name", options={"metavar": "DIR"}, is_place=True),
    )


COCO = DataRecord(
    title="COCO format",
    read_labelled=_read_labelled,
    read_unlabelled=_read_unlabelled,
    find=_find,
    looks=LOOKS,
    flags={"finetune": (*_file_flags("train"), *_file_flags("val"))},
    check=_check,
    scales=DETECTION_SCALES,
    max_size=1333,
    max_steps=120_000,
    pretraining={"siamese": {"feature_loss_coef": 3.0, "global_loss_coef": 0.3}, "detreg": {"epochs": 50}},
)
