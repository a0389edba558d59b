"""Finds the image file for a name in an annotation, which is often a path on another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from datasets.tree import Tree, plain


class ImageNames:
    """Finds files below ``root``.

    Attributes:
        otherwise: how many were found under a name that differs from the annotation.
        example: the first of them, in words.
    """

    def __init__(self, root: str | Path, tree: Tree | None = None) -> None:
        self.root = Path(root)
        self.otherwise = 0
        self.example = ""
        self._tree = tree or Tree(root)
        self._listings: dict[str, set[str]] = {}

    def find_all(self, names: Sequence[str]) -> list[str | None]:
        """The file, relative to the root, for each name; None: there is none.

        If there is no file of exactly this name, the search becomes less and less strict: forward slashes, only the
        last parts of the path, any letter case and Unicode form, the suffix of another image format. The file found
        must be the only candidate and belong to no other name.
        """
        found: list[str | None] = [name if self.has(name) else None for name in names]
        taken = {name for name in found if name is not None}
        missing = [index for index, name in enumerate(found) if name is None]
        meant = {index: self._meant(names[index]) for index in missing}
        for index, path in meant.items():
            if path is None or path in taken:
                continue
            taken.add(path)
            found[index] = path
            self.otherwise += 1
            self.example = self.example or f"{names[index]!r} is {path}"
        return found

    def has(self, name: str) -> bool:
        """Whether there is a file of exactly this name; fast, because each folder is listed once."""
        folder, last = os.path.split(name)
        if folder not in self._listings:
            place = self.root / folder
            try:
                self._listings[folder] = set(os.listdir(place))
            except (OSError, ValueError):
                self._listings[folder] = set()
        return last in self._listings[folder]

    @cached_property
    def _by_name(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Plain name, with and without its suffix -> the images that have it."""
        whole: dict[str, list[str]] = {}
        stems: dict[str, list[str]] = {}
        if self._tree.root.is_dir():
            for path in self._tree.images:
                name = plain(path.rpartition("/")[2])
                whole.setdefault(name, []).append(path)
                stems.setdefault(os.path.splitext(name)[0], []).append(path)
        return whole, stems

    def _meant(self, name: str) -> str | None:
        parts = [plain(part) for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        whole, stems = self._by_name
        of_suffix = whole.get(parts[-1]) or stems.get(parts[-1]) or stems.get(os.path.splitext(parts[-1])[0]) or []
        best = sorted(of_suffix, key=lambda path: -_agreement(path, parts))[:2]
        if len(best) == 2 and _agreement(best[0], parts) == _agreement(best[1], parts):
            return None
        return best[0] if best else None


def _agreement(path: str, parts: list[str]) -> int:
    """How many of the last folders of ``path`` agree with those of ``parts``."""
    ours = [plain(part) for part in path.split("/")][:-1]
    count = 0
    for own, other in zip(reversed(ours), reversed(parts[:-1]), strict=False):
        if own != other:
            break
        count += 1
    return count
