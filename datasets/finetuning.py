"""The labelled images to finetune on and to evaluate on, built from command-line arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np

from datasets import build_detection, detection_dataset, layout_of
from datasets.check_images import usable_images
from datasets.detection import DetectionDataset
from datasets.few_images import draw_fraction, draw_per_class
from datasets.held_out import USUAL_FRACTION, draw_stratified, find_images, write_list
from datasets.layout import Layout
from datasets.records import DetectionRecords, some
from util import distributed
from util.errors import DataError, UserError
from util.files import write_json
from util.logger import say

FEW_IMAGES = ("train_fraction", "train_images_per_class")
"""Arguments that make a run train on a part of the images."""

NAMES_TOLD = 10
"""At most this many names of classes are printed."""


def build_sets(
    args: argparse.Namespace,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    records: DetectionRecords | None = None,
    train_images: list[str] | None = None,
    val_images: list[str] | None = None,
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The images to train on, and those to evaluate on; None: ``--val_fraction 0``.

    The images to evaluate on are the validation split. If there is none, they are a fraction of the training images,
    drawn at random or those that the resumed run has held out; ``args.val_fraction`` becomes this fraction.

    Args:
        mean, std: per channel, as the backbone expects them.
        records: those of the training split, if they are read already.
        train_images, val_images: the images that the resumed run trained on or held out, if it chose some.

    Raises:
        UserError: the data are missing or damaged, or the flags do not fit them.
    """
    layout = layout_of(args)
    if records is None:
        train_set = build_detection(args, "train", mean, std)
    else:
        train_set = detection_dataset(records, args, "train", mean, std)
    leave_out_damaged(train_set, args, "train")
    if not train_set.num_objects:
        raise DataError(
            f"{train_set.records.source}: no usable box in the whole training set; look at it with tools/check_data.py"
        )
    if args.val_fraction == 0:
        val_set = None
    elif "val" in layout.splits and not val_images:
        if args.val_fraction:
            raise UserError(
                f"--val_fraction {args.val_fraction}: the data set has its own validation images "
                f"({layout.splits['val']}); leave --val_fraction out to evaluate on these, or use 0 to train without"
            )
        val_set = build_detection(args, "val", mean, std, train_set.categories)
        leave_out_damaged(val_set, args, "val")
    else:
        val_set = detection_dataset(hold_out(train_set, args, val_images), args, "val", mean, std, tell=False)
    tell_data(args, layout, train_set, val_set)
    if args.val_fraction:
        total, why = len(train_set) + len(val_set), "the data have no validation images: "
        write_list(val_set.records.relative_paths(), total, args.output_dir, why)
    take_few(train_set, args, train_images)
    warn_of_many_objects(train_set, args)
    return train_set, val_set


def hold_out(train_set: DetectionDataset, args: argparse.Namespace, kept: list[str] | None) -> DetectionRecords:
    """Remove a fraction of the images from the training set, and return them.

    Args:
        kept: those that a resumed run has held out; None: draw them.
    """
    args.val_fraction = args.val_fraction or USUAL_FRACTION
    records = train_set.records
    if kept is None:
        held = draw_stratified(records, args.val_fraction, args.seed)
    else:
        held = find_images(records.relative_paths(), kept, records.source)
    train_set.records = records.select(np.setdiff1d(np.arange(len(records)), held))
    return records.select(held)


def take_few(train_set: DetectionDataset, args: argparse.Namespace, kept: list[str] | None) -> None:
    """Keep only the training images that the flags draw, or those of the resumed run; write a list of them."""
    if not takes_few(args):
        return
    records = train_set.records
    if kept is not None:
        chosen = find_images(records.relative_paths(), kept, records.source)
    elif args.train_fraction is not None:
        chosen = draw_fraction(records, args.train_fraction, args.seed)
    else:
        chosen = draw_per_class(records, args.train_images_per_class, args.seed)
    train_set.records = records.select(chosen)
    path = f"{args.output_dir}/train_images.json"
    if distributed.is_main():
        write_json(train_set.records.relative_paths(), path)
    say(f"training on {len(train_set)} of {len(records)} images, listed in {path}")


def tell_data(
    args: argparse.Namespace, layout: Layout, train_set: DetectionDataset, val_set: DetectionDataset | None
) -> None:
    """Print one line about the data, and a warning if images are in both sets."""
    names = [category["name"] for category in train_set.categories]
    parts = [
        f"{args.data_path or train_set.records.root}: {layout.title}",
        _told(train_set, "train on", layout, "train"),
    ]
    if val_set is not None:
        parts.append(_told(val_set, "evaluate on", layout, "train" if args.val_fraction else "val"))
    listed = ", ".join(names[:NAMES_TOLD]) + (", ..." if len(names) > NAMES_TOLD else "")
    say(f"{', '.join(parts)}, {len(names)} {'class' if len(names) == 1 else 'classes'}: {listed}")
    if val_set is not None and (both := set(_files(train_set)) & set(_files(val_set))):
        say(f"warning: {len(both)} of {len(val_set)} images to evaluate on are also trained on: the scores mean little")
    if untrained := _names_without_objects(train_set):
        say(
            f"warning: {len(untrained)} of {len(names)} classes have no object to train on: "
            f"{some(untrained, len(untrained))}"
        )


def _names_without_objects(dataset: DetectionDataset) -> list[str]:
    shown = set(dataset.records.labels[~dataset.records.crowd].tolist())
    return [category["name"] for category in dataset.categories if category["label"] not in shown]


def _told(dataset: DetectionDataset, purpose: str, layout: Layout, split: str) -> str:
    where = layout.splits.get(split)
    return f"{len(dataset)} images to {purpose}" + (f" ({where})" if where else "")


def _files(dataset: DetectionDataset) -> list[str]:
    root = os.path.realpath(dataset.records.root)
    return [os.path.normpath(os.path.join(root, path)) for path in dataset.records.relative_paths()]


def takes_few(args: argparse.Namespace) -> bool:
    """Whether the run trains on only a part of the images."""
    return any(getattr(args, name) is not None for name in FEW_IMAGES)


def leave_out_damaged(dataset: DetectionDataset, args: argparse.Namespace, name: str) -> None:
    """Check the images as the flags say, and skip those that cannot be used. Every process must call this."""
    records = dataset.records
    chosen = usable_images(records, records.sizes, dataset.reading, args, name)
    if chosen is not None:
        dataset.records = records.select(chosen)


def warn_of_many_objects(dataset: DetectionDataset, args: argparse.Namespace) -> None:
    """Warn of images with more objects than the detector has queries: some of them cannot be learned."""
    records = dataset.records
    counts = np.bincount(records.image_of_box()[~records.crowd], minlength=len(records))
    many = int((counts > args.num_queries).sum())
    if many:
        say(
            f"warning: {many} of {len(records)} images have more objects than --num_queries {args.num_queries} (up to "
            f"{counts.max()}, in {records.path(int(counts.argmax()))}): raise it, or the others cannot be learned"
        )
