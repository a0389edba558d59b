"""XML files in PASCAL VOC's format in any folders, as labelling tools write them: no ImageSets, no fixed names."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from datasets.image_folder import UnlabelledImages
from datasets.images import UNKNOWN_SIZE, upright_and_stored_size
from datasets.layout import Layout, not_found
from datasets.records import DetectionRecords, RecordBuilder, some
from datasets.tree import IMAGE_FOLDERS, Tree, as_train_and_val, plain, split_of, told_of_no_split
from datasets.voc_xml import add_object, categories_named, object_names, read_xml, size_of
from util.errors import DataError
from util.records import DataRecord

_SNIFFED = 20


@dataclass(frozen=True)
class Annotated:
    """An image and its XML file, both relative to the root; one of them may be missing."""

    image: str | None
    xml: str | None

    @property
    def split(self) -> str | None:
        """The split that the folders of the image or the XML file name."""
        return next((split for path in (self.xml, self.image) if path and (split := split_of(path))), None)


@dataclass
class Unusual:
    """What is unusual in a split, with examples, collected while it is read."""

    sizes: list[str] = field(default_factory=list)
    negatives: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def told(self, total: int) -> list[str]:
        """One phrase per kind that occurs."""
        kinds = {
            "have a missing or wrong <size>; the size of the image file is used": self.sizes,
            "have no XML file and count as images without objects": self.negatives,
            "have no XML file, like most images here, and are left out": self.left_out,
        }
        found = {what: names for what, names in kinds.items() if names}
        told = [f"{len(names)} of {total} images {what} ({some(names, len(names))})" for what, names in found.items()]
        return [*self.notes, *told]


@dataclass(frozen=True)
class LooseVoc:
    """The images of each split ("train" and perhaps "val") with their XML files, and notes on what is unusual."""

    splits: dict[str, list[Annotated]]
    notes: list[str]


def loose_voc(tree: Tree) -> LooseVoc | None:
    """The data set of the XML files in a folder; None: there is none.

    An XML file belongs to the image of its own name, else to the one that its ``<filename>`` names.
    """
    candidates = tree.with_suffix(".xml")
    if not tree.images or not any(_is_annotation(tree.root / path) for path in candidates[:_SNIFFED]):
        return None
    pairs = _pairs(tree, candidates)
    splits: dict[str | None, list[Annotated]] = {}
    for pair in pairs:
        splits.setdefault(pair.split, []).append(pair)
    return LooseVoc(as_train_and_val(splits), told_of_no_split(splits))


def _is_annotation(path: Path) -> bool:
    try:
        return read_xml(path).tag == "annotation"
    except DataError:
        return False


def _pairs(tree: Tree, candidates: list[str]) -> list[Annotated]:
    """All annotations, and all images of folders in which any image has an annotation, sorted by path."""
    by_stem: dict[str, list[str]] = {}
    for path in tree.images:
        by_stem.setdefault(_stem(path), []).append(path)
    meant = {xml: _nearest(by_stem.get(_stem(xml), []), xml) for xml in candidates}
    for xml, image in meant.items():
        meant[xml] = image or _named_in(tree.root / xml, xml, by_stem)
    xml_of: dict[str, str] = {}
    alone = []
    # if several files name one image, it belongs to the file in its folder
    for xml, image in sorted(meant.items(), key=lambda pair: -_likeness(*pair)):
        if image is not None and image not in xml_of:
            xml_of[image] = xml
        elif _is_annotation(tree.root / xml):
            alone.append(Annotated(None, xml))
    folders = {os.path.dirname(image) for image in xml_of}
    images = [Annotated(image, xml_of.get(image)) for image in tree.images if os.path.dirname(image) in folders]
    return images + sorted(alone, key=lambda pair: str(pair.xml))


def _stem(path: str) -> str:
    return plain(os.path.splitext(path.rpartition("/")[2])[0])


def _nearest(images: list[str], xml: str) -> str | None:
    """The image whose path is most similar to that of the XML file; never one of another split."""
    own = [image for image in images if None in (split_of(image), split_of(xml)) or split_of(image) == split_of(xml)]
    return max(own, key=lambda image: (_is_in_image_folder(image), _likeness(xml, image)), default=None)


def _is_in_image_folder(image: str) -> bool:
    """Pictures of the same name elsewhere are masks or the like."""
    return any(folder.lower() in IMAGE_FOLDERS for folder in image.split("/")[:-1])


def _likeness(xml: str, image: str | None) -> int:
    """How many folders the paths share, plus one if both files are in the same folder; -1: there is no image."""
    if image is None:
        return -1
    ours, theirs = image.split("/")[:-1], xml.split("/")[:-1]
    return len(set(ours) & set(theirs)) + (ours == theirs)


def _named_in(path: Path, xml: str, by_stem: dict[str, list[str]]) -> str | None:
    """The image that the ``<filename>`` of an annotation names."""
    try:
        name = (read_xml(path).findtext("filename") or "").strip().replace("\\", "/")
    except DataError:
        return None
    return _nearest(by_stem.get(_stem(name), []) or by_stem.get(plain(name.rpartition("/")[2]), []), xml)


def read_loose_voc(
    tree: Tree, split: str, categories: list[dict] | None = None, *, check_files: bool = True
) -> DetectionRecords:
    """Read and check the annotations of a split.

    Image ids are the images' positions 0..n-1. Boxes are as in :func:`datasets.voc.read_voc`. Categories are the names
    found in all annotations, sorted; ``categories``, for example those of the training set, fix them instead. A
    ``<size>`` that is missing or wrong is read from the image. If most images of the split have an XML file, the others
    count as images without objects; if most have none, the others are skipped.

    Args:
        check_files: raise an error if annotations have no image.

    Raises:
        DataError: no such split, missing or malformed files; the message names the file.
    """
    found = loose_voc(tree)
    if found is None or split not in found.splits:
        raise not_found(tree, [VOC_LOOSE], f"{tree.root}: no XML annotations here to {_purpose(split)} on")
    pairs, unusual = found.splits[split], Unusual(notes=found.notes)
    without = [pair for pair in pairs if pair.xml is None]
    if 2 * len(without) > len(pairs):
        unusual.left_out = [str(pair.image) for pair in without]
        pairs = [pair for pair in pairs if pair.xml is not None]
    trees = {pair.xml: read_xml(tree.root / pair.xml) for pair in pairs if pair.xml is not None}
    if categories is None:
        names = _names(tree, found.splits, trees)
        if not names:
            raise DataError(f"{tree.root}: no objects in any of {len(trees)} XML files")
        categories = categories_named(sorted(names))
    if check_files:
        _refuse_missing(tree, pairs)
    return _read(tree, split, pairs, trees, categories, unusual)


def _names(tree: Tree, splits: dict[str, list[Annotated]], trees: dict[str, ElementTree.Element]) -> set[str]:
    """The names of all objects in all splits; ``trees``: annotations that have already been read."""
    names: set[str] = set()
    for pairs in splits.values():
        for xml in (pair.xml for pair in pairs if pair.xml is not None):
            names |= object_names(trees[xml] if xml in trees else read_xml(tree.root / xml), tree.root / xml)
    return names


def _purpose(split: str) -> str:
    return "train" if split == "train" else "evaluate"


def _refuse_missing(tree: Tree, pairs: list[Annotated]) -> None:
    alone = [str(pair.xml) for pair in pairs if pair.image is None]
    if alone:
        raise DataError(
            f"{tree.root}: {len(alone)} of {len(pairs)} XML files have no image named like the file or its <filename>: "
            f"{some(alone, len(alone))}; add the images, or train without them by --damaged skip"
        )


def _read(
    tree: Tree,
    split: str,
    pairs: list[Annotated],
    trees: dict[str, ElementTree.Element],
    categories: list[dict],
    unusual: Unusual,
) -> DetectionRecords:
    label_of_name = {category["name"]: category["label"] for category in categories}
    builder = RecordBuilder()
    first_box: list[int] = []
    boxes = 0
    for number, pair in enumerate(pairs):
        element = trees[pair.xml] if pair.xml is not None else None
        image = pair.image or os.path.splitext(str(pair.xml))[0] + ".jpg"
        size = _size(element, tree.root / image, unusual)
        index = builder.add_image(image, number, size)
        first_box.append(boxes)
        if element is None:
            unusual.negatives.append(image)
        elif size != UNKNOWN_SIZE:
            for place, found in enumerate(element.findall("object"), start=1):
                add_object(builder, index, found, label_of_name, f"{tree.root / str(pair.xml)}: object {place}")
                boxes += 1
    return builder.pack(
        root=tree.root,
        source=f"{tree.root}, XML files of {split}",
        metric="voc",
        categories=categories,
        place=lambda n, image: f"object {n - first_box[image] + 1} of {pairs[image].xml}",
        notes=unusual.told(len(pairs) + len(unusual.left_out)),
    )


def _size(element: ElementTree.Element | None, image: Path, unusual: Unusual) -> tuple[int, int]:
    """(width, height) as annotated, if the file has this size, upright or as stored; else the file's, upright."""
    try:
        upright, stored = upright_and_stored_size(image)
    except DataError:
        return UNKNOWN_SIZE
    if element is None:
        return upright
    try:
        annotated = size_of(element, image)
    except DataError:
        annotated = None
    if annotated in (upright, stored):
        return annotated
    unusual.sizes.append(image.name)
    return upright


def _read_labelled(args: argparse.Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    return read_loose_voc(Tree(args.data_path), split, categories, check_files=args.damaged == "error")


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    tree = Tree(args.data_path)
    found = loose_voc(tree)
    if found is None or split not in found.splits:
        raise not_found(tree, [VOC_LOOSE], f"{tree.root}: no images with XML annotations here to {_purpose(split)} on")
    return UnlabelledImages(tree.root, [pair.image for pair in found.splits[split] if pair.image is not None])


def _find(args: argparse.Namespace, tree: Tree | None) -> Layout | None:
    found = None if tree is None else loose_voc(tree)
    if found is None:
        return None
    return Layout(title="VOC's XML files", splits={split: _where(pairs) for split, pairs in found.splits.items()})


def _where(pairs: list[Annotated]) -> str:
    """The folders of the XML files, the first two."""
    folders = list(dict.fromkeys(os.path.dirname(pair.xml) + "/" for pair in pairs if pair.xml is not None))
    return ", ".join(folders[:2]) + (", ..." if len(folders) > 2 else "")


VOC_LOOSE = DataRecord(
    title="VOC's XML files in any folders",
    read_labelled=_read_labelled,
    read_unlabelled=_read_unlabelled,
    find=_find,
    looks=(
        "images/ + annotations/*.xml, or XML files beside the images; folder names are free,",
        "folders named train, val or valid, test are the splits",
    ),
)
