"""Reading annotations in COCO's format."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.coco import COCO_CATEGORIES, coco_image_folder, coco_paths, read_coco
from util.errors import DataError

CONTENT = {
    "images": [
        {"id": 30, "file_name": "b.png", "width": 40, "height": 20},
        {"id": 10, "file_name": "sub/a.png", "width": 30, "height": 50},
    ],
    "annotations": [
        {"id": 0, "image_id": 30, "category_id": 9, "bbox": [1, 2, 3.5, 4], "area": 7.25, "iscrowd": 0},
        {"id": 1, "image_id": 10, "category_id": 4, "bbox": [0, 0, 30, 50]},
        {"id": 2, "image_id": 30, "category_id": 4, "bbox": [5, 5, 10, 10], "area": 90, "iscrowd": 1},
    ],
    "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
}


def write(folder, content):
    (folder / "images" / "sub").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(folder / "images" / "b.png")
    Image.new("RGB", (30, 50)).save(folder / "images" / "sub" / "a.png")
    (folder / "ann.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "images", folder / "ann.json"


def changed(change):
    content = copy.deepcopy(CONTENT)
    change(content)
    return content


def with_boxes(*boxes):
    return CONTENT | {
        "annotations": [
            {"id": 100 + number, "image_id": 30, "category_id": 4, "bbox": box} for number, box in enumerate(boxes)
        ]
    }


def test_read(tmp_path):
    records = read_coco(*write(tmp_path, CONTENT))
    assert records.categories == [{"label": 0, "id": 4, "name": "dog"}, {"label": 1, "id": 9, "name": "cat"}]
    assert records.image_ids.tolist() == [10, 30], "in order of id"
    assert [records.path(i) for i in range(2)] == [tmp_path / "images" / "sub" / "a.png", tmp_path / "images" / "b.png"]
    assert records.sizes.tolist() == [[30, 50], [40, 20]]
    assert records.offsets.tolist() == [0, 1, 3]
    assert records.boxes.tolist() == [[0, 0, 30, 50], [1, 2, 4.5, 6], [5, 5, 15, 15]]
    assert records.labels.tolist() == [0, 1, 0]
    assert records.areas.tolist() == [1500, 7.25, 90], "the file's own area, else that of the box"
    assert records.crowd.tolist() == [False, False, True]
    assert not records.difficult.any()
    assert (records.metric, records.source) == ("coco", str(tmp_path / "ann.json"))
    assert records.dropped.describe() == "3 boxes"


def test_images_without_boxes_stay(tmp_path):
    records = read_coco(*write(tmp_path, CONTENT | {"annotations": []}))
    assert len(records) == 2
    assert records.offsets.tolist() == [0, 0, 0]
    assert records.boxes.shape == (0, 4)


def test_unusable_boxes(tmp_path):
    boxes = [
        [5, 5, 0, 5],  # no width
        [5, 5, -3, 5],  # negative width
        [5, 5, 5, 0],  # no height
        [40, 0, 5, 5],  # beside the image
        [-9, -9, 9, 9],  # touches it in a corner
        [-2, -3, 10, 10],  # clipped
        [35, 15, 10, 10],  # clipped
        [0, 0, 40.0005, 20],  # rounding in the file
    ]
    records = read_coco(*write(tmp_path, with_boxes(*boxes)))
    assert records.boxes.tolist() == [[0, 0, 8, 7], [35, 15, 40, 20], [0, 0, 40, 20]]
    assert records.areas.tolist() == [56, 25, 800]
    assert (records.dropped.total, records.dropped.dropped, records.dropped.clipped) == (8, 5, 2)
    assert records.dropped.describe() == (
        "5 of 8 boxes dropped: no area inside the image (annotation 100 of b.png; annotation 101 of b.png; "
        "annotation 102 of b.png; ...), 2 clipped to the image (annotation 105 of b.png; "
        "annotation 106 of b.png), more than half of the boxes do not fit their images: perhaps corners and "
        "sizes are mixed up; look at them with tools/check_data.py"
    )


def test_all_boxes_unusable(tmp_path):
    records = read_coco(*write(tmp_path, with_boxes([0, 0, 0, 0])))
    assert records.boxes.shape == (0, 4)
    assert records.dropped.dropped == 1


@pytest.mark.parametrize(
    "bbox", [[0, 0, 1], "abcd", [0, 0, float("nan"), 1], [0, float("inf"), 1, 1], ["1", 0, 2, 2], None]
)
def test_boxes_that_are_none(tmp_path, bbox):
    with pytest.raises(DataError, match=r'ann\.json: annotations\[0\]: "bbox" must be four finite numbers'):
        read_coco(*write(tmp_path, with_boxes(bbox)))


def test_labels_of_coco_are_its_raw_ids(tmp_path):
    assert len(COCO_CATEGORIES) == 80
    assert (COCO_CATEGORIES[1], COCO_CATEGORIES[11], COCO_CATEGORIES[90]) == ("person", "fire hydrant", "toothbrush")
    categories = [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()]
    records = read_coco(*write(tmp_path, CONTENT | {"categories": categories}))
    assert records.labels.tolist() == [4, 9, 4]
    assert [category["label"] for category in records.categories] == sorted(COCO_CATEGORIES)
    records = read_coco(*write(tmp_path, CONTENT | {"categories": categories[:79]}))
    assert records.labels.tolist() == [3, 8, 3], "79 of the 80 are another data set"


def test_given_categories_fix_the_labels(tmp_path):
    fixed = [
        {"label": 0, "id": 1, "name": "bird"},
        {"label": 1, "id": 4, "name": "dog"},
        {"label": 2, "id": 9, "name": "cat"},
    ]
    records = read_coco(*write(tmp_path, CONTENT), fixed)
    assert records.categories == fixed
    assert records.labels.tolist() == [1, 2, 1]
    fixed[1] = {"label": 1, "id": 4, "name": "wolf"}
    with pytest.raises(DataError, match=r'ann\.json: category 4 is "dog" here and'):
        read_coco(*write(tmp_path, CONTENT), fixed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON, or damaged"),
        ("", "not JSON, or damaged"),
        ("[" * 100_000, "not JSON, or damaged"),
        ("[]", "holds a list, not an object"),
        ({}, 'no "images"'),
        ({"images": [{}], "categories": []}, 'no "annotations"'),
        ({"images": [{}], "annotations": []}, 'no "categories"'),
        (CONTENT | {"images": []}, '"images" is empty'),
        (CONTENT | {"categories": []}, '"categories" is empty'),
        (CONTENT | {"images": {"a": 1}}, '"images" must be a list of objects'),
        (CONTENT | {"annotations": [1]}, '"annotations" must be a list of objects'),
        (changed(lambda c: c["annotations"][1].update(image_id=11)), r"annotations\[1\]: no image has the id 11"),
        (changed(lambda c: c["annotations"][1].update(category_id=5)), r"annotations\[1\]: category 5 is not one of"),
        (
            changed(lambda c: c["annotations"][1].pop("image_id")),
            r'annotations\[1\]: "image_id" must be an integer, not None',
        ),
        (
            changed(lambda c: c["annotations"][1].update(iscrowd=2)),
            r'annotations\[1\]: "iscrowd" must be 0 or 1, not 2',
        ),
        (
            changed(lambda c: c["annotations"][1].update(area=float("nan"))),
            r'annotations\[1\]: "area" must be a finite',
        ),
        (changed(lambda c: c["images"][1].update(id=30)), r"images\[1\]: the id 30 is given twice"),
        (changed(lambda c: c["images"][1].update(id="x")), r"images\[1\]: \"id\" must be an integer, not 'x'"),
        (changed(lambda c: c["images"][1].update(id=10**30)), r'images\[1\]: "id" must be an integer'),
        (
            changed(lambda c: c["images"][0].update(width="wide")),
            r"images\[0\]: \"width\" must be an integer, not 'wide'",
        ),
        (
            changed(lambda c: c["images"][0].update(height=-1)),
            r"images\[0\]: width and height must be positive, not 40 and -1",
        ),
        (changed(lambda c: c["images"][0].pop("file_name")), r'images\[0\]: "file_name" must be a text'),
        (changed(lambda c: c["images"][0].update(file_name="\0")), r'images\[0\]: "file_name" must be a text'),
        (changed(lambda c: c["images"][0].update(file_name="\ud800")), r'images\[0\]: "file_name" must be a text'),
        (changed(lambda c: c["categories"][0].update(id=4)), r"categories\[1\]: the id 4 is given twice"),
        (changed(lambda c: c["categories"][0].pop("name")), r'categories\[0\]: "name" must be a text'),
        (
            changed(lambda c: c["images"][0].update(file_name="c.png")),
            r"1 of its 2 images is missing in .*images: c\.png; .*--damaged skip",
        ),
        (
            changed(lambda c: c["images"][1].update(file_name="nowhere/c.png")),
            r"missing in .*: nowhere/c\.png",
        ),
    ],
)
def test_malformed(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_coco(*write(tmp_path, content))
    assert str(caught.value).startswith(str(tmp_path / "ann.json"))
    assert "\n" not in str(caught.value)


def test_not_text_and_not_there(tmp_path):
    images, annotations = write(tmp_path, CONTENT)
    annotations.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=r"ann\.json: not JSON, or damaged"):
        read_coco(images, annotations)
    with pytest.raises(DataError, match=r"none\.json: cannot read this annotation file \(No such file"):
        read_coco(images, tmp_path / "none.json")
    write(tmp_path, CONTENT)
    with pytest.raises(DataError, match=r"2 of its 2 images are missing in .*nowhere"):
        read_coco(tmp_path / "nowhere", annotations)


@pytest.mark.parametrize("suffix", ["2017", ""])
def test_usual_layouts(tmp_path, suffix):
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        told = "no COCO data set here to train on" if split == "train" else "no images to evaluate on, only .*train"
        with pytest.raises(DataError, match=rf"{told}.*--{split}_ann FILE"):
            coco_paths(tmp_path, split)
        (tmp_path / f"{split}{suffix}").mkdir()
        (tmp_path / "annotations" / f"instances_{split}{suffix}.json").touch()
        expected = tmp_path / "annotations" / f"instances_{split}{suffix}.json", tmp_path / f"{split}{suffix}"
        assert coco_paths(tmp_path, split) == expected
        assert coco_image_folder(tmp_path, split) == expected[1]


def test_raccoon(real_data):
    records = [
        read_coco(images, file) for file, images in (coco_paths(real_data / "raccoon", s) for s in ("train", "val"))
    ]
    assert [len(record) for record in records] == [160, 40]
    assert sum(len(record.boxes) for record in records) == 217
    assert records[0].categories == records[1].categories
    assert [category["name"] for category in records[0].categories] == ["raccoon"]
    for record in records:
        raw = json.loads(Path(record.source).read_text())
        expected = np.array([a["bbox"] for a in raw["annotations"]])
        found = record.boxes.copy()
        found[:, 2:] -= found[:, :2]
        assert np.abs(np.sort(expected, axis=0) - np.sort(found, axis=0)).max() < 1e-3


@pytest.mark.parametrize("area", [0, -3.5, True, False])
def test_an_area_that_none_can_be_is_that_of_the_box(tmp_path, area):
    records = read_coco(*write(tmp_path, changed(lambda c: c["annotations"][2].update(area=area))))
    assert records.areas.tolist() == [1500, 7.25, 100]
    assert records.notes == ['1 of 3 boxes have an impossible "area"; width x height is used instead']
    assert read_coco(*write(tmp_path, CONTENT)).notes == []


def test_iscrowd_null_is_no_crowd(tmp_path):
    records = read_coco(*write(tmp_path, changed(lambda c: c["annotations"][2].update(iscrowd=None))))
    assert records.crowd.tolist() == [False, False, False]


def test_boxes_that_look_normalised_are_told(tmp_path):
    (note,) = read_coco(*write(tmp_path, with_boxes([0.1, 0.2, 0.5, 0.7], [0, 0, 1, 1]))).notes
    assert "look normalised" in note
    assert read_coco(*write(tmp_path, with_boxes([0.1, 0.2, 0.5, 0.7], [0, 0, 2, 1]))).notes == []


def test_many_categories_need_boxes(tmp_path):
    """A small file must not lead to a class head of gigabytes."""
    many = [{"id": number, "name": str(number)} for number in range(1001)]
    with pytest.raises(DataError, match=r"ann\.json: 1001 categories for 3 boxes"):
        read_coco(*write(tmp_path, CONTENT | {"categories": many}))
    assert len(read_coco(*write(tmp_path, CONTENT | {"categories": many[:1000]})).categories) == 1000


def test_missing_files_are_left_to_the_check_of_images(tmp_path):
    images, annotations = write(tmp_path, CONTENT)
    (images / "b.png").unlink()
    with pytest.raises(DataError, match="missing"):
        read_coco(images, annotations)
    assert len(read_coco(images, annotations, check_files=False)) == 2


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "ann.json")
    with pytest.raises(DataError, match=r"ann\.json: cannot read this annotation file \(a pipe"):
        read_coco(tmp_path, tmp_path / "ann.json")
