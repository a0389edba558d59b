"""Finds the images and label files of a YOLO data set, and the names of its classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import PurePosixPath

from datasets.image_names import ImageNames
from datasets.tree import IMAGE_FOLDERS, Tree, as_train_and_val, plain, split_of, told_of_no_split
from datasets.yolo_config import YoloConfig, find_config, read_config
from datasets.yolo_labels import read_labels
from util.errors import DataError
from util.inputs import Unreadable, read_text

LOOKS = (
    "data.yaml with train, val and names",
    "images/train/ + labels/train/*.txt, images/val/ + labels/val/*.txt, or train/images/ + train/labels/",
    "images/ + labels/*.txt, classes.txt for the names",
)
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_SNIFFED = 50


@dataclass(frozen=True)
class YoloLayout:
    """A YOLO data set.

    Attributes:
        title: of the layout, for the user.
        splits: "train" and perhaps "val" -> images, relative to the root, including missing ones that are listed.
        where: the same splits -> where the images were found, in words.
        names: number of a class -> name; None: no file has the names.
        config: its data.yaml, if it has one.
    """

    title: str
    splits: Mapping[str, list[str]]
    where: Mapping[str, str]
    names: Mapping[int, str] | None
    config: YoloConfig | None = None
    notes: list[str] = field(default_factory=list)


class Labels:
    """The label files below a folder, and the images that they belong to."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    @cached_property
    def _by_path(self) -> dict[str, str]:
        """Plain path without its suffix -> text file, without the files that name the classes."""
        paths = self._tree.with_suffix(".txt")
        return {plain(path[:-4]): path for path in paths if path.rpartition("/")[2].lower() not in _NAME_FILES}

    @cached_property
    def _with_image_folder(self) -> set[str]:
        """The folders in which images lie in a folder of the usual name."""
        folders = {PurePosixPath(image).parent for image in self._tree.images}
        return {str(folder.parent) for folder in folders if folder.name.lower() in IMAGE_FOLDERS}

    def of(self, image: str) -> str | None:
        """The label file of an image: ``labels`` instead of ``images`` in its path, beside it, or in ``labels``."""
        stem = PurePosixPath(os.path.splitext(image)[0])
        parts = list(stem.parts)
        for place in reversed(range(len(parts) - 1)):
            if parts[place].lower() in IMAGE_FOLDERS:
                found = self._by_path.get(plain("/".join([*parts[:place], "labels", *parts[place + 1 :]])))
                if found:
                    return found
        beside = [str(stem), f"{stem.parent}/labels/{stem.name}"]
        if str(stem.parent.parent) not in self._with_image_folder:  # else it is in masks/, depth/ or the like
            beside.append(f"{stem.parent.parent}/labels/{stem.name}")
        return next((found for path in beside if (found := self._by_path.get(plain(path.removeprefix("./"))))), None)

    def in_use(self) -> list[str]:
        """The label files of all images."""
        return [found for image in self._tree.images if (found := self.of(image))]

    def without_image(self, folders: set[str]) -> list[str]:
        """The label files in these folders that belong to no image."""
        used = set(self.in_use())
        return sorted(
            path for path in self._by_path.values() if path.rpartition("/")[0] in folders and path not in used
        )


def yolo_layout(tree: Tree) -> YoloLayout | None:
    """The data set that a data.yaml describes, or that the folders of images and labels show; None: there is none.

    Raises:
        DataError: a data.yaml that cannot be used.
        UserError: a data.yaml, and PyYAML is not installed.
    """
    if not tree.images:
        return None
    path = find_config(tree)
    return _by_folders(tree) if path is None else _by_config(tree, read_config(tree.root, path))


def _by_folders(tree: Tree) -> YoloLayout | None:
    labels = Labels(tree)
    in_use = labels.in_use()
    filled = (path for path in in_use if (tree.root / path).stat().st_size)
    if not any(_is_label_file(tree, path) for path in islice(filled, _SNIFFED)):
        return None
    folders = {os.path.dirname(image) for image in tree.images if labels.of(image)}
    splits: dict[str | None, list[str]] = {}
    for image in tree.images:
        if os.path.dirname(image) in folders:
            splits.setdefault(split_of(image), []).append(image)
    found = as_train_and_val(splits)
    where = {split: _folders_of(images) for split, images in found.items()}
    return YoloLayout("YOLO", found, where, _names_in_a_file(tree), notes=told_of_no_split(splits))


def _is_label_file(tree: Tree, path: str) -> bool:
    try:
        return bool(list(read_labels(tree.root / path)))
    except DataError:
        return False


def _folders_of(images: list[str]) -> str:
    folders = list(dict.fromkeys(os.path.dirname(image) + "/" for image in images))
    return ", ".join(folders[:2]) + (", ..." if len(folders) > 2 else "")


def _names_in_a_file(tree: Tree) -> dict[int, str] | None:
    """The names in a classes.txt or similar file, one per line."""
    every = [path for paths in tree.files.values() for path in paths if path.rpartition("/")[2].lower() in _NAME_FILES]
    for path in sorted(every, key=lambda path: (path.count("/"), path)):
        try:
            lines = [line.strip() for line in read_text(tree.root / path).splitlines()]
        except Unreadable as error:
            raise DataError(f"{tree.root / path}: cannot be read as a list of class names ({error})") from None
        names = [line for line in lines if line]
        if len(set(names)) < len(names):
            raise DataError(f"{tree.root / path}: two classes have the same name; give each its own")
        if names:
            return dict(enumerate(names))
    return None


def _by_config(tree: Tree, config: YoloConfig) -> YoloLayout:
    splits, where, notes = {}, {}, list(config.notes)
    for split, sources in config.sources.items():
        images: list[str] = []
        for source in sources:
            found = _images_of(tree, config.path, source)
            if found:
                images += found
            else:
                notes.append(f"{config.path} says {split}: {source.lstrip('/')}, and no images are there")
        if images:
            splits[split] = list(dict.fromkeys(images))
            where[split] = f"{config.path}: {_folders_of(splits[split])}"
    return YoloLayout("YOLO", as_train_and_val(splits), as_train_and_val(where), config.names, config, notes)


def _images_of(tree: Tree, config: str, source: str) -> list[str]:
    """The images of a folder or list of images that a data.yaml names; empty if there is no such place.

    The place may be a path on another machine. More and more of its beginning is dropped, until the rest exists: from
    the folder of the data.yaml, from that of the data set, or in exactly one folder below it; never outside.
    """
    parts = [part for part in _inside(source).split("/") if part]
    base = os.path.dirname(config)
    if not parts:
        return _below(tree, base)
    # "valid/images" must not be found as the "images" of another split
    last = max((index for index, part in enumerate(parts) if split_of(f"{part}/")), default=len(parts) - 1)
    ends = ["/".join(parts[start:]) for start in range(last + 1)]
    for begin in dict.fromkeys([base, ""]):
        for end in ends:
            place = f"{begin}/{end}" if begin else end
            if place in tree.files.get(".txt", ()):
                return _listed(tree, place)
            if images := _below(tree, place):
                return images
    return next(filter(None, (_somewhere(tree, end) for end in ends)), [])


def _inside(path: str) -> str:
    """The path without parts that lead out of the folder: root and ``..``."""
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _below(tree: Tree, place: str) -> list[str]:
    return [path for path in tree.images if path.startswith(f"{place}/" if place else "")]


def _somewhere(tree: Tree, place: str) -> list[str]:
    """The images below the folder of this name, if there is exactly one."""
    found = [path for path in tree.images if f"/{place}/" in path]
    return found if len({path.partition(f"/{place}/")[0] for path in found}) == 1 else []


def _listed(tree: Tree, path: str) -> list[str]:
    """The images in a text file, one per line; missing ones keep their name in the file."""
    try:
        lines = [line.strip() for line in read_text(tree.root / path).splitlines()]
    except Unreadable as error:
        raise DataError(f"{tree.root / path}: cannot be read as a list of images ({error})") from None
    names = [_inside(line) for line in lines if line]
    found = ImageNames(tree.root, tree).find_all(names)
    return [image or name for image, name in zip(found, names, strict=True)]
