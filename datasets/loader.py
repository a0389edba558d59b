"""Batches: which samples, in which order, on which process; and the loader that fetches them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from util import distributed
from util.errors import UserError
from util.nested_tensor import NestedTensor, nested_tensor_from_tensor_list
from util.signals import protect_worker

Key = tuple[int, int]  # (epoch, index), what the data sets take


class EpochBatchSampler(Sampler[list[Key]]):
    """Training batches as lists of (epoch, index), beginning at a position that can be set.

    The samples of an epoch are put in an order that depends on (seed, epoch) alone and cut into global batches; each
    process takes its slice of every one. So the global batches are the same for any number of processes that divides
    them, and a run can go on in the middle of an epoch, also with other batches: those images follow that were not
    seen yet. The incomplete batch at the end is dropped.

    Args:
        length: number of samples in the data set.
        batch_size: samples a batch *on each process*.
        seed: of the order.
        world_size, rank: number of processes and index of this one.

    Raises:
        UserError: fewer samples than one global batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.world_size = world_size
        self.rank = rank
        self.epoch = 0
        self.first_image = 0
        if len(self) == 0:
            raise UserError(
                f"the data set has {length} images, fewer than one batch of {world_size} process(es) x "
                f"{batch_size}; lower --batch_size"
            )

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the position is."""
        return self.length // (self.batch_size * self.world_size)

    def set_position(self, epoch: int, image: int = 0) -> None:
        """Let the next iteration yield the batches of ``epoch`` from the ``image``-th of its order on."""
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
    """Evaluation batches as lists of (0, index): every sample once, samples rank::world_size on process ``rank``."""

    def __init__(self, length: int, batch_size: int, *, world_size: int = 1, rank: int = 0) -> None:
        self.indices = range(rank, length, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


def collate_detection(batch: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[NestedTensor, list[dict[str, Tensor]]]:
    """Samples of :class:`datasets.detection.DetectionDataset` -> (padded images, list of their targets)."""
    images, targets = zip(*batch, strict=True)
    return nested_tensor_from_tensor_list(list(images)), list(targets)


def make_train_loader(dataset: Dataset, collate_fn: Callable[[list], Any], args: argparse.Namespace) -> DataLoader:
    """Shuffled training batches of this process: ``--batch_size``, ``--seed`` and ``--num_workers`` of ``args``.

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
    return make_loader(dataset, sampler, collate_fn, num_workers=args.num_workers, pin_memory=args.device == "cuda")


def make_eval_loader(dataset: Dataset, args: argparse.Namespace) -> DataLoader:
    """This process's share of a data set to evaluate on, each image exactly once over all processes."""
    sampler = EvalSampler(len(dataset), args.batch_size, world_size=distributed.world_size(), rank=distributed.rank())
    return make_loader(
        dataset, sampler, collate_detection, num_workers=args.num_workers, pin_memory=args.device == "cuda"
    )


def make_loader(
    dataset: Dataset,
    batch_sampler: Sampler[list[Key]],
    collate_fn: Callable[[list], Any],
    *,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    """A loader whose workers live on between epochs and which leaves the global random state alone.

    (The loader draws a seed for its workers each epoch; nothing in the data sets depends on it.) Each worker computes
    with one thread: torch sees to it.
    """
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=protect_worker,
        generator=torch.Generator(),
    )
