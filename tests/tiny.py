"""A data set and flags so small that tests can run whole scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

DETECTOR = (
    "--backbone resnet18 --enc_layers 1 --dec_layers 2 --hidden_dim 32 --nheads 4 --dim_feedforward 64 --num_queries 10"
).split()
SMALL_DETECTOR = ["timm:test_resnet" if word == "resnet18" else word for word in DETECTOR]
"""Half a million parameters, so that many checkpoints are written at once; resnet18's take 130 MB each."""

BOTH = "--scales 64 80 --max_size 110 --device cpu --num_workers 0 --batch_size 2 --log_every 1 --seed 3".split()
"""Flags of both scripts."""

COMMON = [*BOTH, "--recipe", "paper"]
"""Finetuning with the paper's recipe: for so few images there is another one."""

PRETRAIN = [*BOTH, *"--num_regions 5 --crop_size 32".split()]


def write_data_set(root: Path, num_images: int = 10) -> Path:
    """Noise images with coloured rectangles in COCO's format, train = val; returns ``root``."""
    rng = np.random.default_rng(0)
    annotations, images = [], []
    for index in range(num_images):
        width, height = (int(side) for side in rng.integers(80, 130, 2))
        pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        for category in rng.integers(1, 3, 2).tolist():
            x, y, w, h = (int(value) for value in (*rng.integers(5, 40, 2), *rng.integers(20, 35, 2)))
            pixels[y : y + h, x : x + w, category] = 250
            annotations.append({
                "id": len(annotations) + 1, "image_id": index + 1, "category_id": 10 * category,
                "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
            })  # fmt: skip
        images.append({"id": index + 1, "file_name": f"{index}.png", "width": width, "height": height})
        for split in ("train", "val"):
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
    categories = [{"id": 10, "name": "square"}, {"id": 20, "name": "brick"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path, coco_root: Path) -> Path:
    """The training images of :func:`write_data_set` as a folder in VOC's format, every third object difficult."""
    content = json.loads((coco_root / "annotations" / "instances_train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    stems = []
    for image in content["images"]:
        stem = Path(image["file_name"]).stem
        stems.append(stem)
        shutil.copy(coco_root / "train" / image["file_name"], root / "JPEGImages")
        objects = ""
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                box = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                difficult = int(annotation["id"] % 3 == 0)
                objects += f"<object><name>{names[annotation['category_id']]}</name>"
                objects += f"<difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{image['file_name']}</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    for image_set in ("trainval", "test"):
        (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(stems))
    return root
