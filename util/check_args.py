"""Checks flags and their combinations before anything is built.

The record of a detector, a pretext task or a data format checks its own flags.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from util.errors import UserError
from util.optional import require
from util.recipes import PAPER
from util.records import Choices, Classification, DataRecord
from util.resources import LARGEST_SIDE, MOST_LAYERS, MOST_QUERIES


def at_least(args: argparse.Namespace, least: float, *names: str) -> None:
    """Raises UserError if one of the arguments is smaller than ``least``; None (not given) is allowed."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")


def at_most(args: argparse.Namespace, most: int, *names: str) -> None:
    """Raises UserError if one of the arguments is larger than ``most``; None or no such argument is allowed."""
    for name in names:
        value = getattr(args, name, None)
        if value is not None and value > most:
            raise UserError(f"--{name} {value}: must be at most {most}")


def is_given(value: Any) -> bool:
    """Whether a flag was given: not None, and not False, a switch that is off; 0 is a value."""
    return value is not None and value is not False


def check_owned_flags(args: argparse.Namespace, choices: Choices) -> None:
    """Check that flags of some data formats, detectors or tasks are only used with these, and are large enough.

    Raises:
        UserError: names the flag and what it goes with.
    """
    for option in choices.tables():
        chosen = getattr(args, option)
        for name, (flag, owners) in choices.owners(option).items():
            if is_given(getattr(args, name)) and chosen not in owners:
                wanted = " or ".join(f"--{option} {owner}" for owner in owners)
                raise UserError(f"--{name} goes with {wanted}, not with --{option} {chosen}")
            if flag.least is not None:
                at_least(args, flag.least, name)


def check_data(args: argparse.Namespace, record: DataRecord, splits: Sequence[str]) -> None:
    """Check that the flags say where the labelled data of these splits are.

    Raises:
        UserError: names the flags.
    """
    if record.check is not None:
        record.check(args, splits)
    elif args.data_path is None:
        raise UserError("--data_path DIR is needed: the root of the data set")


def check_common(args: argparse.Namespace, choices: Choices, classification: Classification) -> None:
    """Check the flags that both scripts have.

    Args:
        classification: of the run.

    Raises:
        UserError: names the flags and their values.
    """
    _check_ranges(args)
    check_class_weights(args, classification)
    check_owned_flags(args, choices)
    choices.detectors[args.detr].check(args, choices.stage)
    if args.tensorboard:
        require("tensorboard", "tensorboard", "--tensorboard")
    _check_schedule(args)


def _check_ranges(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} {value}: must be a finite number")
    at_least(args, 1, "batch_size", "accum_steps", "max_size", "keep_checkpoints", "log_every", "epochs", "max_steps")
    at_least(args, 1, "num_queries", "hidden_dim", "nheads", "dim_feedforward", "dec_layers", "enc_layers")
    at_least(args, 1, "max_image_pixels", "pad_to")
    at_most(args, LARGEST_SIDE, "max_size", "crop_size", "eval_size", "eval_max_size", "pad_to")
    at_most(args, MOST_LAYERS, "enc_layers", "dec_layers", "enc_n_points", "dec_n_points")
    at_most(args, MOST_QUERIES, "num_queries", "hidden_dim", "dim_feedforward")
    at_least(args, 0, "num_workers", "save_every_epochs", "save_every_steps", "seed", "lr_drop", "lr_drop_step")
    at_least(args, 0, "warmup_steps", "eval_every")
    at_least(args, 0, "lr", "weight_decay", "clip_max_norm", "set_cost_class", "set_cost_bbox", "set_cost_giou")
    at_least(args, 0, "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef", "eos_coef", "focal_alpha")
    if args.seed >= 2**63:
        raise UserError(f"--seed {args.seed}: must be below 2^63")
    if args.cuda_graphs and not args.compile:
        raise UserError("--cuda_graphs goes with --compile: it replays what that compiles")
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout {args.dropout}: must lie in [0, 1)")
    if min(args.scales) < 1:
        raise UserError(f"--scales {min(args.scales)}: must be at least 1 pixel")
    if max(args.scales) > LARGEST_SIDE:
        raise UserError(f"--scales {max(args.scales)}: must be at most {LARGEST_SIDE} pixels")
    if args.hidden_dim % args.nheads or args.hidden_dim % 4:
        raise UserError(
            f"--hidden_dim {args.hidden_dim}: must be a multiple of 4 and of --nheads {args.nheads}, "
            "for the position encoding and the attention heads"
        )


def _check_schedule(args: argparse.Namespace) -> None:
    if args.epochs is not None and args.max_steps is not None:
        raise UserError("--epochs and --max_steps both give the length of the schedule: choose one")
    if args.lr_drop is not None and args.epochs is None:
        raise UserError("--lr_drop counts epochs and goes with --epochs; with --max_steps use --lr_drop_step")
    if args.lr_drop_step is not None and args.max_steps is None:
        raise UserError("--lr_drop_step counts steps and goes with --max_steps; with --epochs use --lr_drop")
    if args.lr_schedule == "cosine" and (args.lr_drop, args.lr_drop_step) != (None, None):
        raise UserError("--lr_schedule cosine has no drop: leave --lr_drop and --lr_drop_step out")


def check_class_weights(args: argparse.Namespace, classification: Classification) -> None:
    """Check the weights that only softmax (``--eos_coef``) or only focal loss (``--focal_alpha``) has.

    Raises:
        UserError: names the flag and its value.
    """
    if args.eos_coef is not None and args.focal_alpha is not None:  # the recipe sets one, so the user typed the other
        if classification == "focal":
            raise UserError(f"--eos_coef {args.eos_coef} goes with softmax, but this run uses focal loss; omit it")
        raise UserError(f"--focal_alpha {args.focal_alpha} goes with focal loss, but this run uses softmax; omit it")
    if args.focal_alpha is not None and args.focal_alpha > 1:
        raise UserError(f"--focal_alpha {args.focal_alpha}: must lie in [0, 1]")


def check_pretrain(args: argparse.Namespace, choices: Choices, world_size: int) -> None:
    """Check the flags of pretraining.

    Args:
        world_size: number of processes.

    Raises:
        UserError: names the flags and their values.
    """
    task = choices.pretexts[args.method]
    check_common(args, choices, task.classification or choices.detectors[args.detr].classification)
    if args.data_path is None:
        raise UserError("--data_path DIR is needed: the folder of images to pretrain on")
    at_least(args, 1, "crop_size")
    if args.recipe not in (PAPER, *task.recipes):
        owners = " or ".join(
            f"--method {name}" for name, record in choices.pretexts.items() if args.recipe in record.recipes
        )
        raise UserError(f"--recipe {args.recipe} goes with {owners}, not with --method {args.method}")
    task.check(args, world_size)
    check_validation(args)
    if (args.proposals == "random") != (args.proposal_dir is None):
        raise UserError(
            "--proposal_dir needs --proposals NAME, what made them: edgebox, selective_search, ..."
            if args.proposals == "random"
            else f"--proposals {args.proposals} needs --proposal_dir DIR, the folder they were written to"
        )


def check_validation(args: argparse.Namespace) -> None:
    """Check the flags that choose the images on which pretraining is measured.

    Raises:
        UserError: names the flags.
    """
    if args.val_path is not None and args.val_fraction is not None:
        raise UserError("--val_path and --val_fraction both say what to measure on: choose one")
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise UserError(f"--val_fraction {args.val_fraction}: must lie between 0 and 1")
    needs = args.val_path is not None and args.proposals != "random"
    if needs != (args.val_proposal_dir is not None):
        raise UserError(
            f"--val_path with --proposals {args.proposals} needs --val_proposal_dir DIR: the proposals of its images"
            if needs
            else "--val_proposal_dir goes with --val_path and with --proposals that are read from a folder"
        )


def check_finetune(args: argparse.Namespace, choices: Choices) -> None:
    """Check the flags of finetuning.

    Raises:
        UserError: names the flags.
    """
    check_common(args, choices, choices.detectors[args.detr].classification)
    at_least(args, 0, "lr_backbone")
    at_least(args, 1, "eval_size", "eval_max_size", "train_images_per_class")
    at_least(args, 100, "max_detections")
    at_least(args, 0, "patience", "ema")
    if args.ema >= 1:
        raise UserError(f"--ema {args.ema}: must be below 1; 0 switches it off")
    if args.patience and not args.eval_every:
        raise UserError(f"--patience {args.patience} counts evaluations while training: --eval_every 0 makes none")
    if args.resume and args.resume != "auto" and args.pretrain:
        raise UserError("--pretrain starts a new run, --resume FILE continues a run: choose one")
    if args.train_fraction is not None and args.train_images_per_class is not None:
        raise UserError("--train_fraction and --train_images_per_class both choose the training images: choose one")
    if args.train_fraction is not None and not 0 < args.train_fraction <= 1:
        raise UserError(f"--train_fraction {args.train_fraction}: must lie in (0, 1]")
    if args.val_fraction is not None and not 0 <= args.val_fraction < 1:
        raise UserError(f"--val_fraction {args.val_fraction}: must lie in [0, 1)")
    if args.pretrain and args.backbone_weights:
        raise UserError("--pretrain has its own backbone: omit --backbone_weights")
    if args.new_parts and not args.pretrain:
        raise UserError("--new_parts goes with --pretrain FILE")
    check_data(args, choices.datasets[args.dataset_file], ("val",) if args.eval else ("train", "val"))
