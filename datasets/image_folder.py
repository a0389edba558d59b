"""Images without labels, to pretrain on: a flat or nested folder, or the images of a labelled data set."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.images import list_images
from datasets.records import pack_paths
from datasets.voc import VocSet, voc_images


class UnlabelledImages:
    """A root folder and the paths of n images relative to it, packed into one array.

    ImageNet's 1.3 million paths so take some 40 MB, shared by all workers.
    """

    def __init__(self, root: str | Path, relative_paths: list[str]) -> None:
        self.root = Path(root)
        self._paths = pack_paths(relative_paths)

    @classmethod
    def from_folder(cls, folder: str | Path) -> UnlabelledImages:
        """All images in ``folder`` and below (see :func:`datasets.images.list_images`)."""
        return cls(folder, list_images(folder))

    @classmethod
    def from_voc(cls, root: str | Path, sets: list[VocSet]) -> UnlabelledImages:
        """The images of VOC image sets whose folders lie in ``root``; no annotations are read."""
        return cls(root, [path.relative_to(root).as_posix() for path in voc_images(sets)])

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """The file of image ``index``."""
        return self.root / os.fsdecode(self._paths[index])

    def relative_paths(self) -> list[str]:
        """Paths of all images relative to the root, with forward slashes."""
        return [os.fsdecode(path) for path in self._paths]
