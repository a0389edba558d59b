"""The report on a labelled data set, against numbers by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.datasets.layouts import SMALL, Picture, write_coco, write_voc_folders, write_yolo
from tests.datasets.quirks import in_json
from tools import check_data
from tools.checking.images import difference_hash
from util.errors import DataError, UserError


def check(folder, out, capsys, *argv) -> tuple[str, dict]:
    """What is printed, and the report."""
    check_data.main([str(folder), "--output_dir", str(out), "--num_workers", "0", *argv])
    return capsys.readouterr().out, json.loads((out / "report.json").read_text())


def doubts(report: dict, place: str) -> dict[str, tuple[int, list[str]]]:
    return {doubt["what"]: (doubt["count"], doubt["places"]) for doubt in report["doubtful"][place]}


def smooth(seed: int) -> Image.Image:
    """A picture without noise, as photographs are."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((200, 160), Image.Resampling.BICUBIC)


def test_counts(tmp_path, capsys):
    write_yolo(tmp_path / "data", SMALL)
    told, report = check(tmp_path / "data", tmp_path / "out", capsys)
    assert "YOLO (--dataset_file yolo)" in told
    assert "train: data.yaml: images/train/" in told
    rows = [line.split() for line in told.splitlines()]
    assert next(row for row in rows if row[:1] == ["train"])[:9] == ["train", "3", "1", "3", "1.0", "2", "2", "1", "0"]
    assert ["brick", "1", "1", "2", "2"] in rows
    assert ["square", "2", "2", "1", "1"] in rows
    assert report["splits"]["train"] == {
        "images": 3,
        "boxes": 3,
        "images_without_objects": 1,
        "images_by_class": {"brick": 1, "square": 2},
    }
    with Image.open(tmp_path / "out" / "contact_sheet.jpg") as sheet:
        # long sides of 320 pixels: 40x30, 32x48 and 50x40, with gaps of 6
        assert sheet.size == (320 + 213 + 320 + 4 * 6, 320 + 2 * 6)


def test_doubtful_entries(tmp_path, capsys):
    boxes = [(0, 1, 1, 3, 9), (1, 10, 10, 20, 20), (1, 10, 10, 20, 20), (0, 10, 10, 20, 20), (1, 0, 0, 50, 40)]
    pictures = [Picture("crowded", (50, 40), [(0, 5, 5, 10, 10)] * 101), Picture("odd", (50, 40), boxes)]
    pictures += [Picture("broken", (50, 40), [(0, 5, 5, 10, 10)]), Picture("gone", (50, 40))]
    write_coco(tmp_path / "data", {"train": pictures, "val": SMALL["val"][1:]})
    (tmp_path / "data" / "train" / "broken.png").write_bytes(b"text")
    (tmp_path / "data" / "train" / "gone.png").unlink()

    def change(content):
        content["categories"].append({"id": 3, "name": "Brick"})
        content["annotations"] += [
            {"id": 900, "image_id": 1, "category_id": 1, "bbox": [45, 35, 9, 9]},
            {"id": 901, "image_id": 1, "category_id": 1, "bbox": [45, 35, -9, 9]},
        ]

    in_json("annotations/instances_train.json", change)(tmp_path / "data")
    told, report = check(tmp_path / "data", tmp_path / "out", capsys)
    found = doubts(report, "train")
    assert found.pop("images that cannot be used (--damaged skip trains without them)") == (
        2,
        ["broken.png: not an image of any known format; replace or remove it", "gone.png: no such image file"],
    )
    assert {what: count for what, (count, _) in found.items()} == {
        "boxes without area inside their image: left out": 1,
        "boxes that reach beyond their image: clipped": 1,
        "boxes with a side below 4 pixels": 1,
        "boxes that cover their whole image": 1,
        "boxes that are there twice, with the same class": 101,
        "boxes that are there twice, with different classes": 1,
        "images with more than 100 objects: raise --num_queries": 1,
    }
    assert found["boxes that cover their whole image"][1] == ["square [0, 0, 50, 40] of odd.png"]
    assert "  1 boxes with a side below 4 pixels\n    brick [1, 1, 3, 9] of odd.png\n" in told
    assert doubts(report, "classes") == {
        "class names that differ in letter case or spaces alone": (1, ["brick / Brick"]),
        "classes without a box to train on": (1, ["Brick"]),
        "classes on fewer than 10 images to train on": (2, ["brick (3)", "square (1)"]),
        "classes that are not among the images to evaluate on": (2, ["square", "Brick"]),
    }


def test_images_in_both_splits(tmp_path, capsys):
    names = [f"{split}{number}" for split in ("train", "val") for number in range(4)]
    splits = {
        split: [Picture(name, (200, 160), [(0, 5, 5, 50, 50)]) for name in names if name.startswith(split)]
        for split in ("train", "val")
    }
    write_voc_folders(tmp_path / "data", splits)
    for seed, name in enumerate(names):
        smooth(seed).save(tmp_path / "data" / "images" / name[:-1] / f"{name}.png")
    again = smooth(2).resize((200, 160)).filter(ImageFilter.GaussianBlur(1))
    again.save(tmp_path / "data" / "images" / "val" / "val1.jpg", quality=40)
    (tmp_path / "data" / "images" / "val" / "val1.png").unlink()
    told, report = check(tmp_path / "data", tmp_path / "out", capsys)
    what = "images to evaluate on that look the same as one to train on"
    assert doubts(report, "train and val")[what] == (1, ["images/train/train2.png = images/val/val1.jpg"])
    assert f"  1 {what}\n    images/train/train2.png = images/val/val1.jpg" in told


def test_the_hash_of_a_ramp():
    """Brighter from left to right: every bit is 1; from top to bottom: none is."""
    ramp = Image.fromarray(np.tile(np.arange(0, 255, 5, dtype=np.uint8), (51, 1)))
    assert difference_hash(ramp).tolist() == [255] * 32
    assert difference_hash(ramp.rotate(90)).tolist() == [0] * 32


def test_errors(tmp_path):
    with pytest.raises(UserError, match="--data_path DIR is needed"):
        check_data.main([])
    with pytest.raises(DataError, match="no such folder"):
        check_data.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="--num_images 0"):
        check_data.main([str(tmp_path), "--num_images", "0"])


def test_nothing_is_changed(tmp_path, capsys):
    write_coco(tmp_path / "data", SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    check(tmp_path / "data", tmp_path / "out", capsys)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_coad(real_data: Path, tmp_path, capsys):
    told, report = check(real_data / "coad", tmp_path, capsys)
    assert "COCO, exported by Roboflow" in told
    (unusable,) = [places for what, (_, places) in doubts(report, "train").items() if "cannot be used" in what]
    assert unusable == ["Clases0000_jpg.rf.a968008492a77ec63e8325b8dc137706.jpg: no such image file"]
    assert report["splits"]["val"]["images_by_class"]["Pista"] == 28
