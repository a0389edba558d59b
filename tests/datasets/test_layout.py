"""Every layout is recognised by its content, and one data set gives the same records in all of them."""

import json
from argparse import Namespace

import numpy as np
import pytest

from datasets import DATASETS, layout_of, settle_format
from datasets.tree import Tree, split_of
from tests.datasets.layouts import LAYOUTS, NAMES, SMALL, Picture, coco_content
from util.errors import DataError

FLAGS = dict.fromkeys("train_ann train_images val_ann val_images voc_train voc_val".split())


def recognised(root, **changes) -> Namespace:
    args = Namespace(**FLAGS | {"data_path": str(root), "dataset_file": "auto", "damaged": "error"} | changes)
    settle_format(args)
    return args


def read(args, split, categories=None):
    return DATASETS[args.dataset_file].read_labelled(args, split, categories)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_set_gives_the_same_records(tmp_path, layout):
    name, write = LAYOUTS[layout]
    write(tmp_path / "set", SMALL)
    args = recognised(tmp_path / "set")
    assert args.dataset_file == name
    assert set(layout_of(args).splits) == {"train", "val"}
    categories = None
    for split, pictures in SMALL.items():
        records = read(args, split, categories)
        categories = records.categories
        assert [(category["label"], category["id"], category["name"]) for category in categories] == [
            (0, 1, "brick"),
            (1, 2, "square"),
        ]
        assert [records.path(index).name for index in range(len(records))] == [picture.file for picture in pictures]
        assert all(records.path(index).is_file() for index in range(len(records)))
        assert records.image_ids.tolist() == list(range(len(pictures)))
        assert records.sizes.tolist() == [list(picture.size) for picture in pictures]
        assert np.diff(records.offsets).tolist() == [len(picture.objects) for picture in pictures]
        objects = np.array([thing for picture in pictures for thing in picture.objects], dtype=np.float32)
        np.testing.assert_allclose(records.boxes, objects[:, 1:], atol=1e-4)
        assert records.labels.tolist() == objects[:, 0].tolist()
        np.testing.assert_allclose(records.areas, (objects[:, 3:] - objects[:, 1:3]).prod(1), rtol=1e-4)
        assert not records.crowd.any()
        assert not records.difficult.any()
        assert (records.dropped.dropped, records.dropped.clipped) == (0, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_alone_are_those_of_the_split(tmp_path, layout):
    _, write = LAYOUTS[layout]
    write(tmp_path, SMALL)
    args = recognised(tmp_path)
    images = DATASETS[args.dataset_file].read_unlabelled(args, "train")
    assert [path.rpartition("/")[2] for path in images.relative_paths()] == ["a.png", "b.png", "c.1.png"]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "voc"])
def test_a_set_without_validation_images(tmp_path, layout):
    _, write = LAYOUTS[layout]
    write(tmp_path, {"train": SMALL["train"]})
    args = recognised(tmp_path)
    assert set(layout_of(args).splits) == {"train"}
    assert len(read(args, "train")) == 3
    with pytest.raises(DataError, match="evaluate on"):
        read(args, "val")


@pytest.mark.parametrize("layout", ["roboflow", "voc beside", "voc folders", "yolo folders", "yolo roboflow"])
def test_test_images_are_evaluated_on_where_there_are_no_others(tmp_path, layout):
    _, write = LAYOUTS[layout]
    write(tmp_path, {"train": SMALL["train"], "test": SMALL["val"]})
    if layout == "yolo roboflow":
        (tmp_path / "data.yaml").write_text(f"train: ../train/images\ntest: ../test/images\nnames: {NAMES}\n")
    args = recognised(tmp_path)
    assert [read(args, "val").path(index).stem for index in range(2)] == ["d", "e"]
    write(tmp_path, {"val": [Picture("f", (20, 20), [(0, 1, 1, 9, 9)]), Picture("g", (20, 20), [(1, 1, 1, 9, 9)])]})
    if layout == "yolo roboflow":
        text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
        (tmp_path / "data.yaml").write_text(f"{text}names: {NAMES}\n")
    assert [read(args, "val").path(index).stem for index in range(2)] == ["f", "g"]


@pytest.mark.parametrize("layout", ["roboflow", "voc beside", "voc folders", "yolo", "yolo roboflow", "coco anywhere"])
def test_an_unpacked_archive_may_have_one_more_folder(tmp_path, layout):
    name, write = LAYOUTS[layout]
    write(tmp_path / "my set.v1", SMALL)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._a.xml").write_bytes(b"\0")
    (tmp_path / "my set.v1" / ".DS_Store").write_bytes(b"\0")
    args = recognised(tmp_path)
    assert args.dataset_file == name
    assert len(read(args, "train")) == 3


def test_nothing_to_recognise(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    SMALL["train"][0].save(tmp_path / "pictures" / "2024")
    with pytest.raises(DataError, match="no labelled data set is recognised here") as error:
        recognised(tmp_path)
    assert "\n" not in str(error.value)
    told = capsys.readouterr().out
    assert "there are images, but no annotations (.json, .xml or .txt)" in str(error.value)
    assert "data.yaml with train, val and names" in told
    assert "pictures/2024/  1 .png" in told
    with pytest.raises(DataError, match="nowhere: no such folder"):
        recognised(tmp_path / "nowhere")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"set\.zip: a file; give the folder of the data set, and unpack"):
        recognised(tmp_path / "set.zip")


def test_an_empty_folder(tmp_path, capsys):
    with pytest.raises(DataError):
        recognised(tmp_path)
    assert capsys.readouterr().out.strip().endswith("nothing")


def test_several_annotation_files_are_not_guessed_at(tmp_path):
    LAYOUTS["coco anywhere"][1](tmp_path, SMALL)
    (tmp_path / "labels_v2" / "my_train_set_old.json").write_bytes(
        (tmp_path / "labels_v2/my_train_set.json").read_bytes()
    )
    with pytest.raises(DataError, match="--train_ann FILE"):
        recognised(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("result.json", "images"),
        ("annotations/instances_default.json", "images/default"),
        ("a/b/labels.json", "a/photos"),
    ],
)
def test_one_annotation_file_is_the_training_set(tmp_path, annotations, images):
    """As Label Studio and CVAT export it."""
    for picture in SMALL["train"]:
        picture.save(tmp_path / images)
    (tmp_path / annotations).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / annotations).write_text(json.dumps(coco_content(SMALL["train"])))
    (tmp_path / "notes.json").write_text('{"images": 3}')
    args = recognised(tmp_path)
    assert dict(layout_of(args).splits) == {"train": annotations}
    assert [records.path(n).is_file() for records in [read(args, "train")] for n in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train2017", "train"), ("VALID", "val"), ("validation", "val"), ("test_images", "test"), ("s-train", "train"),
        ("VisDrone2019-DET-val", "val"), ("train_zip/images", "train"), ("train/test", "test"), ("Training", "train"),
        ("trainstation", None), ("contest", None), ("a latest one", None), ("obj_train_data", None), ("", None),
    ],
)  # fmt: skip
def test_the_split_of_a_folder(folder, split):
    assert split_of(f"{folder}/test.png") == split


def test_links(tmp_path):
    """Folders elsewhere are followed; a link to the whole disk is not."""
    LAYOUTS["yolo folders"][1](tmp_path / "elsewhere", SMALL)
    (tmp_path / "data").mkdir()
    for name in ("images", "labels"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "data" / "root").symlink_to("/")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert len(read(recognised(tmp_path / "data"), "train")) == 3


def test_the_tree_is_told_in_a_few_lines(tmp_path):
    for number in range(40):
        (tmp_path / f"class{number}").mkdir()
        (tmp_path / f"class{number}" / "a.txt").touch()
    lines = Tree(tmp_path).describe()
    assert lines[0] == "class0/  1 .txt"
    assert lines[-1] == "and 28 more folders"
    assert len(lines) == 13
