"""The training samples of a pretext task, built from command-line arguments."""

from __future__ import annotations

import argparse

from datasets import build_unlabelled, reading_of
from datasets.images import load_image
from datasets.pretext.samples import PretextDataset
from datasets.proposals.store import ProposalStore
from util.records import PretextRecord


def build_pretext_data(
    args: argparse.Namespace, task: PretextRecord, mean: tuple[float, ...], std: tuple[float, ...]
) -> PretextDataset:
    """Samples of the unlabelled images for this task, with the proposals that belong to them.

    Args:
        task: its data set and transform are used.
        mean, std: of the channels, what the backbone wants.

    Raises:
        UserError: no images there, proposals that were made for others, or an image that could not be read then and
            cannot now.
    """
    images, reading = build_unlabelled(args), reading_of(args)
    proposals = None
    if args.proposals != "random":
        proposals = ProposalStore(args.proposal_dir)
        proposals.check(images.relative_paths(), args.proposals)
        if args.damaged == "error":
            for index in proposals.failed():
                load_image(images.path(index), reading=reading)
    common = {"scales": args.scales, "max_size": args.max_size, "crop_size": args.crop_size, "mean": mean, "std": std}
    return task.dataset(images, proposals, task.build_transform(args, common), args.seed, reading)
