"""Quirks of YOLO data sets as they are found. In brackets: a public report."""

import shutil
from pathlib import Path

import pytest

from tests.datasets.layouts import SMALL, write_yolo, write_yolo_folders
from tests.datasets.quirks import WHOLE, Quirk, hold, in_text, read, several, written

A = "labels/train/a.txt"
YAML = "data.yaml"
PATHS = ("path: ../datasets/mine\ntrain: images/train\nval: images/val\n",)
LINES = ["0 0.150000 0.233333 0.250000 0.333333", "1 0.312500 0.533333 0.375000 0.666667"]


def write(root, splits):
    """As other layouts, but a file for the image without objects, too."""
    write_yolo(root, splits)
    written("labels/train/b.txt", "")(root)


def write_folders(root, splits):
    write_yolo_folders(root, splits)
    written("labels/train/b.txt", "")(root)


def lines(*texts):
    return written(A, "\n".join(texts))


def paths(text):
    return in_text(YAML, (*PATHS, text))


def named(*names):
    return lambda records: [category["name"] for category in records.categories] == list(names)


def same_boxes(records):
    return abs(records.boxes[:2] - [[1, 2, 11, 12], [5, 6, 20, 26]]).max() < 1e-3


def into_a_folder(root: Path) -> None:
    (root / "ds").mkdir()
    for name in ("images", "labels"):
        shutil.move(root / name, root / "ds" / name)


def listed(root: Path) -> None:
    names = [f"/content/mine/images/train/{picture.file}\r\n" for picture in SMALL["train"]]
    (root / "train.txt").write_text("".join(names))


YOLO = {
    # ultralytics/ultralytics #1170: --save-conf adds it
    "a score behind the box": Quirk(lines(*(f"{line} 0.87" for line in LINES)), check=same_boxes),
    # eriklindernoren/PyTorch-YOLOv3 #644
    "commas": Quirk(lines(*(line.replace(" ", ", ") for line in LINES)), check=same_boxes),
    # ultralytics/yolov5 #4370
    "classes with a decimal point": Quirk(lines("0.0" + LINES[0][1:], "1.000000" + LINES[1][1:]), check=same_boxes),
    "blank lines, tabs, carriage returns and a byte order mark": Quirk(
        written(A, "\ufeff" + "\r\n\r\n".join(LINES).replace(" ", "\t") + " \r\n"), check=same_boxes
    ),
    "a polygon": Quirk(lines("0 0.025 0.2 0.15 0.066667 0.275 0.2 0.15 0.4", LINES[1]), check=same_boxes),
    # ultralytics/ultralytics #20138, #13924
    "a box that reaches beyond the image": Quirk(
        lines("0 0.9 0.5 0.4 0.5", LINES[1]), told="1 clipped to the image (line 1 of labels/train/a.txt)"
    ),
    "a box that reaches beyond the image by rounding": Quirk(lines("0 0.5 0.5 1.000002 1.000001", LINES[1])),
    # ultralytics/yolov5 #3656, #4798
    "pixels": Quirk(
        lines("0 6 7 10 10", "1 12 16 15 20"),
        boxes=WHOLE | {"a": 0},
        told="2 boxes have numbers above 1, perhaps pixels",
    ),
    "pixels everywhere": Quirk(
        lambda root: [path.write_text("0 6 7 10 10\n") for path in root.glob("labels/train/*.txt")],
        error=r"all \d boxes seem to be in pixels \(the first file is labels/train/a\.txt\).*: divide cx and w by",
    ),
    # ultralytics/yolov5 #1538, #7692
    "a class without a name": Quirk(
        lines(LINES[0], "2" + LINES[1][1:]),
        error=r"labels/train/a\.txt, line 2: class 2 has no name; there are names for classes 0 to 1",
    ),
    "words": Quirk(lines("brick 0.1 0.1 0.2 0.2"), error=r"a\.txt, line 1: must be numbers, .*, not 'brick"),
    "too few numbers": Quirk(lines("0 0.5 0.5"), error=r"a\.txt, line 1: must be class cx cy w h"),
    "an empty file": Quirk(lambda root: None),
    "a missing file": Quirk(
        lambda root: (root / A).unlink(), boxes=WHOLE | {"a": 0}, told="1 of 3 images have no label file and count as"
    ),
    "a label file without an image": Quirk(
        lambda root: (root / "images/train/a.png").unlink(),
        boxes={"b": 0, "c.1": 1},
        told="1 label files belong to no image and are not used (labels/train/a.txt)",
    ),
    # ultralytics/yolov5 #5107, ultralytics #1027
    "a place beside the folder": Quirk(paths("train: ../images/train\nval: ../images/val\n")),
    "a place on another machine": Quirk(paths("train: /content/mine/images/train\nval: C:\\mine\\images\\val\n")),
    # ultralytics/ultralytics #18323
    "data one folder deeper": Quirk(several(into_a_folder, paths("path: ./\ntrain: images/train\nval: images/val\n"))),
    "the data.yaml one folder deeper": Quirk(
        lambda root: (root / "cfg").mkdir() or (root / YAML).rename(root / "cfg" / "mine.yaml")
    ),
    "several folders": Quirk(paths("train: [images/train, images/val]\n"), boxes=WHOLE | {"d": 2, "e": 1}),
    "a list of images": Quirk(several(listed, paths("train: ./train.txt\nval: images/val\n"))),
    "names as a list": Quirk(
        in_text(YAML, ("\n  0: brick\n  1: square", " ['square', \"brick\"]")), check=named("square", "brick")
    ),
    # YAML 1.1 takes them for truth values and numbers
    "names that are words of YAML": Quirk(
        in_text(YAML, ("0: brick\n  1: square", "0: no\n  1: 404")), check=named("no", "404")
    ),
    "names with gaps": Quirk(
        several(
            in_text(YAML, ("1: square", "7: square")),
            in_text(A, ("\n1 ", "\n7 ")),
            in_text("labels/train/c.1.txt", ("1 ", "7 ")),
        ),
        check=lambda records: named("brick", "square")(records) and records.labels.tolist() == [0, 1, 1],
    ),
    "nc that is not the number of names": Quirk(
        in_text(YAML, ("names:", "nc: 80\nnames:")),
        told="data.yaml says nc: 80 and names 2 classes; the names are used",
    ),
    "keypoints behind the box": Quirk(
        several(
            in_text(YAML, ("names:", "kpt_shape: [3, 2]\nnames:")),
            lines(*(f"{line} 0.1 0.1 0.9 0.9 0.5 0.5" for line in LINES)),
        ),
        check=same_boxes,
    ),
    "tags that would run code": Quirk(
        in_text(YAML, ("names:", "note: !!python/object/apply:os.system ['touch /tmp/proof']\nnames:"))
    ),
    "not YAML": Quirk(in_text(YAML, ("names:", "a: [\nnames:")), error=r"data\.yaml: not YAML, or damaged"),
    "two classes of one name": Quirk(in_text(YAML, ("square", "brick")), error='two classes have the name "brick"'),
}


@pytest.mark.parametrize("name", YOLO)
def test_yolo(tmp_path, name):
    hold(tmp_path, write, YOLO[name])


FOLDERS = {
    # HumanSignal/labelImg writes it among the labels
    "an image called classes": Quirk(
        several(lambda root: shutil.copy(root / "images/train/b.png", root / "images/train/classes.png")),
        boxes=WHOLE | {"classes": 0},
        told="1 of 4 images have no label file",
    ),
    "masks beside the images": Quirk(lambda root: shutil.copytree(root / "images/train", root / "masks/train")),
    "no names": Quirk(
        lambda root: (root / "labels" / "classes.txt").unlink(),
        told="no data.yaml or classes.txt names the classes, so their names are their numbers",
        check=named("0", "1"),
    ),
    "labels beside the images": Quirk(
        several(*(
            lambda root, split=split: [path.rename(root / "images" / split / path.name)
                                       for path in list((root / "labels" / split).iterdir())]
            for split in ("train", "val")
        )),
    ),
    "blank lines among the names": Quirk(written("labels/classes.txt", "brick\n\nsquare \n\n")),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_yolo_folders(tmp_path, name):
    hold(tmp_path, write_folders, FOLDERS[name])


def test_validation_images_that_are_named_and_not_there(tmp_path):
    write_yolo(tmp_path, {"train": SMALL["train"]})
    (note,) = [note for note in read(tmp_path).notes if "data.yaml" in note]
    assert note == "data.yaml says val: ../datasets/mine/images/val, and no images are there"


def test_no_pyyaml(tmp_path, monkeypatch):
    """Only a data.yaml needs it."""
    import sys

    from util.errors import UserError

    monkeypatch.setitem(sys.modules, "yaml", None)
    write_yolo_folders(tmp_path / "folders", SMALL)
    assert len(read(tmp_path / "folders")) == 3
    write_yolo(tmp_path / "yaml", SMALL)
    with pytest.raises(UserError, match=r"data\.yaml: needs the package PyYAML: pip install PyYAML"):
        read(tmp_path / "yaml")
