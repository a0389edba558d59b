"""Finds the annotation files and images of a COCO data set."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.tree import Tree, as_train_and_val, plain, split_in_name, split_of
from util.inputs import Unreadable, require_file

LOOKS = (
    "annotations/instances_train.json + train/, annotations/instances_val.json + val/ (or train2017, val2017)",
    "train/_annotations.coco.json, valid/_annotations.coco.json, images beside them (Roboflow)",
    "one .json of COCO's form for each split (its name says train, val or test) and its images, anywhere",
)
ROBOFLOW = "_annotations.coco.json"
_USUAL = {"train": ("train2017", "train"), "val": ("val2017", "val", "valid", "test")}

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.){1,1000}")')
_SAMPLE = 50
_CHUNK = 1 << 22
_OVERLAP = 2048
_MOST_CANDIDATES = 100


@dataclass(frozen=True)
class CocoPlace:
    """An annotation file and the folder of the images that it names."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class CocoPlaces:
    """The parts of a data set ("train", "val" or both) and the name of their layout."""

    title: str
    splits: dict[str, CocoPlace]


def coco_places(tree: Tree) -> CocoPlaces | None:
    """The annotation files of a folder: in COCO's usual layout, in Roboflow's, or one obvious pair anywhere."""
    if usual := _usual(tree.root):
        return CocoPlaces("COCO", usual)
    if roboflow := _roboflow(tree):
        return CocoPlaces("COCO, exported by Roboflow", roboflow)
    if anywhere := _anywhere(tree):
        return CocoPlaces("COCO, annotations and images where they were found", anywhere)
    return None


def _usual(root: Path) -> dict[str, CocoPlace]:
    found: dict[str, CocoPlace] = {}
    for split, names in _USUAL.items():
        for name in names:
            place = CocoPlace(root / "annotations" / f"instances_{name}.json", root / name)
            if place.annotations.is_file() and place.images.is_dir():
                found.setdefault(split, place)
    return found


def _roboflow(tree: Tree) -> dict[str, CocoPlace]:
    splits: dict[str | None, list[str]] = {}
    for path in tree.with_suffix(".json"):
        if path.rpartition("/")[2] == ROBOFLOW:
            splits.setdefault(split_of(path), []).append(path)
    return _one_each(tree, splits, lambda path: tree.root / path.rpartition("/")[0])


def _anywhere(tree: Tree) -> dict[str, CocoPlace]:
    candidates = tree.with_suffix(".json")
    if not tree.images or len(candidates) > _MOST_CANDIDATES:
        return {}
    samples = {path: names for path in candidates if (names := sample_of_names(tree.root / path))}
    splits: dict[str | None, list[str]] = {}
    for path in samples:
        splits.setdefault(split_in_name(path.rpartition("/")[2]) or split_of(path), []).append(path)
    return _one_each(tree, splits, lambda path: _image_folder(tree, samples[path], path))


def _one_each(
    tree: Tree, splits: dict[str | None, list[str]], folder_of: Callable[[str], Path | None]
) -> dict[str, CocoPlace]:
    """The places, if there is one annotation file per split; of COCO's several files, the one with instances."""
    found = {}
    for split, paths in as_train_and_val(splits).items():
        chosen = [path for path in paths if "instances" in path] if len(paths) > 1 else paths
        if len(chosen) != 1:
            return {}
        images = folder_of(chosen[0])
        if images is not None:
            found[split] = CocoPlace(tree.root / chosen[0], images)
    return found


def sample_of_names(path: Path) -> list[str] | None:
    """Some image names in a file that looks like COCO's, else None. The file is searched, not parsed."""
    missing, names = set(_KEYS), []
    for number, chunk in enumerate(_chunks(path)):
        if number == 0 and chunk.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
            return None
        missing -= {key for key in missing if key in chunk}
        if len(names) < _SAMPLE:
            names += [name for match in _FILE_NAME.finditer(chunk) if (name := _unescaped(match.group(1)))]
        if not missing and names:
            return names[:_SAMPLE]
    return None


def _chunks(path: Path) -> Iterator[bytes]:
    """The content in overlapping pieces, so that no match is cut in two."""
    try:
        require_file(path)
        with open(path, "rb") as file:
            end = b""
            while piece := file.read(_CHUNK):
                yield end + piece
                end = (end + piece)[-_OVERLAP:]
    except (OSError, Unreadable):
        return


def _unescaped(text: bytes) -> str | None:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _image_folder(tree: Tree, names: list[str], annotations: str) -> Path | None:
    """The folder in which most of the names are images; on ties that of the split, then the nearest one."""
    by_name: dict[str, list[str]] = {}
    for path in tree.images:
        by_name.setdefault(plain(path.rpartition("/")[2]), []).append(path)
    votes: Counter[str] = Counter()
    for name in names:
        name = name.replace("\\", "/")
        for path in by_name.get(plain(name.rpartition("/")[2]), ()):
            whole = plain(path) == plain(name) or plain(path).endswith("/" + plain(name))
            votes[path[: len(path) - len(name)].rstrip("/") if whole else path.rpartition("/")[0]] += 1
    if not votes:
        return None
    split, beside = split_in_name(annotations.rpartition("/")[2]), annotations.rpartition("/")[0]
    best = max(votes, key=lambda folder: (votes[folder], split_of(f"{folder}/x") == split, folder == beside, folder))
    return tree.root / best
