"""One small data set, written in each of the usual layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["brick", "square"]


@dataclass(frozen=True)
class Picture:
    """An image and its objects.

    Attributes:
        stem: of its file.
        size: (width, height).
        objects: (label, x0, y0, x1, y1) in whole pixels.
        source: a file to copy; None: noise.
    """

    stem: str
    size: tuple[int, int]
    objects: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    source: Path | None = None

    @property
    def file(self) -> str:
        return self.stem + (self.source.suffix if self.source else ".png")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.source is not None:
            shutil.copy(self.source, folder / self.file)
            return
        pixels = np.random.default_rng(len(self.stem)).integers(0, 256, (self.size[1], self.size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / self.file)


Splits = dict[str, list[Picture]]

SMALL: Splits = {
    "train": [
        Picture("a", (40, 30), [(0, 1, 2, 11, 12), (1, 5, 6, 20, 26)]),
        Picture("b", (32, 48)),  # nothing on it
        Picture("c.1", (50, 40), [(1, 0, 0, 50, 40)]),
    ],
    "val": [
        Picture("d", (44, 44), [(1, 3, 3, 30, 31), (0, 10, 10, 12, 12)]),
        Picture("e", (30, 30), [(0, 4, 4, 9, 19)]),
    ],
}


def coco_content(pictures: list[Picture], *, with_boxes: bool = True, grouping: bool = False) -> dict:
    """COCO annotations; also with masks instead of boxes, or with a category that groups the others (Roboflow)."""
    images, annotations = [], []
    for number, picture in enumerate(pictures):
        width, height = picture.size
        images.append({"id": number, "file_name": picture.file, "width": width, "height": height})
        for label, x0, y0, x1, y1 in picture.objects:
            entry = {"id": len(annotations), "image_id": number, "category_id": label + 1}
            entry["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            if with_boxes:
                entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            annotations.append(entry)
    categories = [{"id": label + 1, "name": name, "supercategory": "things"} for label, name in enumerate(NAMES)]
    if grouping:
        categories.insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, splits: Splits, **options: bool) -> None:
    """``annotations/instances_train.json`` beside ``train/``."""
    (root / "annotations").mkdir(parents=True)
    for split, pictures in splits.items():
        for picture in pictures:
            picture.save(root / split)
        content = coco_content(pictures, **options)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_coco_masks(root: Path, splits: Splits) -> None:
    """COCO's layout, masks without boxes."""
    write_coco(root, splits, with_boxes=False)


def write_roboflow(root: Path, splits: Splits) -> None:
    """``train/_annotations.coco.json`` among the images, ``valid/`` for validation, and the grouping category."""
    for split, pictures in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        for picture in pictures:
            picture.save(folder)
        (folder / "_annotations.coco.json").write_text(json.dumps(coco_content(pictures, grouping=True)))


def write_coco_anywhere(root: Path, splits: Splits) -> None:
    """Annotations of any name in one place, all images in another."""
    (root / "labels_v2").mkdir(parents=True)
    for split, pictures in splits.items():
        for picture in pictures:
            picture.save(root / "data" / "photos")
        (root / "labels_v2" / f"my_{split}_set.json").write_text(json.dumps(coco_content(pictures)))


def voc_xml(picture: Picture) -> str:
    """The annotation of a picture; pixels count from 1, the last one included."""
    width, height = picture.size
    text = (
        f"<annotation><filename>{picture.file}</filename><size><width>{width}</width><height>{height}</height></size>"
    )
    for label, x0, y0, x1, y1 in picture.objects:
        text += f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        text += f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
    return text + "</annotation>"


def _write_xml(folder: Path, picture: Picture) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{picture.stem}.xml").write_text(voc_xml(picture))


def write_voc(root: Path, splits: Splits) -> None:
    """The devkit's layout."""
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, pictures in splits.items():
        for picture in pictures:
            picture.save(root / "JPEGImages")
            _write_xml(root / "Annotations", picture)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(picture.stem for picture in pictures))


def write_voc_beside(root: Path, splits: Splits) -> None:
    """XML files beside the images, a folder for each split."""
    for split, pictures in splits.items():
        for picture in pictures:
            picture.save(root / {"val": "valid"}.get(split, split))
            _write_xml(root / {"val": "valid"}.get(split, split), picture)


def write_voc_folders(root: Path, splits: Splits) -> None:
    """``images/`` and ``annots/``, a folder for each split in both."""
    for split, pictures in splits.items():
        for picture in pictures:
            picture.save(root / "images" / split)
            _write_xml(root / "annots" / split, picture)


def yolo_text(picture: Picture, *, polygons: bool = False) -> str:
    """A line for each object."""
    width, height = picture.size
    lines = []
    for label, x0, y0, x1, y1 in picture.objects:
        box = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
        corners = [x0 / width, y0 / height, x1 / width, y0 / height, x1 / width, y1 / height, x0 / width, y1 / height]
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in (corners if polygons else box))]))
    return "\n".join(lines)


def _write_label(folder: Path, picture: Picture, **options: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if picture.objects:  # no file: nothing on it
        (folder / f"{picture.stem}.txt").write_text(yolo_text(picture, **options))


def write_yolo(root: Path, splits: Splits) -> None:
    """Ultralytics' own: ``images/train`` and ``labels/train``, data.yaml with the path of another machine."""
    for split, pictures in splits.items():
        for picture in pictures:
            picture.save(root / "images" / split)
            _write_label(root / "labels" / split, picture)
    text = "path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames:\n  0: brick\n  1: square\n"
    (root / "data.yaml").write_text(text)


def write_yolo_roboflow(root: Path, splits: Splits) -> None:
    """Roboflow's export for YOLO: ``train/images`` and ``train/labels``, a data.yaml that leads beside its folder."""
    for split, pictures in splits.items():
        folder = root / {"val": "valid"}.get(split, split)
        for picture in pictures:
            picture.save(folder / "images")
            _write_label(folder / "labels", picture, polygons=True)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['brick', 'square']\n"
    )


def write_yolo_folders(root: Path, splits: Splits) -> None:
    """No data.yaml: folders, and classes.txt among the labels."""
    for split, pictures in splits.items():
        for picture in pictures:
            picture.save(root / "images" / split)
            _write_label(root / "labels" / split, picture)
    (root / "labels" / "classes.txt").write_text("\n".join(NAMES))


LAYOUTS: dict[str, tuple[str, Callable[[Path, Splits], None]]] = {
    "coco": ("coco", write_coco),
    "coco masks": ("coco", write_coco_masks),
    "roboflow": ("coco", write_roboflow),
    "coco anywhere": ("coco", write_coco_anywhere),
    "voc": ("voc", write_voc),
    "voc beside": ("voc_loose", write_voc_beside),
    "voc folders": ("voc_loose", write_voc_folders),
    "yolo": ("yolo", write_yolo),
    "yolo roboflow": ("yolo", write_yolo_roboflow),
    "yolo folders": ("yolo", write_yolo_folders),
}
"""Name -> the format that recognises it, and what writes it."""
