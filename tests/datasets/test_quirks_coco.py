"""Quirks of COCO annotations as tools write them, and of Roboflow's export. In brackets: a public report."""

import codecs
import unicodedata
from pathlib import Path

import pytest

from tests.datasets.layouts import SMALL, write_coco, write_roboflow
from tests.datasets.quirks import Quirk, hold, in_json, read, renamed, several, written

ANN = "annotations/instances_train.json"


def images(**changes):
    """A change of every image entry; a function gets the old value."""

    def change(content):
        for entry in content["images"]:
            entry.update({key: new(entry[key]) if callable(new) else new for key, new in changes.items()})

    return in_json(ANN, change)


def annotations(change):
    return in_json(ANN, lambda content: [change(entry) for entry in content["annotations"]])


def accented(root: Path) -> None:
    """Composed in the annotations, decomposed on the disk, as macOS unpacks archives."""
    name = "ä.png"
    in_json(ANN, lambda content: content["images"][0].update(file_name=unicodedata.normalize("NFC", name)))(root)
    (root / "train" / "a.png").rename(root / "train" / unicodedata.normalize("NFD", name))


COCO = {
    # detectron2 #2406, pylabel #33: hand-made files leave them out
    "no width and height": Quirk(
        in_json(ANN, lambda content: [entry.pop("width") and entry.pop("height") for entry in content["images"]]),
        told="3 of 3 images have no width and height; those of the image files are used",
        check=lambda records: records.sizes.tolist() == [[40, 30], [32, 48], [50, 40]],
    ),
    "width and height 0": Quirk(images(width=0, height=0), told="3 of 3 images have no width and height"),
    # HumanSignal/label-studio-converter #139
    "the path of another system": Quirk(
        images(file_name=lambda name: f"images\\1/{name}"), told="3 images have another name on the disk"
    ),
    # HumanSignal/label-studio #7294
    "the path of another machine": Quirk(
        images(file_name=lambda name: f"..\\..\\label-studio\\media\\upload\\4\\{name}"),
        told="'..\\\\..\\\\label-studio",
    ),
    "suffixes in other letter case": Quirk(
        several(renamed("train/a.png", "train/a.PNG"), renamed("train/b.png", "train/B.Png")),
        boxes={"a": 2, "B": 0, "c.1": 1},
        told="2 images have another name on the disk",
    ),
    "accents composed otherwise": Quirk(
        accented, boxes={unicodedata.normalize("NFD", "ä"): 2, "b": 0, "c.1": 1}, told="1 images have another name"
    ),
    "ids that are texts": Quirk(
        several(images(id=str), annotations(lambda entry: entry.update(image_id=str(entry["image_id"]))))
    ),
    # matterport/Mask_RCNN #1439
    "annotations without an id": Quirk(annotations(lambda entry: entry.pop("id"))),
    "one id for all annotations, as merging leaves it": Quirk(annotations(lambda entry: entry.update(id=1))),
    # voxel51/fiftyone #2428, HumanSignal/label-studio #737
    "categories that count from 0": Quirk(
        several(
            in_json(ANN, lambda content: [entry.update(id=entry["id"] - 1) for entry in content["categories"]]),
            annotations(lambda entry: entry.update(category_id=entry["category_id"] - 1)),
        ),
        check=lambda records: records.labels.tolist() == [0, 1, 1],
    ),
    "numbers with a decimal point": Quirk(
        annotations(lambda entry: entry.update(image_id=float(entry["image_id"]), category_id=float(1))),
        check=lambda records: records.labels.tolist() == [0, 0, 0],
    ),
    "a mask and an empty box": Quirk(
        annotations(lambda entry: entry.update(bbox=[])), told="3 of 3 annotations have a mask and no box"
    ),
    "boxes that reach beyond the image by rounding": Quirk(
        annotations(lambda entry: entry.update(bbox=[-0.4, -0.4, 20.5, 20.5])), told="3 clipped to the image"
    ),
    "boxes of no width": Quirk(
        annotations(lambda entry: entry.update(bbox=[3, 3, 0, 5])),
        boxes={"a": 0, "b": 0, "c.1": 0},
        told="3 of 3 boxes",
    ),
    "a byte order mark": Quirk(
        lambda root: (root / ANN).write_bytes(codecs.BOM_UTF8 + (root / ANN).read_bytes()),
    ),
    # facebookresearch/detectron2 #946, microsoft/SoftTeacher #105
    "no categories": Quirk(
        in_json(ANN, lambda content: content.pop("categories")), error='ann.*json: .*no "categories"'
    ),
    "a missing image": Quirk(
        lambda root: (root / "train" / "b.png").unlink(), error=r"1 of its 3 images is missing in .*: b\.png; .*skip"
    ),
}

ROBOFLOW_ANN = "train/_annotations.coco.json"


def categories(*listed):
    entries = [dict(zip(("id", "name", "supercategory"), entry, strict=True)) for entry in listed]
    return in_json(ROBOFLOW_ANN, lambda content: content.update(categories=entries))


def all_of(category_id):
    def change(content):
        for entry in content["annotations"]:
            entry["category_id"] = category_id

    return in_json(ROBOFLOW_ANN, change)


GROUPED = 'the category "things" has no boxes and only groups the others: it is left out'


def named(*names):
    return lambda records: [category["name"] for category in records.categories] == list(names)


def into_one_folder(root: Path) -> None:
    for path in list((root / "train").iterdir()):
        path.rename(root / path.name)
    for path in list((root / "valid").iterdir()):
        path.unlink()
    (root / "train").rmdir(), (root / "valid").rmdir()


ROBOFLOW = {
    # roboflow/rf-detr #1303, roboflow/roboflow-100-benchmark #45
    "a category that groups the others": Quirk(lambda root: None, told=GROUPED, check=named("brick", "square")),
    "the group has the name of the only class": Quirk(
        several(categories((0, "brick", "none"), (1, "brick", "brick")), all_of(1)),
        told='the category "brick" has no boxes',
        check=named("brick"),
    ),
    # roboflow/rf-detr #1303: "annotated parents keep their label"
    "a group with boxes of its own": Quirk(
        several(categories((0, "things", "none"), (1, "brick", "things"), (2, "square", "things")), all_of(0)),
        check=named("things", "brick", "square"),
    ),
    # roboflow/rf-detr #85
    "no group": Quirk(categories((1, "brick", "none"), (2, "square", "none")), check=named("brick", "square")),
    "a class without boxes is a class": Quirk(all_of(2), told=GROUPED, check=named("brick", "square")),
    "two groups are classes": Quirk(
        categories((0, "x", "none"), (1, "brick", "x"), (2, "square", "y"), (3, "y", "none")),
        check=named("x", "brick", "square", "y"),
    ),
    "read-me files beside": Quirk(
        several(written("README.roboflow.txt", "exported"), written("train/README.dataset.txt", "a b c d e")),
        told=GROUPED,
    ),
    "names with two suffixes": Quirk(
        several(
            renamed("train/a.png", "train/a_png.rf.0123.png"),
            in_json(ROBOFLOW_ANN, lambda content: content["images"][0].update(file_name="a_png.rf.0123.png")),
        ),
        boxes={"a_png.rf.0123": 2, "b": 0, "c.1": 1},
        told=GROUPED,
    ),
    "everything in one folder": Quirk(into_one_folder, told=GROUPED),
    "sizes as texts": Quirk(
        in_json(ROBOFLOW_ANN, lambda content: [e.update(width=str(e["width"])) for e in content["images"]]),
        told=GROUPED,
    ),
    # coad of Roboflow Universe names an image that is not there
    "a missing image": Quirk(
        lambda root: (root / "train" / "a.png").unlink(), error=r"1 of its 3 images is missing in .*: a\.png; .*skip"
    ),
    "an unknown category": Quirk(all_of(9), error=r"annotations\[0\]: category 9 is not one of \[1, 2\]"),
}


@pytest.mark.parametrize("name", COCO)
def test_coco(tmp_path, name):
    hold(tmp_path, write_coco, COCO[name])


@pytest.mark.parametrize("name", ROBOFLOW)
def test_roboflow(tmp_path, name):
    hold(tmp_path, write_roboflow, ROBOFLOW[name])


def test_a_missing_image_is_left_to_the_check_of_images(tmp_path):
    write_roboflow(tmp_path, SMALL)
    (tmp_path / "train" / "a.png").unlink()
    records = read(tmp_path, damaged="skip")
    assert [records.path(n).is_file() for n in range(3)] == [False, True, True]


def test_the_annotations_of_another_split_may_lack_the_group(tmp_path):
    write_roboflow(tmp_path, SMALL)
    in_json("valid/_annotations.coco.json", lambda content: content["categories"].pop(0))(tmp_path)
    assert read(tmp_path).categories == read(tmp_path, "val").categories
