"""Reading annotations in PASCAL VOC's format."""

from collections import Counter

import pytest
from PIL import Image

from datasets.voc import VOC_NAMES, VocSet, read_voc, voc_images, voc_sets
from util.errors import DataError


def box(name, xmin, ymin, xmax, ymax, extra=""):
    return (
        f"<object><name>{name}</name>{extra}<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
    )


def xml(*objects, size="<size><width>40</width><height>20</height><depth>3</depth></size>"):
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def write(folder, annotations, **sets):
    """A folder of 40x20 images with these annotations (stem -> XML); sets: name -> stems."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem, text in annotations.items():
        Image.new("RGB", (40, 20)).save(folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
    for name, stems in sets.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return folder


def read_one(folder, text):
    write(folder, {"a": text}, train=["a"])
    return read_voc(folder, [VocSet(folder, "train")])


def test_read(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    annotations = {
        "b": xml(box("dog", 1, 1, 40, 20), box("cat", 11.5, 5, 20, 10, "<difficult>1</difficult>")),
        "a": xml(box("zebra", 2, 3, 4, 5, part)),
        "other": xml(box("bird", 1, 1, 2, 2)),
        "none": xml(),
    }
    write(tmp_path, annotations, train=["b", "a", "", "none"])
    records = read_voc(tmp_path, [VocSet(tmp_path, "train")])
    assert [category["name"] for category in records.categories] == ["bird", "cat", "dog", "zebra"]
    assert [(category["label"], category["id"]) for category in records.categories] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [records.path(i).name for i in range(3)] == ["b.jpg", "a.jpg", "none.jpg"]
    assert records.path(0) == tmp_path / "JPEGImages" / "b.jpg"
    assert records.image_ids.tolist() == [0, 1, 2]
    assert records.sizes.tolist() == [[40, 20]] * 3
    assert records.offsets.tolist() == [0, 2, 3, 3]
    assert records.boxes.tolist() == [[0, 0, 40, 20], [10.5, 4, 20, 10], [1, 2, 4, 5]]
    assert records.labels.tolist() == [2, 1, 3]
    assert records.areas.tolist() == [800, 57, 9]
    assert records.difficult.tolist() == [False, True, False]
    assert not records.crowd.any()
    assert records.metric == "voc"


def test_names_of_voc(tmp_path):
    assert len(VOC_NAMES) == 20
    assert sorted(VOC_NAMES) == VOC_NAMES
    records = read_one(tmp_path, xml(box("person", 1, 1, 9, 9), box("cat", 1, 1, 9, 9)))
    assert [category["name"] for category in records.categories] == VOC_NAMES
    assert records.labels.tolist() == [14, 7]


def test_given_categories(tmp_path):
    given = [{"label": 0, "id": 1, "name": "cat"}, {"label": 1, "id": 2, "name": "ant"}]
    write(tmp_path, {"a": xml(box("ant", 1, 1, 9, 9))}, val=["a"])
    assert read_voc(tmp_path, [VocSet(tmp_path, "val")], given).labels.tolist() == [1]
    with pytest.raises(DataError, match=r"a\.xml: object 1: 'ant' is not one of the classes to train on: cat"):
        read_voc(tmp_path, [VocSet(tmp_path, "val")], given[:1])


def test_unusable_boxes(tmp_path):
    objects = [
        box("cat", 5, 5, 5, 9),  # xmax = xmin
        box("cat", 5, 9, 9, 5),  # ymax < ymin
        box("cat", 41, 1, 50, 9),  # beside the image: 40 is the last pixel
        box("cat", 0, 0, 9, 9),  # begins at 0 where pixels count from 1
        box("cat", 31, 11, 45, 25),
    ]
    records = read_one(tmp_path, xml(*objects))
    assert records.boxes.tolist() == [[0, 0, 9, 9], [30, 10, 40, 20]]
    assert records.dropped.describe().startswith(
        "3 of 5 boxes dropped: no area inside the image "
        "(object 1 of a.xml; object 2 of a.xml; object 3 of a.xml), "
        "2 clipped to the image (object 4 of a.xml; object 5 of a.xml), more than half"
    )


ENTITY = (
    '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation><object><name>&e;</name></object></annotation>'
)
BOMB = '<!DOCTYPE a [<!ENTITY e "xxxxxxxxxx"><!ENTITY f "&e;&e;&e;">]><annotation>&f;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.xml: not XML, or damaged"),
        (xml(box("cat", 1, 1, 9, 9))[:-20], r"a\.xml: not XML, or damaged"),
        (ENTITY, r"a\.xml: not XML, or damaged \(document type declarations are not allowed\)"),
        (BOMB, r"a\.xml: not XML, or damaged \(document type declarations are not allowed\)"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"a\.xml: not XML, or damaged"),
        (xml(box("cat", 1, 1, 9, 9), size=""), r"a\.xml: <size/width> is missing or empty"),
        (
            xml(box("cat", 1, 1, 9, 9), size="<size><width>0</width><height>3</height></size>"),
            r"a\.xml: <size> must be positive",
        ),
        (xml(box("", 1, 1, 9, 9)), r"a\.xml: object 1: <name> is missing or empty"),
        (
            xml(box("cat", 1, 1, 9, 9), "<object><name>cat</name></object>"),
            r"a\.xml: object 2: <bndbox/xmin> is missing",
        ),
        (xml(box("cat", "one", 1, 9, 9)), r"object 1: <bndbox/xmin> must be a number of pixels, not 'one'"),
        (xml(box("cat", 1, "nan", 9, 9)), r"object 1: <bndbox/ymin> must be a number of pixels, not 'nan'"),
        (xml(box("cat", 1, 1, "inf", 9)), r"object 1: <bndbox/xmax> must be a number of pixels, not 'inf'"),
        (
            xml(box("cat", 1, 1, 9, 9, "<difficult>maybe</difficult>")),
            r"object 1: <difficult> must be 0 or 1, not 'maybe'",
        ),
        (xml(), r"Annotations: no objects in any annotation"),
    ],
)
def test_malformed(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_one(tmp_path, text)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    write(tmp_path, {"a": xml(box("cat", 1, 1, 9, 9)), "b": xml()}, train=["a", "b"], empty=[])
    sets = [VocSet(tmp_path, "train")]
    (tmp_path / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match=r"b\.xml: cannot read this annotation \(No such file"):
        read_voc(tmp_path, sets)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"JPEGImages: no image named a .*, which .*train\.txt lists"):
        read_voc(tmp_path, sets)
    with pytest.raises(DataError, match=r"empty\.txt: an empty list, no images"):
        list(voc_images([VocSet(tmp_path, "empty")]))


def test_other_extensions(tmp_path):
    write(tmp_path, {"a": xml(box("cat", 1, 1, 9, 9))}, train=["a"])
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "a.PNG")
    assert [path.name for path in voc_images([VocSet(tmp_path, "train")])] == ["a.PNG"]


def devkit(folder):
    write(folder / "VOC2007", {"a": xml(box("cat", 1, 1, 9, 9))}, trainval=["a"], test=["a"])
    write(folder / "VOC2012", {"b": xml(box("dog", 1, 1, 9, 9))}, trainval=["b"])
    return folder


@pytest.mark.parametrize("inside", ["", "VOCdevkit"])
def test_devkit(tmp_path, inside):
    kit = devkit(tmp_path / inside)
    train = voc_sets(tmp_path, None, train=True)
    assert train == [VocSet(kit / "VOC2007", "trainval"), VocSet(kit / "VOC2012", "trainval")]
    assert voc_sets(tmp_path, None, train=False) == [VocSet(kit / "VOC2007", "test")]
    assert voc_sets(tmp_path, ["2012:trainval"], train=True) == train[1:]
    records = read_voc(tmp_path, train)
    assert [records.path(i) for i in range(2)] == [
        kit / "VOC2007" / "JPEGImages" / "a.jpg",
        kit / "VOC2012" / "JPEGImages" / "b.jpg",
    ]
    assert records.image_ids.tolist() == [0, 1]
    assert [VOC_NAMES[label] for label in records.labels] == ["cat", "dog"]


def test_single_folder_defaults(tmp_path):
    write(tmp_path, {}, train=["a"], val=["a"])
    assert [one.name for one in voc_sets(tmp_path, None, train=True)] == ["train"]
    assert [one.name for one in voc_sets(tmp_path, None, train=False)] == ["val"]
    write(tmp_path, {}, trainval=["a"])
    assert [one.name for one in voc_sets(tmp_path, None, train=True)] == ["train"], "as VOC2012 is published"
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt: no such image set"):
        voc_sets(tmp_path, None, train=False)  # val is a part of trainval
    write(tmp_path, {}, train=["a"], test=["a"])
    assert [one.name for one in voc_sets(tmp_path, None, train=True)] == ["trainval"]
    assert [one.name for one in voc_sets(tmp_path, None, train=False)] == ["test"]
    assert voc_sets(tmp_path, ["val", "train"], train=True) == [VocSet(tmp_path, "val"), VocSet(tmp_path, "train")]


@pytest.mark.parametrize("inside", ["", "VOCdevkit"])
def test_a_devkit_of_one_year(tmp_path, inside):
    folder = tmp_path / inside / "VOC2012"
    write(folder, {"a": xml(box("cat", 1, 1, 9, 9)), "b": xml()}, train=["a"], val=["b"], trainval=["a", "b"])
    assert voc_sets(tmp_path, None, train=True) == [VocSet(folder, "train")]
    assert voc_sets(tmp_path, None, train=False) == [VocSet(folder, "val")]


def test_a_year_as_the_single_folder(tmp_path):
    devkit(tmp_path)
    assert voc_sets(tmp_path / "VOC2007", ["2007:test"], train=False) == [VocSet(tmp_path / "VOC2007", "test")]


def test_sets_that_are_not_there(tmp_path):
    devkit(tmp_path)
    for place, spec, message in [
        (tmp_path, "2007:train", r"VOC2007/ImageSets/Main/train\.txt: no such image set.*has: test, trainval"),
        (tmp_path, "2010:test", "no VOC data set for 2010:test here"),
        (tmp_path, "test", "write, for example, 2007:test"),
        (tmp_path / "VOC2007", "2012:test", "a single folder, not VOC2012"),
        (tmp_path / "VOC2012", None, r"VOC2012/ImageSets/Main/test\.txt: no such image set"),
        (tmp_path / "nowhere", None, "no such folder"),
    ]:
        with pytest.raises(DataError, match=message):
            voc_sets(place, spec and [spec], train=False)


def test_bccd(real_data):
    folder = real_data / "bccd"
    train, test = (voc_sets(folder, None, train=split) for split in (True, False))
    train_records = read_voc(folder, train)
    test_records = read_voc(folder, test, train_records.categories)
    assert (len(train_records), len(test_records)) == (292, 72)
    assert [category["name"] for category in train_records.categories] == ["Platelets", "RBC", "WBC"]
    assert [records.dropped.dropped for records in (train_records, test_records)] == [2, 0]
    assert train_records.dropped.dropped_places == [
        "object 13 of BloodImage_00338.xml",
        "object 4 of BloodImage_00343.xml",
    ]
    assert train_records.dropped.total + test_records.dropped.total == 4155 + 372 + 361, "with the degenerate two"
    counts = Counter(train_records.labels.tolist()) + Counter(test_records.labels.tolist())
    assert counts == {0: 361, 1: 4155 - 2, 2: 372}


def test_a_list_for_one_class_is_told_apart(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("a  1\nb -1\nc  0\n")
    with pytest.raises(DataError, match=r"cat_train\.txt: a list for one class"):
        list(voc_images([VocSet(tmp_path, "cat_train")]))


@pytest.mark.parametrize("end", ["0", "1", "-1"])
def test_names_that_look_like_those_of_a_list_for_one_class(tmp_path, end):
    stems = [f"cell {end}", f"blood {end}"]
    write(tmp_path, {stem: xml(box("dog", 1, 1, 4, 4)) for stem in stems}, train=stems)
    assert [path.stem for path in voc_images([VocSet(tmp_path, "train")])] == stems
    write(tmp_path, {"cell": xml(), "blood": xml()}, dog=["cell  1", "blood -1"])
    with pytest.raises(DataError, match="a list for one class"):
        list(voc_images([VocSet(tmp_path, "dog")]))


def test_missing_images_are_left_to_the_check_of_images(tmp_path):
    write(tmp_path, {"a": xml(box("dog", 1, 1, 4, 4)), "b": xml()}, train=["a", "b"])
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match="no image named b"):
        read_voc(tmp_path, [VocSet(tmp_path, "train")])
    records = read_voc(tmp_path, [VocSet(tmp_path, "train")], check_files=False)
    assert records.relative_paths() == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
