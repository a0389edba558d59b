"""Detection data sets in PASCAL VOC's format: JPEGImages, Annotations/*.xml, ImageSets/Main/*.txt."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.image_folder import UnlabelledImages
from datasets.images import IMAGE_EXTENSIONS
from datasets.layout import Layout
from datasets.records import DetectionRecords, RecordBuilder
from datasets.tree import Tree
from datasets.voc_xml import add_object, categories_named, object_names, read_xml, size_of
from util.errors import DataError
from util.inputs import Unreadable, read_text
from util.records import DataRecord, Flag

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_NAMES = _NAMES.split()
_DEFAULT_SPECS = {True: ["2007:trainval", "2012:trainval"], False: ["2007:test"]}
_PLACES = (".", "VOC2007", "VOC2012", "VOCdevkit/VOC2007", "VOCdevkit/VOC2012")
_YEARS = ("2007", "2012")


@dataclass(frozen=True)
class VocSet:
    """One image set of one folder with JPEGImages, Annotations and ImageSets/Main."""

    folder: Path
    name: str

    @property
    def list_file(self) -> Path:
        return self.folder / "ImageSets" / "Main" / f"{self.name}.txt"


def voc_sets(data_path: str | Path, specs: list[str] | None, train: bool) -> list[VocSet]:
    """The image sets that ``specs`` name, or the usual ones.

    Args:
        data_path: the devkit (``VOCdevkit``), the folder around it, or a single folder with JPEGImages.
        specs: each ``YEAR:SET`` (``2007:trainval``), or ``SET`` for a single folder. None: 2007 and 2012 trainval for
            training, 2007 test for evaluation; in a single folder, or a devkit of one year, trainval and test, or else
            train and val.
        train: whether the defaults are those for training.

    Raises:
        DataError: a folder or an image set is missing; the message lists the sets that exist.
    """
    data_path = Path(data_path)
    if not data_path.is_dir():
        raise DataError(f"{data_path}: no such folder")
    if not (data_path / "JPEGImages").is_dir():
        years = [folder for year in _YEARS if (folder := _devkit_folder(data_path, year)) is not None]
        if specs is None and len(years) == 1:
            return [_default_set(years[0], train)]
        return [_devkit_set(data_path, spec) for spec in specs or _DEFAULT_SPECS[train]]
    if specs is None:
        return [_default_set(data_path, train)]
    return [_single_folder_set(data_path, spec) for spec in specs]


def _default_set(folder: Path, train: bool) -> VocSet:
    """trainval and test, or, where there is no test, train and val: never val beside trainval, which contains it."""
    sets = {name: VocSet(folder, name) for name in ("train", "val", "trainval", "test")}
    there = {name for name, one in sets.items() if one.list_file.is_file()}
    if {"train", "val"} <= there and "test" not in there:
        return sets["train" if train else "val"]
    names = ("trainval", "train") if train else ("test", "val") if "trainval" not in there else ("test",)
    return _existing(sets[next((name for name in names if name in there), names[0])])


def _devkit_folder(data_path: Path, year: str) -> Path | None:
    places = (data_path / f"VOC{year}", data_path / "VOCdevkit" / f"VOC{year}")
    return next((folder for folder in places if (folder / "JPEGImages").is_dir()), None)


def _devkit_set(data_path: Path, spec: str) -> VocSet:
    year, colon, name = spec.partition(":")
    if not colon:
        raise DataError(f"{data_path}: the image set {spec!r} has no year; write, for example, 2007:{spec}")
    if (folder := _devkit_folder(data_path, year)) is not None:
        return _existing(VocSet(folder, name))
    raise DataError(
        f"{data_path}: no VOC data set for {spec} here (looked for JPEGImages in it, in VOC{year}/ and in "
        f"VOCdevkit/VOC{year}/); choose other sets with --voc_train and --voc_val, or leave --dataset_file out for "
        "other layouts"
    )


def _single_folder_set(folder: Path, spec: str) -> VocSet:
    year, _, name = spec.rpartition(":")
    if year and folder.resolve().name != f"VOC{year}":
        raise DataError(f"{folder}: a single folder, not VOC{year}; write {name!r} instead of {spec!r}")
    return _existing(VocSet(folder, name))


def _existing(image_set: VocSet) -> VocSet:
    if not image_set.list_file.is_file():
        there = sorted(path.stem for path in image_set.list_file.parent.glob("*.txt"))
        raise DataError(
            f"{image_set.list_file}: no such image set; the folder has: {', '.join(there) or 'none'}. Choose with "
            "--voc_train and --voc_val"
        )
    return image_set


def read_voc(
    root: str | Path, sets: list[VocSet], categories: list[dict] | None = None, *, check_files: bool = True
) -> DetectionRecords:
    """Read and check the annotations of several image sets, one after the other.

    Image ids are the images' positions 0..n-1. A box's ``xmin, ymin, xmax, ymax`` count pixels from 1 and include the
    last one, so that it spans xmin - 1 .. xmax. Categories are VOC's 20 in alphabetical order if all names are among
    them, else the names found in all Annotations of the folders, sorted. ``categories``, for example those of the
    training set, fix them instead.

    Args:
        root: a folder that contains those of the ``sets``; the records' paths are relative to it.
        check_files: raise an error if image files are missing.

    Raises:
        DataError: missing or malformed files; the message names the file.
    """
    root = Path(root)
    if categories is None:
        categories = _find_categories([image_set.folder for image_set in sets])
    label_of_name = {category["name"]: category["label"] for category in categories}
    builder = RecordBuilder()
    files: list[Path] = []
    first_box: list[int] = []
    boxes = 0
    for image in voc_images(sets, check_files=check_files):
        annotation = image.parent.parent / "Annotations" / f"{image.stem}.xml"
        tree = read_xml(annotation)
        index = builder.add_image(image.relative_to(root).as_posix(), len(files), size_of(tree, annotation))
        files.append(annotation)
        first_box.append(boxes)
        for number, element in enumerate(tree.findall("object"), start=1):
            add_object(builder, index, element, label_of_name, f"{annotation}: object {number}")
            boxes += 1
    return builder.pack(
        root=root,
        source=" + ".join(str(image_set.list_file) for image_set in sets),
        metric="voc",
        categories=categories,
        place=lambda n, image: f"object {n - first_box[image] + 1} of {files[image].name}",
    )


def voc_images(sets: list[VocSet], *, check_files: bool = True) -> Iterator[Path]:
    """The image files of the sets, in the sets' order; without ``check_files`` also those that are missing.

    Raises:
        DataError: an empty set, or (with ``check_files``) a missing image.
    """
    for image_set in sets:
        folder = image_set.folder / "JPEGImages"
        file_of_stem = {}
        for name in sorted(os.listdir(folder)):
            stem, extension = os.path.splitext(name)
            if extension.lower() in IMAGE_EXTENSIONS:
                file_of_stem[stem] = name
        try:
            stems = [line.strip() for line in read_text(image_set.list_file).splitlines()]
        except Unreadable as error:
            raise DataError(f"{image_set.list_file}: cannot be read as a list of images ({error})") from None
        stems = [stem for stem in stems if stem]
        if not stems:
            raise DataError(f"{image_set.list_file}: an empty list, no images")
        is_of_class = all(re.fullmatch(r"\S+\s+(1|0|-1)", stem) for stem in stems)
        if is_of_class and not all(stem in file_of_stem for stem in stems):  # images may have such names too
            raise DataError(f"{image_set.list_file}: a list for one class; use train, val, trainval or test instead")
        for stem in stems:
            if stem not in file_of_stem and check_files:
                raise DataError(
                    f"{folder}: no image named {stem} (.jpg or another suffix), which {image_set.list_file} lists; a "
                    "list has names without suffix"
                )
            yield folder / file_of_stem.get(stem, f"{stem}.jpg")


def _find_categories(folders: list[Path]) -> list[dict]:
    names: set[str] = set()
    for folder in dict.fromkeys(folders):
        for path in sorted((folder / "Annotations").glob("*.xml")):
            names |= object_names(read_xml(path), path)
    if not names:
        raise DataError(f"{folders[0] / 'Annotations'}: no objects in any annotation (*.xml) here")
    return categories_named(VOC_NAMES if names <= set(VOC_NAMES) else sorted(names))


def unlabelled_voc(root: str | Path, sets: list[VocSet]) -> UnlabelledImages:
    """The images of image sets whose folders lie in ``root``; annotations are not read."""
    return UnlabelledImages(root, [path.relative_to(root).as_posix() for path in voc_images(sets)])


def _sets(args: argparse.Namespace, split: str) -> list[VocSet]:
    return voc_sets(args.data_path, getattr(args, f"voc_{split}"), train=split == "train")


def _read_labelled(args: argparse.Namespace, split: str, categories: list[dict] | None) -> DetectionRecords:
    return read_voc(args.data_path, _sets(args, split), categories, check_files=args.damaged == "error")


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    return unlabelled_voc(args.data_path, _sets(args, split))


def _find(args: argparse.Namespace, tree: Tree | None) -> Layout | None:
    if tree is None or not any((tree.root / place / "ImageSets" / "Main").is_dir() for place in _PLACES):
        return None
    splits = {}
    for split in ("train", "val"):
        try:
            sets = _sets(args, split)
        except DataError:
            continue  # reading says why
        splits[split] = " + ".join(one.list_file.relative_to(tree.root).as_posix() for one in sets)
    return Layout(title="PASCAL VOC", splits=splits)


_SETS = {"nargs": "+", "metavar": "YEAR:SET"}
_TRAIN = Flag(name="voc_train", help="image sets to train on; default: 07+12 trainval", options=_SETS)
_VAL = Flag(name="voc_val", help="image sets to evaluate on; default: 2007:test", options=_SETS)

VOC = DataRecord(
    title="PASCAL VOC",
    read_labelled=_read_labelled,
    read_unlabelled=_read_unlabelled,
    find=_find,
    looks=(
        "JPEGImages/, Annotations/*.xml, ImageSets/Main/{trainval,test} or {train,val}.txt",
        "VOCdevkit/ or VOC2007/ and VOC2012/ with these",
    ),
    flags={"pretrain": (_TRAIN,), "finetune": (_TRAIN, _VAL), "proposals": (_TRAIN, _VAL)},
)
