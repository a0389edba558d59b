"""Images without labels for pretraining: those of a flat or nested folder, or of a labelled data set."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np

from datasets.images import list_images
from datasets.listing import shared_listing
from datasets.records import ImageFiles, pack_paths
from util.records import DataRecord


class UnlabelledImages(ImageFiles):
    """A root folder and the paths of n images relative to it, packed into one array.

    In this form ImageNet's 1.3 million paths take about 40 MB, which all workers share.
    """

    def __init__(self, root: str | Path, relative_paths: list[str] | np.ndarray) -> None:
        """``relative_paths`` may be packed already (see :func:`datasets.records.pack_paths`)."""
        self.root = Path(root)
        packed = isinstance(relative_paths, np.ndarray)
        self.paths = relative_paths if packed else pack_paths(relative_paths)

    @classmethod
    def from_folder(cls, folder: str | Path, keep_in: str | Path | None = None) -> UnlabelledImages:
        """All images in ``folder`` and below (see :func:`datasets.images.list_images`).

        Args:
            keep_in: the output folder of a training run, which keeps the list of a large folder for all its processes
                and starts (see :mod:`datasets.listing`; collective); None: it is listed here and now.
        """
        return cls(folder, list_images(folder) if keep_in is None else shared_listing(folder, keep_in))

    def select(self, indices: np.ndarray) -> UnlabelledImages:
        """Only the images ``indices`` [m] int64."""
        chosen = copy.copy(self)
        chosen.paths = self.paths[indices]
        return chosen


def output_of_training(args: argparse.Namespace) -> str | None:
    """The output folder of a training run; None: the command line is that of a tool."""
    return args.output_dir if hasattr(args, "resume") else None


def _read_unlabelled(args: argparse.Namespace, split: str) -> UnlabelledImages:
    return UnlabelledImages.from_folder(args.data_path, output_of_training(args))


IMAGE_FOLDER = DataRecord(
    title="any folder of images",
    read_labelled=None,
    read_unlabelled=_read_unlabelled,
    splits=("train",),
)
