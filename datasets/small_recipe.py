"""``--recipe small``: how to finetune on a small data set, by the number of its images, their sizes and objects.

The paper's recipe is for COCO's 118,000 images of 480 x 640 pixels. results/README.md has what this one changes.
"""

from __future__ import annotations

import argparse
import math
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.records import DetectionRecords
from util import distributed
from util.recipes import PAPER, SMALL, SMALL_BELOW
from util.records import DetectorRecord
from util.resources import MOST_QUERIES
from util.run_summary import number_of

STEPS = 3000
EPOCHS = 12
"""Training takes so many steps, but every image is seen at least so often."""

WARMUP = 1 / 30
"""Share of the training in which the learning rate rises."""

EVALUATIONS = 20
"""About so often the detector is evaluated and saved in a training."""

SHORTEST, LONGEST = 320, 800
"""The short side of the images becomes at least and at most so many pixels."""

FEWEST_QUERIES = 100
USUAL_PER_OBJECT, LEAST_PER_OBJECT = 10, 1.5
"""Queries for each object of the most crowded image, in fifties: many learn slowly where there are few objects."""


@dataclass(frozen=True)
class Part:
    """Values of flags that belong together, and why they are what they are."""

    values: dict[str, Any]
    why: str


def small_detector(args: argparse.Namespace) -> list[Part]:
    """The detector of a run without a checkpoint, if neither it nor the one map of its backbone was typed."""
    if args.detr or args.feature_stride or args.dilation:
        return []
    return [Part({"detr": "deformable"}, "it needs the fewest steps without pretraining; the paper: conditional")]


def small_recipe(
    args: argparse.Namespace, paper: argparse.Namespace, records: DetectionRecords, detector: DetectorRecord
) -> list[Part]:
    """The parts of the recipe.

    Args:
        args: what is decided already: typed, or of a checkpoint; the others are None.
        paper: the same with that detector, completed by the paper's recipe.
        records: the labelled training images, all of them.
        detector: the record of the one to train.
    """
    images_per_step = paper.batch_size * paper.accum_steps * distributed.num_launched()
    steps_per_epoch = max(1, trained_on(paper, records) // images_per_step)
    epochs = typed_epochs(args, steps_per_epoch) or max(EPOCHS, math.ceil(STEPS / steps_per_epoch))
    steps = round(epochs * steps_per_epoch)
    return [
        sizes(records),
        *length(args, paper, epochs, steps),
        rate(detector, steps),
        Part({"dropout": 0.0}, "dropout slows a short training"),
        queries(records, paper.num_queries),
        *weights(args, paper),
    ]


def trained_on(args: argparse.Namespace, records: DetectionRecords) -> int:
    """About how many of the images are trained on."""
    if args.train_images_per_class is not None:
        return min(len(records), args.train_images_per_class * len(records.categories))
    return round(len(records) * (args.train_fraction or 1))


def typed_epochs(args: argparse.Namespace, steps_per_epoch: int) -> float | None:
    """The length that is decided already, in epochs; None: none is."""
    return args.max_steps / steps_per_epoch if args.max_steps is not None else args.epochs


def sizes(records: DetectionRecords) -> Part:
    """From 0.7 of the images' own short side to all of it; the long side is limited in the paper's proportion."""
    own = float(np.median(records.sizes.min(axis=1)))
    side = min(max(32 * round(own / 32), SHORTEST), LONGEST)
    scales = list(range(32 * round(0.7 * side / 32), side + 1, 32))
    return Part({"scales": scales, "max_size": side * 1333 // 800}, f"the images' own short side is {own:.0f} (median)")


def length(args: argparse.Namespace, paper: argparse.Namespace, epochs: float, steps: int) -> list[Part]:
    """Epochs for a few thousand steps, if no length is decided, and epochs between evaluations."""
    every = max(1, round(epochs / EVALUATIONS))
    why = f"{number_of(math.ceil(epochs / every), 'evaluation')} in all"
    often = Part({"eval_every": every, "save_every_epochs": every}, why)
    if args.epochs is not None or args.max_steps is not None:
        return [often]
    return [Part({"epochs": epochs}, f"about {steps:,} steps; the paper: {paper.epochs} epochs"), often]


def rate(detector: DetectorRecord, steps: int) -> Part:
    """Twice the paper's rate, after a warm-up."""
    values = {"lr": 2 * detector.finetuning.lr, "warmup_steps": round(WARMUP * steps)}
    return Part(values, f"the training is short; the paper: {detector.finetuning.lr:g}, no warm-up")


def queries(records: DetectionRecords, usual: int) -> Part:
    """Ten for each object of the most crowded image, from 100 to the detector's ``usual`` number, or what it needs."""
    most = int(np.bincount(records.image_of_box()[~records.crowd], minlength=1).max())
    wanted, needed = (50 * math.ceil(each * most / 50) for each in (USUAL_PER_OBJECT, LEAST_PER_OBJECT))
    number = max(min(max(wanted, FEWEST_QUERIES), usual), needed)
    why = f"the most crowded image has {most} {'object' if most == 1 else 'objects'}"
    return Part({"num_queries": min(number, MOST_QUERIES)}, why)


def weights(args: argparse.Namespace, paper: argparse.Namespace) -> list[Part]:
    """ImageNet's for a ResNet that would start random."""
    if args.pretrain or args.backbone_weights or not paper.backbone.startswith("resnet"):
        return []
    return [Part({"backbone_weights": "auto"}, "those of ImageNet, if they can be had")]


def values_of(parts: list[Part]) -> dict[str, Any]:
    """All values, with that of ``--recipe`` itself."""
    return {"recipe": SMALL} | {name: value for part in parts for name, value in part.values.items()}


def describe_recipe(parts: list[Part], typed: argparse.Namespace, complete: argparse.Namespace, num_images: int) -> str:
    """A line for each part of which a value is used: not typed, nor fixed by a checkpoint.

    Args:
        typed: as in :func:`small_recipe`.
        complete: the arguments of the run.
        num_images: labelled training images.
    """
    why = f"fewer than {SMALL_BELOW:,}" if num_images < SMALL_BELOW else "chosen by you"
    told = f"--recipe {SMALL}: {num_images:,} labelled training images, {why}"
    lines = [f"{told}; --recipe {PAPER} has the paper's values"]
    for part in parts:
        used = {name: value for name, value in part.values.items() if getattr(typed, name) is None}
        flags = [f"--{name} {_typed(value)}" for name, value in used.items() if getattr(complete, name) == value]
        lines += [f"  {' '.join(flags)}: {part.why}"] if flags else []
    return "\n".join(lines)


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return shlex.join(map(str, value))
    return value if isinstance(value, str) else f"{value:g}"
