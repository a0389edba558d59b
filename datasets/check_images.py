"""Reads every image once before training, so that a damaged one does not stop the run after hours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.images import Reading, load_image
from datasets.loader import ProtectedLoader
from datasets.records import ImageFiles
from util import distributed
from util.errors import DataError, one_line
from util.files import write_json
from util.logger import say, shows_progress

FEW = 2_000
"""Data sets of at most this size are checked by default: it takes seconds."""

ALONE = 100
"""At most this many images are read without worker processes: starting those would take longer."""


@dataclass(frozen=True)
class Found:
    """What is wrong with an image. ``reason`` None: the end of its file is missing, but the rest is used."""

    index: int
    path: str
    reason: str | None


class Checking(Dataset):
    """``dataset[index]`` -> what is wrong with an image, or None.

    Args:
        paths: of all images.
        sizes: [n, 2] (width, height) as annotated, or None.
        reading: which files are accepted.
    """

    def __init__(self, paths: Sequence[Path], sizes: np.ndarray | None, reading: Reading) -> None:
        self._paths = paths
        self._sizes = sizes
        self._reading = reading

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Found | None:
        path = self._paths[index]
        size = None if self._sizes is None else tuple(self._sizes[index].tolist())
        try:
            load_image(path, size, replace(self._reading, allow_truncated=False))
        except DataError as error:
            if self._reading.allow_truncated and self._loads(path, size):
                return Found(index, str(path), None)
            return Found(index, str(path), one_line(error).removeprefix(f"{path}: "))
        return None

    def _loads(self, path: Path, size: tuple[int, int] | None) -> bool:
        try:
            load_image(path, size, self._reading)
        except DataError:
            return False
        return True


def usable_images(
    images: ImageFiles, sizes: np.ndarray | None, reading: Reading, args: argparse.Namespace, name: str
) -> np.ndarray | None:
    """Check a data set as the flags say. Every process must call this.

    Args:
        sizes: [n, 2] (width, height) as annotated, or None.
        args: check_images, damaged, allow_truncated, num_workers, output_dir.
        name: of the data set, for messages and for the list NAME_damaged.json in the output folder.

    Returns:
        Indices [m] int64 of the images to use, or None: all.

    Raises:
        DataError: some images cannot be used and ``--damaged`` is "error", or no image is left.
    """
    is_asked_for = args.damaged == "skip" or args.allow_truncated
    if args.check_images == "none" and not is_asked_for:
        return None
    if args.check_images == "auto" and len(images) > FEW and not is_asked_for:
        say(f"{name}: {len(images)} images are not checked before training; --check_images reads each of them once")
        return None
    found = check(Checking([images.path(index) for index in range(len(images))], sizes, reading), args, name)
    damaged = [one for one in found if one.reason is not None]
    if len(found) > len(damaged):
        say(f"{name}: the end of {len(found) - len(damaged)} JPEG files is missing; the missing part is grey")
    if not damaged:
        return None
    _report(damaged, len(images), args, name)
    return np.setdiff1d(np.arange(len(images)), [one.index for one in damaged])


def check(dataset: Checking, args: argparse.Namespace, name: str) -> list[Found]:
    """What is wrong in a whole data set, in order of index. Every process must call this and reads its share."""
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    loader = ProtectedLoader(
        dataset,
        batch_size=None,
        sampler=own,
        collate_fn=_as_it_is,
        num_workers=0 if len(own) <= ALONE else args.num_workers,
    )
    bar = tqdm(loader, desc=f"check {name}", unit="images", total=len(own), leave=False, disable=not shows_progress())
    found = [one for one in bar if one is not None]
    return sorted((one for part in distributed.all_gather_object(found) for one in part), key=lambda one: one.index)


def _as_it_is(found: Found | None) -> Found | None:
    return found


def _report(damaged: list[Found], total: int, args: argparse.Namespace, name: str) -> None:
    """Print which images cannot be used; raise DataError if ``--damaged`` is "error" or none is left."""
    for one in damaged:
        say(f"  {one.path}: {one.reason}")
    first = f"the first is {damaged[0].path}: {damaged[0].reason}"
    if args.damaged == "error":
        raise DataError(
            f"{len(damaged)} of {total} images of {name} cannot be used, all are listed above; {first}. "
            "Or train without such images: --damaged skip"
        )
    if len(damaged) == total:
        raise DataError(f"no image of {name} can be used; {first}")
    path = Path(args.output_dir) / f"{name}_damaged.json"
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json([{"path": one.path, "reason": one.reason} for one in damaged], path)
    say(f"{len(damaged)} of {total} images of {name} are skipped; {path} lists them")
