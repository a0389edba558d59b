"""Quirks of XML files as labelling tools write them. In brackets: a public report."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.datasets.layouts import SMALL, voc_xml, write_voc_beside, write_voc_folders
from tests.datasets.quirks import WHOLE, Quirk, hold, in_text, read, renamed, several, written
from util.errors import DataError

A = "annots/train/a.xml"
SIZE = "<size><width>40</width><height>30</height></size>"
FIRST = "<xmin>2</xmin><ymin>3</ymin><xmax>11</xmax><ymax>12</ymax>"
SIZES = [[40, 30], [32, 48], [50, 40]]
SIZE_TOLD = "1 of 3 images have a missing or wrong <size>; the size of the image file is used (a.png)"


def same_sizes(records):
    return records.sizes.tolist() == SIZES


def sized(text):
    return Quirk(in_text(A, (SIZE, text)), told=SIZE_TOLD, check=same_sizes)


def turned(root: Path) -> None:
    """An image that EXIF turns, annotated on the pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images/train/a.png").convert("RGB").save(root / "images/train/a.jpg", exif=exif)
    (root / "images/train/a.png").unlink()


def box(text):
    return in_text(A, (FIRST, text))


def first_box(*expected):
    return lambda records: records.boxes[0].tolist() == list(expected)


VOC = {
    # HumanSignal/labelImg #747, HCIILAB/SCUT-HEAD-Dataset-Release #4
    "<size> of 0": sized("<size><width>0</width><height>0</height></size>"),
    "no <size>": sized(""),
    # HumanSignal/labelImg #445, tensorflow/models #4218
    "a wrong <size>": sized("<size><width>4963</width><height>3509</height></size>"),
    "width and height exchanged": sized("<size><width>30</width><height>40</height></size>"),
    "annotated on pixels that EXIF turns": Quirk(turned, check=same_sizes),
    # HumanSignal/labelImg #92
    "<filename> without a suffix": Quirk(in_text(A, ("<filename>a.png<", "<filename>a<"))),
    "<filename> of another file": Quirk(in_text(A, ("<filename>a.png<", "<filename>IMG_0001.jpg<"))),
    # HCIILAB/SCUT-HEAD-Dataset-Release #4
    "a file that only its <filename> leads to the image": Quirk(
        several(in_text(A, ("a.png", "C:\\Users\\me\\a.png")), renamed(A, "annots/train/annotation (1).xml"))
    ),
    "xmin equals xmax": Quirk(
        box("<xmin>5</xmin><ymin>3</ymin><xmax>5</xmax><ymax>12</ymax>"),
        boxes=WHOLE | {"a": 1},
        told="1 of 3 boxes dropped: no area inside the image (object 1 of annots/train/a.xml)",
    ),
    # HumanSignal/labelImg #278
    "a box beyond the image": Quirk(
        box("<xmin>81</xmin><ymin>3</ymin><xmax>99</xmax><ymax>12</ymax>"), boxes=WHOLE | {"a": 1}, told="1 of 3 boxes"
    ),
    # Roboflow's order; readers that count positions exchange ymin and xmax
    "the coordinates in another order": Quirk(
        box("<xmin>2</xmin><xmax>11</xmax><ymin>3</ymin><ymax>12</ymax>"), check=first_box(1, 2, 11, 12)
    ),
    "coordinates with decimals and spaces": Quirk(
        box("<xmin> 2.5 </xmin><ymin>3</ymin><xmax>11.25\n</xmax><ymax>12</ymax>"), check=first_box(1.5, 2, 11.25, 12)
    ),
    "pixels that count from 0": Quirk(
        box("<xmin>0</xmin><ymin>0</ymin><xmax>11</xmax><ymax>12</ymax>"),
        told="1 clipped to the image",
        check=first_box(0, 0, 11, 12),
    ),
    "a byte order mark and a blank line before <?xml": Quirk(
        written(A, '\ufeff\n<?xml version="1.0"?>\n' + voc_xml(SMALL["train"][0]))
    ),
    "names with spaces around": Quirk(
        in_text(A, ("<name>brick<", "<name> brick\n<")), check=lambda records: len(records.categories) == 2
    ),
    "fields that other tools add": Quirk(
        in_text(A, ("<object>", "<segmented>0</segmented><path>C:\\a.png</path><object><pose>Unspecified</pose>"))
    ),
    "an image of another suffix in capitals": Quirk(
        several(renamed("images/train/a.png", "images/train/a.PNG"), renamed(A, "annots/train/a.XML"))
    ),
    "what macOS leaves": Quirk(
        several(written("annots/train/._a.xml", b"\0\5\x16\7"), written("__MACOSX/images/train/._a.png", b"\0"))
    ),
    "images in no split": Quirk(
        lambda root: write_voc_beside(root / "more", {"": SMALL["val"]}),
        told="2 images are in no train, val or test folder and are not used",
    ),
    "XML of other kinds": Quirk(written("annots/export.xml", "<annotations><image/></annotations>")),
    "an image without XML": Quirk(
        lambda root: (root / "annots/train/b.xml").unlink(),
        told="1 of 3 images have no XML file and count as images without objects (images/train/b.png)",
    ),
    "most images without XML": Quirk(
        several(*(written(f"images/train/{n}.png", b"never read") for n in range(9))),
        told="9 of 12 images have no XML file, like most images here, and are left out (images/train/0.png",
    ),
    # Oxford-IIIT Pet: annotations/xmls and annotations/trimaps
    "masks nearer than the images": Quirk(
        lambda root: shutil.copytree(root / "images/train", root / "annots/trimaps/train"),
        check=lambda records: all(path.startswith("images/train/") for path in records.relative_paths()),
    ),
    "pictures in other folders": Quirk(written("preview/sheet.png", b"never read")),
    "an annotation without an image": Quirk(
        lambda root: (root / "images/train/a.png").unlink(),
        error=r"1 of 3 XML files have no image named like the file or its <filename>: .*/a\.xml.*--damaged skip",
    ),
    "a document type": Quirk(
        written(A, '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation/>'),
        error=r"a\.xml: not XML",
    ),
    "a cut file": Quirk(written(A, voc_xml(SMALL["train"][0])[:-40]), error=r"a\.xml: not XML, or damaged"),
}


@pytest.mark.parametrize("name", VOC)
def test_voc(tmp_path, name):
    hold(tmp_path, write_voc_folders, VOC[name])


def test_an_annotation_without_an_image_is_left_to_the_check_of_images(tmp_path):
    write_voc_folders(tmp_path, SMALL)
    (tmp_path / "images/train/a.png").unlink()
    records = read(tmp_path, damaged="skip")
    assert sorted(records.path(n).is_file() for n in range(3)) == [False, True, True]
    assert len(records.boxes) == 1


def test_one_stem_in_several_folders(tmp_path):
    """``day/001.png`` and ``night/001.png``, each with its own XML file."""
    for place in ("day", "night"):
        write_voc_beside(tmp_path / place, {"": SMALL["train"] if place == "day" else SMALL["train"][:1]})
    records = read(tmp_path)
    assert records.relative_paths() == ["day/a.png", "day/b.png", "day/c.1.png", "night/a.png"]
    assert len(records.boxes) == 5
    (tmp_path / "xml").mkdir()
    for place in ("day", "night"):
        (tmp_path / "xml" / place).mkdir()
        shutil.move(tmp_path / place / "a.xml", tmp_path / "xml" / place / "a.xml")
    assert len(read(tmp_path).boxes) == 5


def test_an_annotation_does_not_take_the_image_of_another(tmp_path):
    """``a_day/a.png`` is missing: its XML file must not become that of ``night/a.png``."""
    for place in ("a_day", "night"):
        write_voc_beside(tmp_path / place, {"": SMALL["train"][:1]})
    (tmp_path / "a_day" / "a.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 XML files have no image .*: a_day/a\.xml"):
        read(tmp_path)
    write_voc_folders(tmp_path / "splits", {"train": SMALL["train"], "test": SMALL["train"]})
    (tmp_path / "splits/images/test/a.png").unlink()
    assert read(tmp_path / "splits").relative_paths() == [f"images/train/{name}.png" for name in ("a", "b", "c.1")]
