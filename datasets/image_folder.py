"""Images without labels for pretraining: those of a flat or nested folder, or of a labelled data set."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np

from datasets.images import list_images
from datasets.records import ImageFiles, pack_paths
from util.records import DataRecord


class UnlabelledImages(ImageFiles):
    """A root folder and the paths of n images relative to it, packed into one array.

    In this form ImageNet's 1.3 million paths take about 40 MB, which all workers share.
    """

    def __init__(self, root: str | Path, relative_paths: list[str]) -> None:
        self.root = Path(root)
        self.paths = pack_paths(relative_paths)

    @classmethod
    def from_folder(cls, folder: str | Path) -> UnlabelledImages:
        """All images in ``folder`` and below (see :func:`datasets.images.list_images`)."""
        return cls(folder, list_images(folder))

    def select(self, indices: np.ndarray) -> UnlabelledImages:
        """Only the images ``indices`` [m] int64."""
        chosen = copy.copy(self)
        chosen.paths = self.paths[indices]
        return chosen


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    return UnlabelledImages.from_folder(args.data_path)


IMAGE_FOLDER = DataRecord(
    title="any folder of images",
    read_labelled=None,
    read_unlabelled=_read_unlabelled,
    splits=("train",),
)
