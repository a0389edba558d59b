"""Combinations of flags that cannot work, told before anything is built."""

from __future__ import annotations

import argparse
import math

from util.errors import UserError
from util.optional import require
from util.recipes import LR_LINEAR_PROJ_MULT, detector_defaults, is_focal
from util.script import select_device

# Flags of some pretext tasks only; None or False where they were not typed and are not needed.
FLAGS_OF_METHODS = {
    "num_regions": ("siamese", "updetr"),
    "view_iou": ("siamese",),
    "augment_device": ("siamese",),
    "query_jitter": ("siamese",),
    "no_global_loss": ("siamese",),
    "global_loss_coef": ("siamese",),
    "patch_dropout": ("updetr",),
    "shuffle_queries": ("updetr",),
    "num_proposals": ("detreg",),
}


def at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Raises UserError if one of the arguments is smaller; None, a flag without a value, is not."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")


def check_common(args: argparse.Namespace) -> None:
    """What both scripts need.

    Raises:
        UserError: names the flags and their values.
    """
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} {value}: must be a number")
    at_least(args, 1, "batch_size", "accum_steps", "max_size", "keep_checkpoints", "log_every", "epochs", "max_steps")
    at_least(args, 1, "num_queries", "hidden_dim", "nheads", "dim_feedforward", "dec_layers", "enc_layers")
    at_least(args, 1, "enc_n_points", "dec_n_points")
    at_least(args, 0, "num_workers", "save_every_epochs", "save_every_steps", "seed", "lr_drop", "lr_drop_step")
    at_least(args, 0, "lr", "weight_decay", "clip_max_norm", "set_cost_class", "set_cost_bbox", "set_cost_giou")
    at_least(args, 0, "cls_loss_coef", "bbox_loss_coef", "giou_loss_coef", "eos_coef", "focal_alpha")
    if args.seed >= 2**63:
        raise UserError(f"--seed {args.seed}: must be below 2^63")
    check_class_weights(args)
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout {args.dropout}: must lie in [0, 1)")
    if min(args.scales) < 1:
        raise UserError(f"--scales {min(args.scales)}: must be at least 1 pixel")
    if args.hidden_dim % args.nheads or args.hidden_dim % 4:
        raise UserError(
            f"--hidden_dim {args.hidden_dim}: must be a multiple of 4 and of --nheads {args.nheads}, "
            "for the position encoding and the attention heads"
        )
    check_deformable(args)
    if args.tensorboard:
        require("tensorboard", "tensorboard", "--tensorboard")
    if args.epochs is not None and args.max_steps is not None:
        raise UserError("--epochs and --max_steps both give the length of the schedule: choose one")
    if args.lr_drop is not None and args.epochs is None:
        raise UserError("--lr_drop counts epochs and goes with --epochs; with --max_steps use --lr_drop_step")
    if args.lr_drop_step is not None and args.max_steps is None:
        raise UserError("--lr_drop_step counts steps and goes with --max_steps; with --epochs use --lr_drop")


def check_class_weights(args: argparse.Namespace) -> None:
    """The weight that each kind of classification has to itself.

    Raises:
        UserError: names the flag and its value.
    """
    if args.eos_coef is not None and args.focal_alpha is not None:  # the recipe gives one, so the other was typed
        if is_focal(args):
            raise UserError(f"--eos_coef {args.eos_coef} goes with softmax, and this run classifies by focal loss")
        raise UserError(f"--focal_alpha {args.focal_alpha} goes with focal loss, and this run classifies by softmax")
    if args.focal_alpha is not None and args.focal_alpha > 1:
        raise UserError(f"--focal_alpha {args.focal_alpha}: must lie in [0, 1]")


def check_deformable(args: argparse.Namespace) -> None:
    """What only Deformable DETR has, and what it needs.

    Raises:
        UserError: names the flags and their values.
    """
    if args.detr != "deformable":
        for name in ("num_feature_levels", "enc_n_points", "dec_n_points", "with_box_refine", "two_stage"):
            value = getattr(args, name)
            if value != detector_defaults(args.detr)[name]:
                flag = f"--{name}" if value is True else f"--{name} {value}"
                raise UserError(f"{flag} goes with --detr deformable, not with --detr {args.detr}")
        return
    if args.two_stage and not args.with_box_refine:
        raise UserError("--two_stage needs --with_box_refine: its decoder starts from the encoder's boxes")
    if args.hidden_dim % 32:  # models.input_projection.NORM_GROUPS
        raise UserError(f"--hidden_dim {args.hidden_dim}: --detr deformable normalises 32 groups: a multiple of 32")


def check_pretrain(args: argparse.Namespace, world_size: int) -> None:
    """Combinations that pretraining cannot work with.

    Raises:
        UserError: names the flags and their values.
    """
    check_common(args)
    if args.data_path is None:
        raise UserError("--data_path DIR is needed: the folder of images to pretrain on")
    if args.two_stage:
        raise UserError("--two_stage cannot be pretrained: the pretext tasks' queries are no proposals of the encoder")
    if args.voc_train and args.dataset_file != "voc":
        raise UserError("--voc_train goes with --dataset_file voc")
    at_least(args, 1, "crop_size", "num_proposals")
    at_least(args, 0, "feature_loss_coef", "global_loss_coef")
    check_method_flags(args)
    if args.num_regions is not None and (args.num_regions < 1 or args.num_queries % args.num_regions):
        raise UserError(
            f"--num_queries {args.num_queries} is not divisible by --num_regions {args.num_regions}: "
            "every region is asked for by the same number of queries"
        )
    if args.method == "siamese":
        check_siamese(args, world_size)
    if args.patch_dropout is not None and not 0 <= args.patch_dropout < 1:
        raise UserError(f"--patch_dropout {args.patch_dropout}: must lie in [0, 1)")
    if (args.proposals == "random") != (args.proposal_dir is None):
        raise UserError(
            "--proposal_dir goes with --proposals edgebox, selective_search or whatever made them"
            if args.proposals == "random"
            else f"--proposals {args.proposals} needs --proposal_dir DIR, the folder they were written to"
        )


def check_method_flags(args: argparse.Namespace) -> None:
    """Flags of other pretext tasks than ``--method``.

    Raises:
        UserError: names the flag and its methods.
    """
    for name, methods in FLAGS_OF_METHODS.items():
        value = getattr(args, name)
        if value is not None and value is not False and args.method not in methods:
            wanted = " or ".join(f"--method {method}" for method in methods)
            raise UserError(f"--{name} goes with {wanted}, not with --method {args.method}")
    if args.method == "updetr" and args.proposals != "random":
        raise UserError(f"--proposals {args.proposals}: the patches of --method updetr are random; leave it out")


def check_siamese(args: argparse.Namespace, world_size: int) -> None:
    """What the two views of ``--method siamese`` need.

    Raises:
        UserError: names the flags and their values.
    """
    if not 0 < args.view_iou < 1:
        raise UserError(f"--view_iou {args.view_iou}: must lie between 0 and 1")
    if not 0 <= args.query_jitter < 0.5:
        raise UserError(f"--query_jitter {args.query_jitter}: must lie in [0, 0.5), or corners would cross")
    if args.augment_device == "cuda" and select_device(args.device).type != "cuda":
        raise UserError("--augment_device cuda goes with --device cuda, and there is no GPU in use")
    if not args.no_global_loss and args.global_loss_coef and args.batch_size * world_size < 2:
        raise UserError(
            "--batch_size 1 in one process: the global loss normalises over the batch and needs two images; "
            "raise --batch_size or add --no_global_loss"
        )


def check_finetune(args: argparse.Namespace) -> None:
    """Combinations that finetuning cannot work with.

    Raises:
        UserError: names the flags.
    """
    check_common(args)
    at_least(args, 0, "eval_every", "lr_backbone", "lr_linear_proj_mult")
    if args.lr_linear_proj_mult != LR_LINEAR_PROJ_MULT and args.detr != "deformable":
        raise UserError(f"--lr_linear_proj_mult goes with --detr deformable, not with --detr {args.detr}")
    at_least(args, 1, "eval_size", "eval_max_size")
    if args.resume and args.resume != "auto" and args.pretrain:
        raise UserError("--pretrain starts a run and --resume FILE goes on with one: choose one")
    if args.train_fraction is not None and args.train_images_per_class is not None:
        raise UserError("--train_fraction and --train_images_per_class both choose the training images: choose one")
    if args.train_fraction is not None and not 0 < args.train_fraction <= 1:
        raise UserError(f"--train_fraction {args.train_fraction}: must lie in (0, 1]")
    at_least(args, 1, "train_images_per_class")
    files = [args.train_ann, args.train_images, args.val_ann, args.val_images]
    if args.pretrain and args.backbone_weights:
        raise UserError("--pretrain brings its own backbone: leave --backbone_weights out")
    if args.new_parts and not args.pretrain:
        raise UserError("--new_parts goes with --pretrain FILE of a detector")
    if args.dataset_file == "voc" and any(files):
        raise UserError("--train_ann, --train_images, --val_ann, --val_images go with --dataset_file coco")
    if args.dataset_file == "coco" and (args.voc_train or args.voc_val):
        raise UserError("--voc_train and --voc_val go with --dataset_file voc")
    for split, ann_file, images in (("train", *files[:2]), ("val", *files[2:])):
        if (ann_file is None) != (images is None):
            raise UserError(f"--{split}_ann FILE and --{split}_images DIR go together")
        if ann_file is None and args.data_path is None and not (split == "train" and args.eval):
            raise UserError(f"--data_path DIR is needed, or --{split}_ann FILE with --{split}_images DIR")
