"""Images without annotations for a detector: finding them, reading them in workers, sorting them into batches."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.images import STRICTLY, Reading, list_images, load_image, upright_size
from util.errors import DataError
from util.inputs import Unreadable, read_text
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list

BATCHES_AT_ONCE = 64
"""Images are sorted by size within this many batches, so that only their headers have to be read ahead."""


@dataclass(frozen=True)
class FoundImage:
    """An image file to detect objects in.

    Attributes:
        path: relative or absolute, as the command-line argument is.
        name: path below that argument, with forward slashes.
    """

    path: str
    name: str


def find_images(arguments: Sequence[str]) -> list[FoundImage]:
    """The image files that the arguments name, in their order, each once.

    Args:
        arguments: files, folders (including all folders below), patterns (``photos/*.jpg``, ``**``), ``@FILE`` (a text
            file with one of these per line, relative to the current folder).

    Raises:
        DataError: an argument matches nothing, or a folder has no image.
    """
    found: dict[str, FoundImage] = {}
    for argument in arguments:
        for image in _expand(argument):
            found.setdefault(os.path.normpath(image.path), image)
    return list(found.values())


def _expand(argument: str) -> Iterator[FoundImage]:
    path = Path(argument)
    if path.is_dir():
        for name in list_images(path):
            yield FoundImage(os.path.join(argument, name), name)
    elif os.path.lexists(argument):
        yield FoundImage(argument, path.name)
    elif argument.startswith("@"):
        yield from _expand_list(argument[1:])
    elif glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:
            raise DataError(f"{argument}: no file matches")
        for match in matches:
            if os.path.isfile(match):
                yield FoundImage(match, os.path.basename(match))
    else:
        raise DataError(f"{argument}: no such file or folder of images")


def _expand_list(path: str) -> Iterator[FoundImage]:
    """The images that a text file names. A line that matches nothing is taken as an image that cannot be read."""
    try:
        lines = read_text(path).splitlines()
    except Unreadable as error:
        raise DataError(f"@{path}: not a text file with one path per line ({error})") from None
    for line in filter(None, map(str.strip, lines)):
        if os.path.exists(line) or glob.has_magic(line):
            yield from _expand(line)
        else:
            yield FoundImage(line, os.path.basename(line))


def picture_names(images: Sequence[FoundImage]) -> list[str]:
    """A name for the picture of each image, with forward slashes: its own name, or its path if names repeat."""
    count = Counter(image.name for image in images)
    return [image.name if count[image.name] == 1 else _below_nothing(image.path) for image in images]


def _below_nothing(path: str) -> str:
    """The path without parts that lead out of a folder (root, ``..``)."""
    return "/".join(part for part in Path(os.path.normpath(path)).parts if part not in (os.sep, "..", "."))


@dataclass
class Failure:
    """An image that cannot be used: its index in the data set, and why."""

    index: int
    reason: str


@dataclass
class InferenceBatch:
    """A padded batch.

    Attributes:
        indices: of the images in the data set.
        images: the padded images, or None if none could be read.
        sizes: [B, 2] int64, (height, width) of the upright files in pixels.
        failures: the images that could not be read.
    """

    indices: list[int]
    images: NestedTensor | None
    sizes: Tensor
    failures: list[Failure]

    def pin_memory(self) -> InferenceBatch:
        """The same batch in page-locked memory; called by the data loader."""
        images = None if self.images is None else self.images.pin_memory()
        return InferenceBatch(self.indices, images, self.sizes, self.failures)


class InferenceDataset(Dataset):
    """``dataset[index]`` -> (index, image for the detector, (height, width) of the file), or a :class:`Failure`.

    Args:
        paths: image files.
        prepare: RGB image -> float32 [3, H, W].
        reading: which files are accepted.
    """

    def __init__(
        self, paths: Sequence[str], prepare: Callable[[Image.Image], Tensor], reading: Reading = STRICTLY
    ) -> None:
        self.paths = list(paths)
        self.prepare = prepare
        self.reading = reading

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor, tuple[int, int]] | Failure:
        try:
            image = load_image(self.paths[index], reading=self.reading)
        except DataError as error:
            return Failure(index, str(error))
        return index, self.prepare(image), (image.height, image.width)


def collate_inference(samples: list[tuple[int, Tensor, tuple[int, int]] | Failure]) -> InferenceBatch:
    """Samples of :class:`InferenceDataset` -> padded batch."""
    failures = [sample for sample in samples if isinstance(sample, Failure)]
    readable = [sample for sample in samples if not isinstance(sample, Failure)]
    return InferenceBatch(
        indices=[index for index, _, _ in readable],
        images=nested_tensor_from_tensor_list([image for _, image, _ in readable]) if readable else None,
        sizes=torch.tensor([size for _, _, size in readable], dtype=torch.int64).reshape(-1, 2),
        failures=failures,
    )


@dataclass(eq=False)
class SortedBatchSampler(Sampler[list[int]]):
    """Batches of images of similar size, so that there is little padding. They depend on ``paths`` only.

    Args:
        paths: of all images.
        wanted: indices of those to load; a batch is yielded whole if it holds one of them, else it is skipped.
        batch_size: images per batch.
        resized: (width, height) of a file -> (width, height) of the image in the batch.
        reading: which files are accepted.
    """

    paths: Sequence[str]
    wanted: set[int]
    batch_size: int
    resized: Callable[[tuple[int, int]], tuple[int, int]]
    reading: Reading = STRICTLY

    def __iter__(self) -> Iterator[list[int]]:
        window = self.batch_size * BATCHES_AT_ONCE
        for start in range(0, len(self.paths), window):
            indices = range(start, min(start + window, len(self.paths)))
            if self.wanted.isdisjoint(indices):
                continue
            for batch in sorted_batches(self._sizes(indices), self.batch_size):
                wanted = [index for index in batch if index in self.wanted]
                if wanted:
                    yield wanted

    def _sizes(self, indices: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Sizes in the batch; (0, 0) for files that cannot be read, which is reported when they are loaded."""
        if self.batch_size == 1:
            return dict.fromkeys(indices, (0, 0))
        sizes = {}
        for index in indices:
            try:
                sizes[index] = self.resized(upright_size(self.paths[index], self.reading))
            except DataError:
                sizes[index] = (0, 0)
        return sizes


def sorted_batches(sizes: Mapping[int, tuple[int, int]], batch_size: int) -> Iterator[list[int]]:
    """The keys of ``sizes`` (width, height), sorted by height and then width, in lists of ``batch_size``."""
    order = sorted(sizes, key=lambda index: (sizes[index][1], sizes[index][0], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
