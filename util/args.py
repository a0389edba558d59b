"""The command line of both scripts: argument groups, each written once.

A flag whose best value depends on detector, data set or checkpoint has the default None here; what it
becomes is decided in :mod:`util.recipes`. Flags that only some detectors, pretext tasks or data formats have come from
their records (:mod:`util.records`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from util.evaluations import MEASURES
from util.parser import Parser
from util.precision import AMP_HELP, AMP_TYPES
from util.recipes import COMMON_ARCHITECTURE, FIRST_LR, PAPER, SMALL, SMALL_BELOW
from util.records import Choices, DetectorRecord, Finetuning, Flag, Record

DROPOUT = 0.1
"""Of all detectors that do not say otherwise."""


def add_choice(group: argparse._ArgumentGroup, option: str, records: Mapping[str, Record]) -> None:
    """The flag that chooses one of the records by name; the first is the default."""
    titles = "; ".join(f"{name}: {record.title}" for name, record in records.items())
    group.add_argument(f"--{option}", choices=list(records), help=f"{titles}; default: {next(iter(records))}")


def add_owned_arguments(parser: argparse.ArgumentParser, choices: Choices, option: str) -> None:
    """The flags that only some records of ``option`` have, one group for those that have the same owners."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for flag, owners in choices.owners(option).values():
        title = f"only with --{option} {' or '.join(owners)}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        records = {name: choices.tables()[option][name] for name in owners}
        groups[title].add_argument(f"--{flag.name}", help=describe(flag, records, choices), **flag.options)


def describe(flag: Flag, owners: Mapping[str, Record], choices: Choices) -> str:
    """Help of a flag with its default, or its defaults where owners, detectors or data have others."""
    values = {name: getattr(record, "defaults", {}).get(flag.name, flag.default) for name, record in owners.items()}
    told = {name: show(value) for name, value in values.items() if value is not None and value is not False}
    for option, records in choices.tables().items():
        for name, record in records.items():
            for owner, recipe in getattr(record, "pretraining", {}).items():
                if owner in told and flag.name in recipe:
                    told[owner] += f" (--{option} {name} {show(recipe[flag.name])})"
    for owner, record in owners.items():
        for method, recipe in getattr(record, "pretraining", {}).items():
            if owner in told and method in choices.pretexts and flag.name in recipe:
                told[owner] += f" (--method {method} {show(recipe[flag.name])})"
    if not told:
        return flag.help
    same = len(set(told.values())) == 1
    return f"{flag.help}; default: {next(iter(told.values())) if same else by_name(told)}"


def by_name(values: Mapping[str, str]) -> str:
    """``{"a": "1", "b": "2", "c": "2"}`` -> ``a 1, b 2, c 2``."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def show(value: Any) -> str:
    """A default as one would type it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_exceptions(usual: Any, detectors: Mapping[str, DetectorRecord], get: Callable[[DetectorRecord], Any]) -> str:
    """The usual value, and in brackets the detectors that have another: ``2048 (deformable 1024)``."""
    others = {name: show(get(record)) for name, record in detectors.items() if get(record) != usual}
    return f"{show(usual)} ({by_name(others)})" if others else show(usual)


def pretraining_default(name: str, usual: str, choices: Choices) -> str:
    """The usual default of a flag in words, and in brackets the tasks and detectors that have another."""
    others = {
        f"--method {task}": record.defaults[name]
        for task, record in choices.pretexts.items()
        if name in record.defaults
    }
    for detr, record in choices.detectors.items():
        for task, recipe in record.pretraining.items():
            if name in recipe:
                others[f"--method {task} --detr {detr}"] = recipe[name]
    return f"{usual} ({by_name({owner: show(value) for owner, value in others.items()})})" if others else usual


def exceptions(name: str, detectors: Mapping[str, DetectorRecord]) -> str:
    """In brackets the detectors whose records have a default of their own for a common flag; empty if there is none."""
    own = {detr: show(record.defaults[name]) for detr, record in detectors.items() if name in record.defaults}
    return f" ({by_name(own)})" if own else ""


def add_data_arguments(parser: argparse.ArgumentParser, choices: Choices) -> argparse._ArgumentGroup:
    """Where the images are and how large they become."""
    group = parser.add_argument_group("data")
    add_choice(group, "dataset_file", choices.datasets)
    group.add_argument("--data_path", help="root folder of the data set")
    group.add_argument(
        "--scales", type=int, nargs="+", help="short sides in pixels; one is drawn for each image; default: --recipe's"
    )
    group.add_argument("--max_size", type=int, help="limit of the long side in pixels; default: --recipe's")
    group.add_argument(
        "--pad_to",
        type=int,
        default=1,
        metavar="N",
        help="pad training batches to multiples of N pixels, so that a GPU meets fewer sizes; default: 1",
    )
    add_image_file_arguments(group)
    group.add_argument(
        "--check_images",
        nargs="?",
        choices=["auto", "all", "none"],
        const="all",
        default="auto",
        help="read every image once before training, in parallel; default: auto, up to 2,000 images",
    )
    group.add_argument(
        "--damaged",
        choices=["error", "skip"],
        default="error",
        help="images that cannot be used; error: stop; skip: leave them out and list them in the output folder",
    )
    return group


def add_image_file_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Which image files are taken."""
    group.add_argument(
        "--allow_truncated", action="store_true", help="take JPEG files whose end is missing; the missing part is grey"
    )
    group.add_argument(
        "--max_image_pixels",
        type=int,
        default=178_956_970,
        metavar="N",
        help="larger images are errors; default: %(default)s",
    )


def add_detector_arguments(parser: argparse.ArgumentParser, choices: Choices) -> None:
    """The detector. What a checkpoint was trained with need not be typed again."""
    group = parser.add_argument_group("detector (defaults: the checkpoint's, else those of the paper)")
    add_choice(group, "detr", choices.detectors)

    def default(name: str) -> str:
        return show(COMMON_ARCHITECTURE[name]) + exceptions(name, choices.detectors)

    group.add_argument(
        "--backbone", help="resnet18|34|50|101, or timm:NAME for most convolutional ones; default: resnet50"
    )
    group.add_argument(
        "--backbone_weights",
        metavar="imagenet|swav|FILE|auto|none",
        help="start the backbone from published weights by name, which are downloaded once (imagenet: torchvision's or "
        "timm's own; swav: only ResNet-50; auto: imagenet if it can be had), or from a file of SwAV, MoCo, "
        f"torchvision, timm or any detector; none: it starts random; default: none, with --recipe {SMALL} auto "
        "for ResNets",
    )
    group.add_argument(
        "--dilation",
        action="store_true",
        help="stride 16 instead of 32 in the last stage (DC5): finer, four times the tokens",
    )
    group.add_argument(
        "--feature_stride",
        type=int,
        choices=[16, 32],
        help="timm backbones: the map to detect on; default: 32",
    )
    group.add_argument(
        "--position_embedding", choices=["sine", "learned"], help=f"default: {default('position_embedding')}"
    )
    group.add_argument("--enc_layers", type=int, help=f"default: {default('enc_layers')}")
    group.add_argument("--dec_layers", type=int, help=f"default: {default('dec_layers')}")
    group.add_argument("--hidden_dim", type=int, help=f"width of the Transformer; default: {default('hidden_dim')}")
    group.add_argument("--nheads", type=int, help=f"default: {default('nheads')}")
    group.add_argument("--dim_feedforward", type=int, help=f"default: {default('dim_feedforward')}")
    group.add_argument(
        "--num_queries", type=int, help=f"most objects an image can have; default: {default('num_queries')}"
    )
    group.add_argument(
        "--dropout", type=float, default=DROPOUT, help=f"default: {DROPOUT}{exceptions('dropout', choices.detectors)}"
    )
    add_owned_arguments(parser, choices, "detr")


def add_loss_arguments(parser: argparse.ArgumentParser, detectors: Mapping[str, DetectorRecord]) -> None:
    """Costs of the matching and weights of the losses, spelled as in DETR."""
    group = parser.add_argument_group("matching costs and loss weights")
    weights = (
        f"loss: weight of the class; default: 1 with softmax, 2 with focal loss{exceptions('cls_loss_coef', detectors)}"
    )
    group.add_argument(
        "--set_cost_class", type=float, help="matching: cost of the class; default: 1 with softmax, 2 with focal loss"
    )
    group.add_argument("--set_cost_bbox", type=float, default=5.0, help="matching: cost of the L1 distance")
    group.add_argument("--set_cost_giou", type=float, default=2.0, help="matching: cost of 1 - GIoU")
    group.add_argument("--cls_loss_coef", type=float, help=weights)
    group.add_argument("--bbox_loss_coef", type=float, default=5.0, help="loss: weight of the L1 distance")
    group.add_argument("--giou_loss_coef", type=float, default=2.0, help="loss: weight of 1 - GIoU")
    group.add_argument("--eos_coef", type=float, help="softmax: weight of the no-object class; default: 0.1")
    group.add_argument(
        "--focal_alpha", type=float, help="focal loss: weight of the objects against no object; default: 0.25"
    )


def add_optimizer_arguments(
    parser: argparse.ArgumentParser, *, batch_size: str, lr: str, drop: str
) -> argparse._ArgumentGroup:
    """Optimizer and schedule; a schedule counts either epochs or steps.

    Args:
        batch_size, lr: the defaults, in words.
        drop: the epoch after which the learning rate drops by default, in words.
    """
    group = parser.add_argument_group("optimization")
    group.add_argument("--lr", type=float, help=f"default: {lr}")
    group.add_argument("--weight_decay", type=float, default=1e-4, help="of AdamW")
    group.add_argument("--clip_max_norm", type=float, default=0.1, help="gradient norm limit; 0 switches it off")
    group.add_argument("--batch_size", type=int, help=f"images per process; default: {batch_size}")
    group.add_argument(
        "--accum_steps",
        type=int,
        default=1,
        help="batches per step, to save memory; each is normalised on its own",
    )
    group.add_argument(
        "--epochs", type=int, help="length of the schedule in epochs; default: the paper's, if it counts epochs"
    )
    group.add_argument(
        "--lr_drop",
        type=int,
        help=f"epoch after which lr is multiplied by 0.1; default: {drop}",
    )
    group.add_argument(
        "--max_steps",
        type=int,
        help="length of the schedule in steps, instead of --epochs; default: the paper's, if it counts steps",
    )
    group.add_argument(
        "--lr_drop_step",
        type=int,
        help="step after which lr is multiplied by 0.1; default: the same share of --max_steps",
    )
    group.add_argument(
        "--lr_schedule",
        choices=["step", "cosine"],
        default="step",
        help="step: lr drops once, as in the paper; cosine: it falls to 0 along a cosine, without a drop",
    )
    group.add_argument(
        "--warmup_steps", type=int, default=0, help="steps in which lr rises linearly at the beginning; default: 0"
    )
    group.add_argument("--amp", choices=list(AMP_TYPES), help=AMP_HELP)
    group.add_argument(
        "--compile",
        action="store_true",
        help="fuse a step's operations by torch.compile; the first steps take minutes",
    )
    group.add_argument(
        "--cuda_graphs",
        action="store_true",
        help="with --compile: a GPU replays the compiled parts as single launches; for few sizes of batches (--pad_to)",
    )
    return group


def add_run_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where it runs, what it writes, how it goes on."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", default="outputs", help="receives args.json, log.txt and checkpoints")
    group.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="go on from a checkpoint with its arguments, also --data_path; auto: the newest in --output_dir, if any",
    )
    group.add_argument(
        "--args_from",
        metavar="FILE",
        help="args.json of another run: its arguments (not --output_dir, --device) replace the defaults",
    )
    group.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one"
    )
    group.add_argument("--seed", type=int, default=42, help="of the order of images, augmentation and new weights")
    group.add_argument("--num_workers", type=int, default=2, help="loading processes for each training process")
    group.add_argument(
        "--save_every_epochs",
        type=int,
        default=1,
        help="epochs between two checkpoints; 0: only by steps and at the end",
    )
    group.add_argument(
        "--save_every_steps",
        type=int,
        default=0,
        help="steps between two checkpoints; 0: only by epochs and at the end",
    )
    group.add_argument("--keep_checkpoints", type=int, default=2, help="how many to keep; older ones are deleted")
    group.add_argument("--log_every", type=int, default=20, help="steps between two lines of log.txt")
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="write numbers, samples and predictions for tensorboard",
    )
    return group


def add_pretext_arguments(parser: argparse.ArgumentParser, choices: Choices) -> None:
    """The pretext task and the flags that its record has."""
    group = parser.add_argument_group("pretext task (default: the checkpoint's)")
    add_choice(group, "method", choices.pretexts)
    ours = {name: task for task, record in choices.pretexts.items() for name in record.recipes}
    words = "".join(f"; {name}: ours for short --method {task}, see docs/pretraining.md" for name, task in ours.items())
    group.add_argument("--recipe", choices=[PAPER, *ours], default=PAPER, help=f"{PAPER}: the paper's values{words}")
    add_owned_arguments(parser, choices, "method")


def pretrain_parser(choices: Choices) -> argparse.ArgumentParser:
    """The parser of main_pretrain.py."""
    parser = Parser(
        "main_pretrain.py",
        description="Pretrain the Transformer without labels.",
        usage="%(prog)s --data_path DIR --output_dir OUT [--FLAG VALUE ...]",
    )
    data = add_data_arguments(parser, choices)
    data.add_argument(
        "--proposals",
        metavar="{random,edgebox,selective_search,...}",
        default="random",
        help="regions of interest; all but random are read from --proposal_dir, and have the name of what made them",
    )
    data.add_argument("--proposal_dir", help="folder of proposals made for this data set")
    data.add_argument("--crop_size", type=int, default=128, help="side of the region crops in pixels")
    data.add_argument("--val_path", metavar="DIR", help="measure on the images of this folder while training")
    data.add_argument("--val_proposal_dir", metavar="DIR", help="proposals made for --val_path")
    data.add_argument(
        "--val_fraction", type=float, metavar="F", help="or measure on a share of the images, held out by --seed"
    )
    add_owned_arguments(parser, choices, "dataset_file")
    add_detector_arguments(parser, choices)
    add_pretext_arguments(parser, choices)
    add_loss_arguments(parser, choices.detectors)
    usual = {"batch_size": "8", "lr": show(FIRST_LR)}
    words = {name: pretraining_default(name, value, choices) for name, value in usual.items()}
    drop = pretraining_default("lr_drop", "2/3 of --epochs", choices).replace("(", "(a fixed epoch: ")
    add_optimizer_arguments(parser, **words, drop=drop)
    run = add_run_arguments(parser)
    run.add_argument(
        "--eval", action="store_true", help="measure the checkpoint of --resume on all images of --data_path, and stop"
    )
    run.add_argument(
        "--eval_every",
        type=int,
        default=1,
        help="with --val_path or --val_fraction: epochs between two measurements; 0: at the end only",
    )
    return parser


def finetune_parser(choices: Choices) -> argparse.ArgumentParser:
    """The parser of main_finetune.py."""
    parser = Parser(
        "main_finetune.py",
        description="Train or evaluate a detector on boxes.",
        usage="%(prog)s --data_path DIR --output_dir OUT [--pretrain FILE] [--FLAG VALUE ...]",
    )
    add_recipe(parser)
    data = add_data_arguments(parser, choices)
    add_labelled_arguments(data)
    add_owned_arguments(parser, choices, "dataset_file")
    add_detector_arguments(parser, choices)
    add_loss_arguments(parser, choices.detectors)
    recipes = {name: record.finetuning for name, record in choices.detectors.items()}
    optimization = add_optimizer_arguments(
        parser,
        batch_size="2",
        lr=with_exceptions(FIRST_LR, choices.detectors, lambda record: record.finetuning.lr),
        drop="a share of --epochs: " + by_name({name: f"{recipe.drop_at:.2g}" for name, recipe in recipes.items()}),
    )
    add_backbone_rate(optimization, choices)
    add_ema(optimization)
    add_finetuning_arguments(add_run_arguments(parser))
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """``--recipe`` of finetuning, whose default is chosen by the data."""
    parser.add_argument_group("recipe: values of the flags that are not typed").add_argument(
        "--recipe",
        choices=[PAPER, SMALL],
        help=f"{PAPER}: the paper's values; {SMALL}: for small data sets, by the number and sizes of the images, and "
        f"--detr deformable, see docs/data.md; default: {SMALL} below {SMALL_BELOW:,} labelled training images, else "
        f"{PAPER}",
    )


def add_labelled_arguments(data: argparse._ArgumentGroup) -> None:
    """Which labelled images, how they are changed, and how they are evaluated."""
    data.add_argument(
        "--train_fraction", type=float, metavar="F", help="train on a share of the labelled images, drawn by --seed"
    )
    data.add_argument(
        "--train_images_per_class", type=int, metavar="K", help="train on K images for each class, drawn by --seed"
    )
    data.add_argument(
        "--val_fraction",
        type=float,
        metavar="F",
        help="for data without validation images: the share of the images to hold out to evaluate on, drawn by --seed, "
        "the same share of each class; default: 0.2; 0: train without evaluation",
    )
    data.add_argument(
        "--augment",
        choices=("detr", "strong", "none"),
        default="detr",
        help="how training images are changed; detr: as DETR does; strong: also more scales and other colours, for "
        "small data sets; none: not at all",
    )
    data.add_argument("--eval_size", type=int, help="short side at evaluation; default: the largest of --scales")
    data.add_argument("--eval_max_size", type=int, help="long side at evaluation; default: --max_size")
    data.add_argument(
        "--max_detections",
        type=int,
        default=100,
        metavar="N",
        help="detections of an image that are evaluated; above 100, scores AP@N, AP50@N and AR@N come beside COCO's, "
        "which count 100; default: 100",
    )


def add_backbone_rate(optimization: argparse._ArgumentGroup, choices: Choices) -> None:
    """``--lr_backbone``, whose default depends on the detector and on the start."""
    pretrained = with_exceptions(
        Finetuning.lr_backbone_pretrained, choices.detectors, lambda record: record.finetuning.lr_backbone_pretrained
    )
    scratch = with_exceptions(
        Finetuning.lr_backbone_scratch, choices.detectors, lambda record: record.finetuning.lr_backbone_scratch
    )
    optimization.add_argument(
        "--lr_backbone",
        type=float,
        help=f"rate of the backbone; 0 freezes it; default after pretraining: {pretrained}; from scratch: {scratch}",
    )


def add_ema(optimization: argparse._ArgumentGroup) -> None:
    """The average of the weights."""
    optimization.add_argument(
        "--ema",
        type=float,
        default=0.0,
        metavar="DECAY",
        help="average the weights over the steps (0.9997, or less for short runs) and evaluate the average; "
        "checkpoints hold it too, and --eval, --pretrain and main_predict.py use it; default: 0, no average",
    )


def add_finetuning_arguments(run: argparse._ArgumentGroup) -> None:
    """What a finetuning starts from, and when it is evaluated and ends."""
    run.add_argument(
        "--pretrain",
        metavar="FILE",
        help="start from this checkpoint's detector, also of other projects (see docs/checkpoints.md); its class head "
        "is kept if the categories are the same",
    )
    run.add_argument(
        "--new_parts",
        nargs="+",
        metavar="NAME",
        help="parts of the detector that start anew although --pretrain has them: bbox_embed, transformer.encoder, ...",
    )
    run.add_argument(
        "--eval", action="store_true", help="evaluate the checkpoint of --resume, also of other projects, and stop"
    )
    run.add_argument("--eval_every", type=int, default=1, help="epochs between two evaluations; 0: at the end only")
    run.add_argument(
        "--best_by",
        choices=list(MEASURES),
        default=MEASURES[0],
        help=f"which score decides what is kept as checkpoint_best.pth; default: {MEASURES[0]}",
    )
    run.add_argument(
        "--patience",
        type=int,
        default=0,
        metavar="N",
        help="end training after N evaluations without a better --best_by; default: 0, never",
    )
