"""The training samples of each pretext task, built from command-line arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import build_unlabelled
from datasets.images import load_image
from datasets.pretext.one_view import OneViewDataset, PatchTransform, ProposalTransform, collate_one_view
from datasets.pretext.samples import PretextDataset
from datasets.pretext.two_view import TwoViewDataset, TwoViewTransform, collate_two_view
from datasets.proposals.store import ProposalStore


class PretextData(NamedTuple):
    """How one method sees an image.

    Attributes:
        dataset: of its samples.
        build_transform: (args, options that all transforms share) -> what the data set makes samples with.
        collate: list of samples -> batch, what the method's ``forward`` takes.
    """

    dataset: type[PretextDataset]
    build_transform: Callable[[argparse.Namespace, dict[str, Any]], Callable]
    collate: Callable[[list], Any]


def _siamese(args: argparse.Namespace, common: dict[str, Any]) -> TwoViewTransform:
    change_later = args.augment_device == "cuda"
    return TwoViewTransform(num_regions=args.num_regions, view_iou=args.view_iou, change_later=change_later, **common)


def _up_detr(args: argparse.Namespace, common: dict[str, Any]) -> PatchTransform:
    return PatchTransform(num_regions=args.num_regions, **common)


def _detreg(args: argparse.Namespace, common: dict[str, Any]) -> ProposalTransform:
    return ProposalTransform(num_proposals=args.num_proposals, random=args.proposals == "random", **common)


# name of --method -> its samples
PRETEXT_DATA = {
    "siamese": PretextData(TwoViewDataset, _siamese, collate_two_view),
    "updetr": PretextData(OneViewDataset, _up_detr, collate_one_view),
    "detreg": PretextData(OneViewDataset, _detreg, collate_one_view),
}


def build_pretext_data(args: argparse.Namespace, mean: tuple[float, ...], std: tuple[float, ...]) -> PretextDataset:
    """Samples of the unlabelled images for ``--method``, with the proposals that belong to them.

    Args:
        mean, std: of the channels, what the backbone wants.

    Raises:
        UserError: no images there, proposals that were made for others, or an image that could not be read then and
            cannot now.
    """
    images = build_unlabelled(args)
    proposals = None
    if args.proposals != "random":
        proposals = ProposalStore(args.proposal_dir)
        proposals.check(images.relative_paths(), args.proposals)
        for index in proposals.failed():
            load_image(images.path(index))
    common = {"scales": args.scales, "max_size": args.max_size, "crop_size": args.crop_size, "mean": mean, "std": std}
    data = PRETEXT_DATA[args.method]
    return data.dataset(images, proposals, data.build_transform(args, common), args.seed)
