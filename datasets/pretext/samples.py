"""What the samples of all pretext tasks have in common: unlabelled images, their proposals, and a seed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from datasets.images import STRICTLY, Reading
from datasets.pixels import compiled


class ImageSource(Protocol):
    """The images of a :class:`PretextDataset`, for example :class:`datasets.image_folder.UnlabelledImages`."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> Path:
        """The file of image ``index``."""

    def relative_paths(self) -> list[str]:
        """Paths of all images relative to their root."""

    def select(self, indices: np.ndarray) -> ImageSource:
        """Only the images ``indices`` [m]."""


class ProposalSource(Protocol):
    """The proposals of a :class:`PretextDataset`, for example :class:`datasets.proposals.store.ProposalStore`."""

    def boxes(self, index: int) -> np.ndarray:
        """[N, 4] float32, xyxy in pixels of the upright image ``index``, best first."""


@dataclass(frozen=True)
class ChosenProposals:
    """The proposals of only the images ``indices`` [m]."""

    source: ProposalSource
    indices: np.ndarray

    def boxes(self, index: int) -> np.ndarray:
        """See :class:`ProposalSource`."""
        return self.source.boxes(int(self.indices[index]))


class PretextDataset(Dataset):
    """``dataset[(epoch, index)]`` -> a sample, a function of the seed, the epoch and the index alone.

    Subclasses read the image and make the sample.

    Args:
        images: the image files.
        proposals: regions of interest of each image, or None: random boxes are drawn instead.
        transform: makes the sample.
        seed: of all randomness.
        reading: which image files are accepted.

    Raises (on reading a sample):
        DataError: the image cannot be read; the message names the file.
    """

    def __init__(
        self,
        images: ImageSource,
        proposals: ProposalSource | None,
        transform: Any,
        seed: int,
        reading: Reading = STRICTLY,
    ) -> None:
        self.reading = reading
        self.images = images
        self.proposals = proposals
        self.transform = transform
        self.seed = seed
        compiled.load()  # compiles now, so that the workers do not all do it at once

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: np.ndarray, *, seed: int | None = None) -> PretextDataset:
        """Only the images ``indices`` [m] int64; ``seed`` replaces the data set's seed."""
        chosen = copy.copy(self)
        chosen.images = self.images.select(indices)
        chosen.proposals = None if self.proposals is None else ChosenProposals(self.proposals, indices)
        chosen.seed = self.seed if seed is None else seed
        return chosen

    def proposals_of(self, index: int) -> np.ndarray:
        """[N, 4] float32, xyxy in pixels of the upright image ``index``, best first; without proposals N = 0."""
        return np.empty((0, 4), dtype=np.float32) if self.proposals is None else self.proposals.boxes(index)

    def rng(self, key: tuple[int, int]) -> np.random.Generator:
        """The random generator of sample ``key`` = (epoch, index)."""
        return np.random.default_rng((self.seed, *key))
