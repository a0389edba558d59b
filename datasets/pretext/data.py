"""The training samples of a pretext task, built from command-line arguments."""

from __future__ import annotations

import argparse

import numpy as np

from datasets import build_unlabelled, reading_of
from datasets.held_out import draw_random, find_images
from datasets.image_folder import UnlabelledImages
from datasets.images import load_image
from datasets.pretext.samples import ImageSource, PretextDataset
from datasets.proposals.store import ProposalStore
from util.records import PretextRecord


def build_pretext_data(
    args: argparse.Namespace, task: PretextRecord, mean: tuple[float, ...], std: tuple[float, ...]
) -> PretextDataset:
    """The training samples of this task: the unlabelled images with their proposals.

    Args:
        task: provides the data set and the transform.
        mean, std: per channel, as the backbone expects them.

    Raises:
        UserError: no images were found, the proposals were made for other images, or an image that could not be read
            when they were made still cannot be read.
    """
    return _build(args, task, build_unlabelled(args), args.proposal_dir, mean, std, args.seed)


def build_val_data(
    args: argparse.Namespace, task: PretextRecord, mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> PretextDataset:
    """As :func:`build_pretext_data`, of the images in ``--val_path`` and the proposals in ``--val_proposal_dir``."""
    images = UnlabelledImages.from_folder(args.val_path, args.output_dir)
    return _build(args, task, images, args.val_proposal_dir, mean, std, seed)


def _build(
    args: argparse.Namespace,
    task: PretextRecord,
    images: ImageSource,
    proposal_dir: str | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> PretextDataset:
    proposals, reading = None, reading_of(args)
    if args.proposals != "random":
        proposals = ProposalStore(proposal_dir)
        proposals.check(images.relative_paths(), args.proposals)
        if args.damaged == "error":
            for index in proposals.failed():
                load_image(images.path(index), reading=reading)
    common = {"scales": args.scales, "max_size": args.max_size, "crop_size": args.crop_size, "mean": mean, "std": std}
    return task.dataset(images, proposals, task.build_transform(args, common), seed, reading)


def hold_out(
    dataset: PretextDataset, fraction: float, seed: int, kept: list[str] | None, *, measure_seed: int
) -> tuple[PretextDataset, PretextDataset]:
    """Split a data set into (images to train on, images held out). At least one image is held out.

    Args:
        fraction: of the images to hold out.
        seed: draws these images.
        kept: paths of the images that a resumed run has held out; None: draw them.
        measure_seed: seed of the samples of the images held out.

    Raises:
        UserError: no image is left to train on.
        DataError: one of ``kept`` is not in the data set.
    """
    if kept is None:
        held = draw_random(len(dataset), fraction, seed)
    else:
        held = find_images(dataset.images.relative_paths(), kept, str(dataset.images.root))
    rest = np.setdiff1d(np.arange(len(dataset)), held)
    return dataset.select(rest), dataset.select(held, seed=measure_seed)
