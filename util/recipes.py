"""What an argument becomes that the user left out, and the schedule that follows.

In this order: what the user typed, what the checkpoint was made with (the architecture; of a run that is resumed,
everything), the paper's recipe, the parser's default.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from util.errors import CheckpointError
from util.logger import say

# What decides the detector's parameters and what they mean; a checkpoint fixes these.
ARCHITECTURE = (
    "detr",
    "backbone",
    "dilation",
    "feature_stride",
    "position_embedding",
    "enc_layers",
    "dec_layers",
    "hidden_dim",
    "nheads",
    "dim_feedforward",
    "num_queries",
    "num_feature_levels",
    "enc_n_points",
    "dec_n_points",
    "with_box_refine",
    "two_stage",
)

DEFAULT_WHERE_NONE = {"feature_stride": 32}
"""What None stands for: it is none of a ResNet's flags, nor of a detector's on several levels."""

SCHEDULE = ("epochs", "lr_drop", "max_steps", "lr_drop_step")

# Where things lie, and how a run starts: no part of what it computes when it is resumed.
PLACES = ("data_path", "train_ann", "train_images", "val_ann", "val_images")
PLACES += ("proposal_dir", "backbone_weights", "pretrain", "new_parts", "resume", "output_dir", "device")
PLACES += ("num_workers", "eval")

COCO_SCALES = list(range(480, 801, 32))
IMAGENET_SCALES = list(range(320, 481, 16))

# Deformable DETR's share of --lr for reference points and sampling offsets; other detectors have none.
LR_LINEAR_PROJ_MULT = 0.1


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """What was typed, and the parser's defaults.

    What was not typed is None, so that a checkpoint or a recipe may fill it before the default does; but for places,
    which have theirs at once.
    """
    defaults = vars(parser.parse_args([]))
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults)))
    fill(args, {name: value for name, value in defaults.items() if name in PLACES})
    return args, defaults


def detector_defaults(detr: str | None) -> dict[str, Any]:
    """The paper's detector; ``detr`` is the one that was chosen, if any."""
    detr = detr or "conditional"
    deformable = detr == "deformable"
    return {
        "detr": detr,
        "backbone": "resnet50",
        "dilation": False,
        "feature_stride": None,
        "position_embedding": "sine",
        "enc_layers": 6,
        "dec_layers": 6,
        "hidden_dim": 256,
        "nheads": 8,
        "dim_feedforward": 1024 if deformable else 2048,
        "num_queries": 300 if deformable else 100,
        "num_feature_levels": 4 if deformable else 1,
        "enc_n_points": 4,
        "dec_n_points": 4,
        "with_box_refine": False,
        "two_stage": False,
    }


def pretrain_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the papers' pretraining for this method, detector and data set."""
    on_coco = args.dataset_file == "coco"
    recipe = {
        "scales": COCO_SCALES if on_coco else IMAGENET_SCALES,
        "max_size": 1333 if on_coco else 600,
        "lr": 1e-4,
        "batch_size": 8,
        "amp": "none",
        **_method_recipe(args, on_coco),
    }
    return recipe | _schedule_of(args, {"max_steps": 120_000 if on_coco else 300_000}, drop_at=2 / 3)


def _method_recipe(args: argparse.Namespace, on_coco: bool) -> dict[str, Any]:
    """What belongs to a pretext task alone: Siamese DETR, UP-DETR (2011.09094) or DETReg (2106.04550)."""
    softmax = _class_weights(focal=False)
    if args.method == "updetr":
        updetr = {"num_regions": 10, "patch_dropout": 0.1, "shuffle_queries": False, "feature_loss_coef": 1.0}
        return {"method": "updetr", **softmax, **updetr}
    if args.method == "detreg":
        return {"method": "detreg", **_class_weights(is_focal(args)), "num_proposals": 30, "feature_loss_coef": 1.0}
    return {
        "method": "siamese",
        **softmax,
        "num_regions": 10,
        "view_iou": 0.5,
        "augment_device": "cpu",
        "query_jitter": 0.1,
        "feature_loss_coef": 5.0 if args.detr == "conditional" and not on_coco else 3.0,
        "global_loss_coef": 0.3 if on_coco else 10.0,
        "no_global_loss": False,
    }


def finetune_recipe(args: argparse.Namespace) -> dict[str, Any]:
    """Values of the paper's finetuning for this detector."""
    focal, deformable = is_focal(args), args.detr == "deformable"
    recipe = {
        "scales": COCO_SCALES,
        "max_size": 1333,
        **_class_weights(focal),
        "lr": 2e-4 if deformable else 1e-4,
        "lr_linear_proj_mult": LR_LINEAR_PROJ_MULT,
        "lr_backbone": 2e-5 if deformable else 5e-5 if args.pretrain else 1e-5,
        "batch_size": 2,
        "amp": "none",
        "eval_size": max(args.scales or COCO_SCALES),
        "eval_max_size": args.max_size or 1333,
    }
    return recipe | _schedule_of(args, {"epochs": 50 if focal else 150}, drop_at=0.8 if focal else 2 / 3)


def _class_weights(focal: bool) -> dict[str, float]:
    """Cost and weights of this classification."""
    if focal:
        return {"set_cost_class": 2.0, "cls_loss_coef": 2.0, "focal_alpha": 0.25}
    return {"set_cost_class": 1.0, "cls_loss_coef": 1.0, "eos_coef": 0.1}


def is_focal(args: argparse.Namespace) -> bool:
    """Whether the run classifies by sigmoid (focal loss), not by softmax with a no-object class.

    In finetuning, and in DETReg, vanilla DETR does not and the others do; Siamese DETR and UP-DETR do not.
    """
    return args.detr != "vanilla" and getattr(args, "method", None) not in ("siamese", "updetr")


def _schedule_of(args: argparse.Namespace, default: dict[str, int], *, drop_at: float) -> dict[str, int]:
    """The length that was typed, else the default one, and lr dropping at this share of it."""
    length = {name: getattr(args, name) for name in ("epochs", "max_steps") if getattr(args, name) is not None}
    drops = {"epochs": "lr_drop", "max_steps": "lr_drop_step"}
    length = length or default
    return length | {drops[name]: round(drop_at * value) for name, value in length.items()}


def fill(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Set every argument in ``values`` that the user left out."""
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def adopt(
    args: argparse.Namespace,
    names: tuple[str, ...],
    saved: dict[str, Any],
    source: str | Path,
    free: Collection[str] = (),
) -> None:
    """Take arguments from a checkpoint that they cannot differ from, but for those that are ``free``.

    Raises:
        CheckpointError: the user typed another value than the checkpoint was trained with.
    """
    for name in names:
        if name not in saved:
            continue
        typed = getattr(args, name)
        if typed is not None and name in free:
            continue
        value = DEFAULT_WHERE_NONE.get(name) if saved[name] is None else saved[name]
        if typed is not None and typed == value:
            continue
        if typed is not None:
            raise CheckpointError(
                f"--{name} {typed} does not fit {source}, which was trained with --{name} {saved[name]}; "
                f"leave --{name} out to take the checkpoint's"
            )
        setattr(args, name, saved[name])


def continue_run(args: argparse.Namespace, saved: dict[str, Any]) -> None:
    """A resumed run goes on as it was: what is not typed again is what it was, but for places.

    A length that is typed anew replaces the saved schedule as a whole, for where lr drops is a share of it.
    """
    kept = {name: value for name, value in saved.items() if hasattr(args, name) and name not in PLACES}
    if args.epochs is not None or args.max_steps is not None:
        kept = {name: value for name, value in kept.items() if name not in SCHEDULE}
    if args.dataset_file not in (None, saved.get("dataset_file")):
        kept = {name: value for name, value in kept.items() if name not in ("voc_train", "voc_val")}
    fill(args, kept)


def schedule(args: argparse.Namespace, steps_per_epoch: int) -> tuple[int, int | None]:
    """Length of the schedule and the step at which lr drops (None: never), both in optimizer steps."""
    if args.max_steps is not None:
        return args.max_steps, args.lr_drop_step
    drop = None if args.lr_drop is None else args.lr_drop * steps_per_epoch
    return args.epochs * steps_per_epoch, drop


def tell_changes(args: argparse.Namespace, saved: dict[str, Any]) -> None:
    """Say what a resumed run does otherwise than the stopped one; places do not count."""
    changes = [
        f"--{name} {saved[name]} -> {value}"
        for name, value in vars(args).items()
        if name in saved and name not in PLACES and saved[name] != value
    ]
    if changes:
        say(f"not the run that was stopped: {', '.join(changes)}")
