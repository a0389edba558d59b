"""Batches: which samples, in which order, on which process; and the loader that reads them."""

from __future__ import annotations

import argparse
import atexit
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from util import distributed
from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list
from util.signals import postponed, protect_worker

Key = tuple[int, int]  # (epoch, index), what the data sets take


@dataclass(eq=False)
class EpochBatchSampler(Sampler[list[Key]]):
    """Training batches as lists of (epoch, index), beginning at a position that can be set.

    The samples of an epoch are shuffled in an order that depends on (seed, epoch) only and cut into global batches;
    each process takes its slice of every global batch. So the global batches do not depend on the number of processes
    (if it divides them). A run can continue in the middle of an epoch, even with another batch size: it goes on with
    the images that it has not seen yet. The incomplete batch at the end is dropped.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch *and process*.
        seed: of the order.
        world_size, rank: number of processes and index of this one.

    Raises:
        UserError: fewer samples than one global batch.
    """

    length: int
    batch_size: int
    _: KW_ONLY
    seed: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        self.set_position(0)
        if len(self) == 0:
            raise UserError(
                f"the data set has {self.length} images, fewer than one batch of {self.world_size} process(es) x "
                f"{self.batch_size} images; lower --batch_size"
            )

    def __len__(self) -> int:
        """Number of batches in a whole epoch, whatever the position."""
        return self.length // (self.batch_size * self.world_size)

    def set_position(self, epoch: int, image: int = 0) -> None:
        """Let the next iteration begin in ``epoch`` with the ``image``-th sample of its order."""
        self.epoch = epoch
        self.first_image = image

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.first_image
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        global_batch = self.world_size * self.batch_size
        for start in range(first, self.length - global_batch + 1, global_batch):
            own = start + self.rank * self.batch_size
            yield [(epoch, index) for index in order[own : own + self.batch_size].tolist()]


class EvalSampler(Sampler[list[Key]]):
    """Evaluation batches as lists of (0, index): each sample once, samples rank::world_size on process ``rank``."""

    def __init__(self, length: int, batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        self.indices = range(rank, length, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


def collate_detection(
    batch: list[tuple[Tensor, dict[str, Tensor]]], pad_to: int = 1
) -> tuple[NestedTensor, list[dict[str, Tensor]]]:
    """Samples of :class:`datasets.detection.DetectionDataset` -> (padded images, list of their targets)."""
    images, targets = zip(*batch, strict=True)
    return nested_tensor_from_tensor_list(list(images), pad_to), list(targets)


def make_train_loader(dataset: Dataset, collate_fn: Callable[..., Any], args: argparse.Namespace) -> DataLoader:
    """Shuffled training batches of this process: ``--batch_size``, ``--pad_to``, ``--seed`` and ``--num_workers``.

    Args:
        collate_fn: (samples, pad_to=) -> batch.

    Raises:
        UserError: fewer images than one global batch.
    """
    sampler = EpochBatchSampler(
        len(dataset),
        args.batch_size,
        seed=args.seed,
        world_size=distributed.world_size(),
        rank=distributed.rank(),
    )
    collate_fn = partial(collate_fn, pad_to=args.pad_to)
    return make_loader(dataset, sampler, collate_fn, num_workers=args.num_workers, pin_memory=args.device == "cuda")


def make_eval_loader(dataset: Dataset, args: argparse.Namespace) -> DataLoader:
    """Evaluation batches of this process; over all processes, each image occurs exactly once."""
    sampler = EvalSampler(len(dataset), args.batch_size, world_size=distributed.world_size(), rank=distributed.rank())
    return make_loader(
        dataset, sampler, collate_detection, num_workers=args.num_workers, pin_memory=args.device == "cuda"
    )


class ProtectedLoader(DataLoader):
    """A loader whose processes leave signals to their parent, from the moment they start, and end with it.

    Its own generator draws the seed of the processes, so that the global random state does not change.

    Args:
        options: of ``DataLoader``.

    Iterating raises:
        UserError: the system has too little of something for so many processes.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=protect_worker, generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[Any]:
        try:
            with postponed():  # a process that gets one before it is protected would end
                iterator = super().__iter__()
        except OSError as error:  # too many open files, or no shared memory
            reason = error.strerror or error
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            traceback.clear_frames(error.__traceback__)  # deletes torch's half-made iterator, whose __del__ fails
            sys.unraisablehook = hook
            raise UserError(f"--num_workers {self.num_workers}: cannot start so many processes ({reason})") from None
        if self.num_workers:
            _RUNNING.add(iterator)
        return iterator


_RUNNING: WeakSet[Any] = WeakSet()
"""Iterators with loading processes."""


@atexit.register
def _end_loading_processes() -> None:
    """End those of iterators that an unforeseen error keeps alive.

    multiprocessing would wait for them for ever: its SIGTERM is the first one, which they leave to their parent.
    """
    for iterator in tuple(_RUNNING):
        iterator._shutdown_workers()


def make_loader(
    dataset: Dataset,
    batch_sampler: Sampler[list[Key]],
    collate_fn: Callable[[list], Any],
    *,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    """A loader that keeps its processes between epochs. Each computes with one thread, as torch sets it."""
    return ProtectedLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
