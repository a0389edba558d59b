"""Reads every image of a labelled data set once: whether it can be used, and a hash of its content."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.images import Reading, load_image
from datasets.loader import ProtectedLoader
from datasets.records import DetectionRecords
from util.errors import DataError, one_line
from util.logger import shows_progress

SIDE = 16
"""The hash has SIDE x SIDE bits."""

ALIKE = 12
"""Images whose hashes differ in at most this many of 256 bits look the same; different ones differ in about 100."""

_ONES = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Seen:
    """An image: why it cannot be used, or its hash, [SIDE * SIDE / 8] uint8."""

    reason: str | None
    hash: np.ndarray


class Looking(Dataset):
    """``dataset[index]`` -> :class:`Seen`."""

    def __init__(self, records: DetectionRecords, reading: Reading) -> None:
        self._records = records
        self._reading = reading

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Seen:
        path = self._records.path(index)
        try:
            image = load_image(path, tuple(self._records.sizes[index].tolist()), self._reading)
        except DataError as error:
            return Seen(one_line(error).removeprefix(f"{path}: "), np.zeros(SIDE * SIDE // 8, dtype=np.uint8))
        return Seen(None, difference_hash(image))


def difference_hash(image: Image.Image) -> np.ndarray:
    """[SIDE * SIDE / 8] uint8: whether each pixel of the small grey image is brighter than the one to its left.

    Another size, another compression or a little noise changes few bits.
    """
    small = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1])


def look_at(records: DetectionRecords, reading: Reading, num_workers: int, name: str) -> list[Seen]:
    """All images of a data set, in its order, read by ``num_workers`` processes."""
    loader = ProtectedLoader(
        Looking(records, reading),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
    )
    return list(tqdm(loader, desc=f"read {name}", unit="images", leave=False, disable=not shows_progress()))


def _as_it_is(seen: Seen) -> Seen:
    return seen


def alike(first: list[Seen], second: list[Seen]) -> list[tuple[int, int]]:
    """(index in ``first``, in ``second``) of images that look the same; for each of ``second`` the closest one."""
    indices = [index for index, seen in enumerate(first) if seen.reason is None]
    if not indices:
        return []
    hashes = np.stack([first[index].hash for index in indices])
    found = []
    for index, seen in enumerate(second):
        if seen.reason is None:
            distances = _ONES[hashes ^ seen.hash].sum(1, dtype=np.int64)
            if distances.min() <= ALIKE:
                found.append((indices[int(distances.argmin())], index))
    return found


def same_twice(seen: list[Seen]) -> list[tuple[int, int]]:
    """(first, later) indices of images in one set whose hashes are equal."""
    first_of: dict[bytes, int] = {}
    found = []
    for index, one in enumerate(seen):
        if one.reason is None:
            first = first_of.setdefault(one.hash.tobytes(), index)
            if first != index:
                found.append((first, index))
    return found
