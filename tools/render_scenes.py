"""Render a small labelled data set of photo-like scenes, for the demo and for tests.

    python tools/render_scenes.py OUT --num_train 96 --num_val 150 --num_unlabelled 800

The pictures show one or two objects of three categories (see tools/scenes/). The same arguments give the same bytes
(with the same versions of numpy and Pillow). Objects that are hidden too much are left out of the scene, not merely
out of the annotations: see :func:`tools.scenes.compose.render_scene`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.scenes.compose import Scene, render_scene, visible_box
from tools.scenes.objects import CATEGORIES
from util.errors import UserError
from util.parser import Parser
from util.script import run_script

ASPECT_RATIOS = (1.0, 5 / 4, 4 / 3)  # of the long to the short side
CATEGORY_IDS = {name: index for index, name in enumerate(CATEGORIES, start=1)}
SPLITS = ("train", "val", "unlabelled")


def render_data_set(
    out: str | Path, num_train: int, num_val: int, num_unlabelled: int, size: int = 192, seed: int = 0
) -> None:
    """Write a data set in COCO's layout, and a folder of unlabelled pictures.

    ``annotations/instances_{train,val}.json``, ``train/``, ``val/``, ``unlabelled/``. The folder is never half written.
    Boxes (xywh, pixels) and segmentations (uncompressed run lengths) cover the visible part of each object.

    Args:
        out: the folder to make, with its parents.
        num_train: pictures with annotations to train on.
        num_val: pictures with annotations to evaluate on.
        num_unlabelled: pictures without annotations.
        size: short side of the pictures in pixels.
        seed: each picture depends only on the seed, its split and its number.

    Raises:
        UserError: ``out`` exists already, or a number is too small.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: remove it or choose another folder")
    counts = dict(zip(SPLITS, (num_train, num_val, num_unlabelled), strict=True))
    for split, count in counts.items():
        if count < 1:
            raise UserError(f"--num_{split} {count}: must be at least 1")
    if size < 64:
        raise UserError(f"--size {size}: must be at least 64; objects cannot be told apart in smaller pictures")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / "data"
        (folder / "annotations").mkdir(parents=True)
        for split, count in counts.items():
            annotations = _render_split(folder / split, split, count, size, seed)
            if split != "unlabelled":
                file = folder / "annotations" / f"instances_{split}.json"
                file.write_text(json.dumps(annotations) + "\n")
        folder.rename(out)


def _render_split(folder: Path, split: str, count: int, size: int, seed: int) -> dict[str, Any]:
    """Write the pictures of one split; return its annotations as a dictionary in COCO's format."""
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(count), desc=f"rendering {split}", unit="image", disable=None):
        rng = np.random.default_rng((seed, SPLITS.index(split), index))
        scene = render_scene(rng, _draw_shape(rng, size))
        name = f"{index:06d}.jpg"
        scene.image.save(folder / name, quality=int(rng.integers(80, 96)))
        width, height = scene.image.size
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        annotations += _annotations(scene, image_id=index + 1, first_id=len(annotations) + 1)
    categories = [{"id": i, "name": name, "supercategory": "object"} for name, i in CATEGORY_IDS.items()]
    info = {"description": f"rendered scenes, {split}, size {size}, seed {seed}"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _draw_shape(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """(h, w) of a picture, upright or wide."""
    long_side = round(size * float(rng.choice(ASPECT_RATIOS)))
    return (size, long_side) if rng.uniform() < 0.7 else (long_side, size)


def _annotations(scene: Scene, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    records = []
    for number, (name, mask) in enumerate(zip(scene.names, scene.masks, strict=True)):
        left, top, right, bottom = visible_box(mask)
        records.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": CATEGORY_IDS[name],
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                "iscrowd": 0,
            }
        )
    return records


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of ``mask`` [h, w] bool: column by column, runs of False and True in turn."""
    flat = np.concatenate([[False], mask.ravel(order="F")])  # the first run counts False, and may have length 0
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--num_train", type=int, default=96)
    parser.add_argument("--num_val", type=int, default=150)
    parser.add_argument("--num_unlabelled", type=int, default=800)
    parser.add_argument("--size", type=int, default=192, help="short side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    render_data_set(**vars(args))


if __name__ == "__main__":
    run_script(main)
