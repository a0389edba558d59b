"""The data.yaml of a YOLO data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.tree import Tree
from util.errors import DataError
from util.inputs import Unreadable, read_text
from util.optional import require

_USUAL_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LARGEST = 1 << 20  # characters


@dataclass(frozen=True)
class YoloConfig:
    """The content of a data.yaml.

    Attributes:
        path: the file, relative to the root.
        names: number of a class -> its name.
        sources: "train", "val" or "test" -> its folders or lists of images.
        has_keypoints: label lines have keypoints after the box.
        notes: what is unusual, one phrase each.
    """

    path: str
    names: Mapping[int, str]
    sources: Mapping[str, list[str]]
    has_keypoints: bool = False
    notes: list[str] = field(default_factory=list)


def find_config(tree: Tree) -> str | None:
    """The YAML file, in the folder or just below, that has names and a training set; usual file names come first.

    The files are searched, not parsed, so that this works without PyYAML.
    """
    found = [path for path in tree.with_suffix(".yaml", ".yml") if path.count("/") <= 1]
    found.sort(key=lambda path: (path.rpartition("/")[2].lower() not in _USUAL_NAMES, path.count("/"), path))
    return next((path for path in found if _looks_right(tree.root / path)), None)


def _looks_right(path: Path) -> bool:
    try:
        text = _read(path)
    except DataError:
        return False
    return all(re.search(rf"^\s*['\"]?{key}['\"]?\s*:", text, re.MULTILINE) for key in ("names", "train"))


def read_config(root: Path, path: str) -> YoloConfig:
    """Read and check a data.yaml.

    Every value is read as text, so that a class may be called ``no`` or ``1``, and tags have no effect.

    Raises:
        DataError: the file cannot be read, or is not a data.yaml; the message names it.
        UserError: PyYAML is not installed.
    """
    file = root / path
    text = _read(file)
    yaml = require("yaml", "PyYAML", f"{file}:")
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)  # only strings, lists and dictionaries
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{file}: not YAML, or damaged ({reason})") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: not the data.yaml of a YOLO data set: no keys such as names and train")
    names = _names(content.get("names"), file)
    sources = {split: found for split in ("train", "val", "test") if (found := _sources(content, split, file))}
    return YoloConfig(path, names, sources, bool(content.get("kpt_shape")), _notes(content, names))


def _read(file: Path) -> str:
    try:
        text = read_text(file)
    except Unreadable as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    if len(text) > _LARGEST:
        raise DataError(f"{file}: too long to be the data.yaml of a data set")
    return text


def _names(value: Any, file: Path) -> dict[int, str]:
    """The names, given as a list, a mapping from numbers, or a single name."""
    entries = {"0": value} if isinstance(value, str) else value
    entries = {str(number): name for number, name in enumerate(entries)} if isinstance(entries, list) else entries
    if not (
        isinstance(entries, dict)
        and entries
        and all(isinstance(number, str) and re.fullmatch(r"\d{1,6}", number, re.ASCII) for number in entries)
        and all(isinstance(name, str) and name.strip() for name in entries.values())
    ):
        raise DataError(f"{file}: names must be a list of names, or numbers from 0 with a name each")
    names = {int(number): name.strip() for number, name in entries.items()}
    if len(set(names.values())) < len(names):
        double = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise DataError(f'{file}: two classes have the name "{double}"; give each its own')
    return dict(sorted(names.items()))


def _sources(content: dict, split: str, file: Path) -> list[str]:
    value = content.get(split)
    if split == "val" and not value:
        value = content.get("valid") or content.get("validation")
    values = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(entry, str) for entry in values):
        raise DataError(f"{file}: {split} must be a folder, a list of images, or several of them")
    base = content.get("path")
    base = base if isinstance(base, str) else ""
    return [f"{base}/{entry}" for entry in values if entry not in ("", "null", "~")]


def _notes(content: dict, names: Mapping[int, str]) -> list[str]:
    count = content.get("nc")
    if isinstance(count, str) and count != str(len(names)):
        return [f"data.yaml says nc: {count[:20]} and names {len(names)} classes; the names are used"]
    return []
