"""The files in a folder and below, listed once, to recognise the layout of a data set."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from datasets.images import IMAGE_EXTENSIONS
from util.errors import DataError

MOST_FILES = 2_000_000
DEEPEST = 12
JUNK = ("__macosx", "thumbs.db", "desktop.ini")
"""Names that file managers and archives leave behind, besides those that begin with a dot."""

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
"""What the folder of the images is often called, in lower case, where other pictures (masks) may lie beside it."""

_SPLITS = {"train": "train", "training": "train", "trainval": "train"}
_SPLITS |= {"val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
_WORDS = "|".join(sorted(_SPLITS, key=len, reverse=True))
_SPLIT_IN_NAME = re.compile(rf"(?<![a-z])({_WORDS})(?![a-z])")
_SPLIT_AT_AN_END = re.compile(rf"({_WORDS})(?![a-z])|.*(?<![a-z])({_WORDS})\d*$")
_FOLDERS_SHOWN = 12
_DEPTH_SHOWN = 3


class Tree:
    """The files below a folder, listed at first use.

    Paths are relative to ``root``, with forward slashes, sorted. Links to folders are followed, but not upwards. Hidden
    files and :data:`JUNK` are skipped.

    Raises (on listing):
        DataError: no such folder, no permission to read it, or too many files for a data set.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """Suffix in lower case, with its dot -> the files with this suffix."""
        if self.root.is_file():
            raise DataError(f"{self.root}: a file; give the folder of the data set, and unpack an archive first")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        found: dict[str, list[str]] = {}
        above = tuple(map(str, Path(os.path.realpath(self.root)).parents))
        for number, path in enumerate(_walk(self.root, "", above, DEEPEST)):
            if number >= MOST_FILES:
                raise DataError(f"{self.root}: more than {MOST_FILES:,} files below it; name the data set's own folder")
            found.setdefault(os.path.splitext(path)[1].lower(), []).append(path)
        return {suffix: sorted(paths) for suffix, paths in sorted(found.items())}

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes (lower case, with the dot)."""
        return sorted(path for suffix in suffixes for path in self.files.get(suffix, ()))

    @cached_property
    def images(self) -> list[str]:
        """The image files, recognised by their suffix."""
        return self.with_suffix(*IMAGE_EXTENSIONS)

    def describe(self) -> list[str]:
        """The tree in a few lines: folders with their number of files by suffix; deep folders are summed up if many."""
        depths = range(_DEPTH_SHOWN, 0, -1)
        lines = next((few for depth in depths if len(few := self._folders(depth)) <= _FOLDERS_SHOWN), self._folders(1))
        more = len(lines) - _FOLDERS_SHOWN
        return [*lines[:_FOLDERS_SHOWN], *([f"and {more} more folders"] if more > 0 else [])] or ["nothing"]

    def _folders(self, depth: int) -> list[str]:
        """One line per folder down to ``depth``, about all files below it."""
        counts: dict[str, Counter[str]] = {}
        for suffix, paths in self.files.items():
            for path in paths:
                folder = "/".join(path.split("/")[:-1][:depth])
                counts.setdefault(folder, Counter())[suffix or "other"] += 1
        return [
            f"{folder + '/' if folder else '(directly in it)'}  {_told(by_suffix)}"
            for folder, by_suffix in sorted(counts.items())
        ]


def _told(by_suffix: Counter[str]) -> str:
    parts = [f"{count} {suffix}" for suffix, count in by_suffix.most_common(4)]
    return ", ".join([*parts, *(["..."] if len(by_suffix) > len(parts) else [])])


def _walk(folder: Path, prefix: str, ancestors: tuple[str, ...], depth: int) -> Iterator[str]:
    """Files below ``folder``, each with ``prefix`` in front; links back to one of ``ancestors`` are skipped."""
    here = os.path.realpath(folder)
    if here in ancestors or depth == 0:
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in JUNK:
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, here), depth - 1)
        else:
            yield prefix + entry.name


def split_of(path: str) -> str | None:
    """ "train", "val" or "test", from the name of the nearest folder that has one; None: no folder has.

    The name begins or ends with that word: ``train2017``, ``valid``, ``test_images``, ``VisDrone2019-DET-train``.
    """
    for folder in reversed(path.split("/")[:-1]):
        if found := _SPLIT_AT_AN_END.match(folder.lower()):
            return _SPLITS[found.group(1) or found.group(2)]
    return None


def split_in_name(name: str) -> str | None:
    """As :func:`split_of`, from the words in a file's name: "instances_train2017.json" is of "train"."""
    found = _SPLIT_IN_NAME.search(name.lower())
    return _SPLITS[found.group(1)] if found else None


def as_train_and_val(splits: dict[str | None, list]) -> dict[str, list]:
    """The splits that a run uses.

    Files without a split are the training set if there is no "train". "test" is used for evaluation if there is no
    "val", else it is ignored.
    """
    found = {"train": splits.get("train") or splits.get(None), "val": splits.get("val") or splits.get("test")}
    return {split: content for split, content in found.items() if content}


def told_of_no_split(splits: dict[str | None, list]) -> list[str]:
    """A note on files that :func:`as_train_and_val` leaves out, if there are some."""
    count = len(splits.get(None, ())) if splits.get("train") else 0
    return [f"{count} images are in no train, val or test folder and are not used"] if count else []


def plain(name: str) -> str:
    """A file's name for comparisons: systems differ in upper and lower case and in the Unicode form of accents."""
    return unicodedata.normalize("NFC", name).casefold()
