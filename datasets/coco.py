"""Detection data sets in COCO's format: a folder of images and one JSON file of annotations."""

from __future__ import annotations

import argparse
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.image_folder import UnlabelledImages
from datasets.records import DetectionRecords, RecordBuilder
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
    """Annotation file and image folder of ``split`` ("train" or "val") in COCO's usual layout.

    Raises:
        DataError: not found, neither with nor without the year; the message lists what was looked for.
    """
    tried = []
    for name in (f"{split}2017", split):
        annotations, images = Path(data_path) / "annotations" / f"instances_{name}.json", Path(data_path) / name
        if annotations.is_file() and images.is_dir():
            return annotations, images
        tried.append(f"annotations/instances_{name}.json beside {name}/")
    raise DataError(
        f"{data_path}: no COCO data set here (looked for {' and '.join(tried)}); "
        f"pass --{split}_ann FILE --{split}_images DIR"
    )


def coco_image_folder(data_path: str | Path, split: str) -> Path:
    """Image folder of ``split`` ("train" or "val") in COCO's usual layout; annotations are not needed.

    Raises:
        DataError: not found, neither with nor without the year.
    """
    for name in (f"{split}2017", split):
        if (Path(data_path) / name).is_dir():
            return Path(data_path) / name
    raise DataError(
        f"{data_path}: no images here (looked for {split}2017/ and {split}/); for any other folder use "
        "--dataset_file imagefolder --data_path DIR"
    )


def read_coco(
    images_dir: str | Path, ann_file: str | Path, categories: list[dict] | None = None, *, check_files: bool = True
) -> DetectionRecords:
    """Read and check an annotation file.

    Labels are the raw category ids if the categories are exactly COCO's 80 (as in the public checkpoints), else 0..K-1
    in order of id. ``categories``, for example those of the training set, fix the labels instead; other categories are
    then an error. Images come in order of id, including those without boxes.

    An "area" that is 0, negative or ``true`` is replaced by the area of the box.

    Args:
        check_files: raise an error if image files are missing.

    Raises:
        DataError: no such file or folder, not JSON, missing or malformed entries, numbers that are not finite, unknown
            image or category ids, missing image files; the message names the file and the entry.
    """
    images_dir, ann_file = Path(images_dir), Path(ann_file)
    content = _read_json(ann_file)
    images, annotations, listed = (_list(content, key, ann_file) for key in ("images", "annotations", "categories"))
    fixed, categories = categories, _categories(listed, ann_file, categories)
    label_of_id = {category["id"]: category["label"] for category in categories}
    if len(categories) > max(MOST_CLASSES_WITHOUT_BOXES, len(annotations)) and fixed is None:
        raise DataError(
            f"{ann_file}: {len(categories)} categories for {len(annotations)} boxes are too many: the class head alone "
            'would fill the memory; list in "categories" only those that occur'
        )

    builder = RecordBuilder()
    index_of_id = _add_images(builder, images, ann_file)
    for number, annotation in enumerate(annotations):
        _add_annotation(builder, annotation, index_of_id, label_of_id, f"{ann_file}: annotations[{number}]")
    records = builder.pack(
        root=images_dir,
        source=str(ann_file),
        metric="coco",
        categories=categories,
        place=lambda n, image: f"annotation {annotations[n].get('id')} of {builder.path(image)}",
        notes=_notes(annotations),
    )
    if check_files:
        _check_image_files(records, ann_file)
    return records


def _notes(annotations: list[dict]) -> list[str]:
    """What is unusual about the annotations as a whole, once each of them has been checked."""
    notes = []
    unusable = sum(_is_unusable_area(annotation.get("area")) for annotation in annotations)
    if unusable:
        notes.append(f'{unusable} of {len(annotations)} boxes have an "area" that cannot be; width * height is used')
    if annotations and all(max(annotation["bbox"]) <= 1 for annotation in annotations):
        notes.append("all boxes lie between 0 and 1: they look normalised, but COCO's format wants pixels")
    return notes


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
                    f'{path}: category {category_id} "{name}" is not one that the model was trained with '
                    f"({reprlib.repr(known)})"
                )
        return fixed
    raw_ids = names == COCO_CATEGORIES
    return [
        {"label": category_id if raw_ids else position, "id": category_id, "name": names[category_id]}
        for position, category_id in enumerate(sorted(names))
    ]


def _add_images(builder: RecordBuilder, images: list[dict], path: Path) -> dict[int, int]:
    """Add the images in order of id; return their indices by id."""
    by_id: dict[int, tuple[str, tuple[int, int]]] = {}
    for number, entry in enumerate(images):
        where = f"{path}: images[{number}]"
        image_id = _integer(entry, "id", where)
        if image_id in by_id:
            raise DataError(f"{where}: the id {image_id} is given twice")
        size = (_integer(entry, "width", where), _integer(entry, "height", where))
        if not (min(size) > 0 and max(size) < _LARGEST_NUMBER):
            raise DataError(f"{where}: width and height must be positive, not {size[0]} and {size[1]}")
        by_id[image_id] = (_string(entry, "file_name", where), size)
    return {image_id: builder.add_image(name, image_id, size) for image_id, (name, size) in sorted(by_id.items())}


def _add_annotation(
    builder: RecordBuilder, entry: dict, index_of_id: dict[int, int], label_of_id: dict[int, int], where: str
) -> None:
    image_id, category_id = _integer(entry, "image_id", where), _integer(entry, "category_id", where)
    if image_id not in index_of_id:
        raise DataError(f'{where}: no image has the id {image_id}; add it to "images" or remove the annotation')
    if category_id not in label_of_id:
        raise DataError(f"{where}: category {category_id} is not one of {reprlib.repr(sorted(label_of_id))}")
    bbox, area = entry.get("bbox"), entry.get("area")
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


def _check_image_files(records: DetectionRecords, ann_file: Path) -> None:
    """Look for the image files. Listing each folder once is faster than asking for each file."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in records.paths:
        folder, name = os.path.split(os.fsdecode(path))
        if folder not in listings:
            place = records.root / folder
            listings[folder] = set(os.listdir(place)) if place.is_dir() else set()
        if name not in listings[folder]:
            missing.append(os.path.join(folder, name))
    if missing:
        raise DataError(
            f"{ann_file}: {len(missing)} of its {len(records)} images are missing in {records.root}, "
            f"the first is {missing[0]}; check that this is the right folder"
        )


def _read_labelled(args: argparse.Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    annotations, images = _typed_files(args, split)
    if annotations is None:
        annotations, images = coco_paths(args.data_path, split)
    return read_coco(images, annotations, categories, check_files=args.damaged == "error")


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    return UnlabelledImages.from_folder(coco_image_folder(args.data_path, split))


def _typed_files(args: argparse.Namespace, split: str) -> tuple[str | None, str | None]:
    """Annotation file and image folder that the flags of ``split`` name, or None."""
    return getattr(args, f"{split}_ann"), getattr(args, f"{split}_images")


def _check(args: argparse.Namespace, splits: Sequence[str]) -> None:
    for split in ("train", "val"):
        annotations, images = _typed_files(args, split)
        if (annotations is None) != (images is None):
            raise UserError(f"--{split}_ann FILE and --{split}_images DIR go together: pass both or neither")
        if annotations is None and args.data_path is None and split in splits:
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
    flags={"finetune": (*_file_flags("train"), *_file_flags("val"))},
    check=_check,
    scales=DETECTION_SCALES,
    max_size=1333,
    max_steps=120_000,
    pretraining={"siamese": {"feature_loss_coef": 3.0, "global_loss_coef": 0.3}, "detreg": {"epochs": 50}},
)
