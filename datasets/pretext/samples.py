"""What the training samples of all pretext tasks are made of: unlabelled images, their proposals, and a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from datasets.images import STRICTLY, Reading
from datasets.pixels import compiled


class ImageSource(Protocol):
    """What :class:`PretextDataset` asks of images, see :class:`datasets.image_folder.UnlabelledImages`."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> Path:
        """The file of image ``index``."""

    def select(self, indices: np.ndarray) -> ImageSource:
        """The images ``indices`` [m] int64 alone."""


class ProposalSource(Protocol):
    """What :class:`PretextDataset` asks of proposals, see :class:`datasets.proposals.store.ProposalStore`."""

    def boxes(self, index: int) -> np.ndarray:
        """[N, 4] float32, xyxy in pixels of the upright image ``index``, best first."""


class SomeProposals:
    """The proposals of the images ``indices`` [m] int64 of a data set."""

    def __init__(self, proposals: ProposalSource, indices: np.ndarray) -> None:
        self._proposals = proposals
        self._indices = indices

    def boxes(self, index: int) -> np.ndarray:
        """As :meth:`ProposalSource.boxes`."""
        return self._proposals.boxes(int(self._indices[index]))


class PretextDataset(Dataset):
    """``dataset[(epoch, index)]`` -> a sample, a function of the seed, the epoch and the index alone.

    Subclasses read the image and make the sample.

    Args:
        images: where the files are.
        proposals: regions of interest of each image, or None: random boxes are drawn in their place.
        transform: makes the sample.
        seed: of all randomness.
        reading: which image files are taken.

    Raises (on reading a sample):
        DataError: an image that cannot be read; the message names the file.
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
        compiled.load()  # compiled now if at all, not by every worker at once

    def __len__(self) -> int:
        return len(self.images)

    def keep(self, indices: np.ndarray) -> None:
        """Leave out all images but ``indices`` [m] int64, with their proposals."""
        self.images = self.images.select(indices)
        if self.proposals is not None:
            self.proposals = SomeProposals(self.proposals, indices)

    def proposals_of(self, index: int) -> np.ndarray:
        """[N, 4] float32, xyxy in pixels of the upright image ``index``, best first; without proposals N = 0."""
        return np.empty((0, 4), dtype=np.float32) if self.proposals is None else self.proposals.boxes(index)

    def rng(self, key: tuple[int, int]) -> np.random.Generator:
        """The randomness of sample ``key`` = (epoch, index)."""
        return np.random.default_rng((self.seed, *key))
