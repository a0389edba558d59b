"""Pretrain the Transformer of a detector on images without labels."""

from __future__ import annotations

import argparse
from typing import Any

if __name__ == "__main__":  # before PyTorch is imported, which takes seconds
    from util.signals import INTERRUPTED, end_in_one_line

    end_in_one_line(INTERRUPTED)

import torch
from torch import nn
from torch.utils.data import DataLoader

import engine
from datasets import DATASETS
from datasets.check_images import usable_images
from datasets.loader import make_train_loader
from datasets.pretext.data import build_pretext_data
from datasets.pretext.samples import PretextDataset
from models import DETECTORS, PRETEXTS
from models.backbone import backbone_normalization
from models.backbone_weights import load_backbone_weights
from models.checkpoints.find import find_origin
from models.checkpoints.load import load_detector
from models.checkpoints.origin import Origin
from models.detr import DETR
from util import distributed, recipes
from util.args import pretrain_parser
from util.check_args import check_pretrain
from util.checkpoint import open_output_dir, output_dir_of_one_run
from util.logger import RunLog, say
from util.records import Choices, num_outputs
from util.saved_args import check_saved_args
from util.script import run_script, start


def main(argv: list[str] | None = None) -> None:
    """Arguments -> data, detector, pretext task -> training."""
    args, origin = parse(argv)
    device = start(args)
    with output_dir_of_one_run(args):
        run(args, origin, device)


def run(args: argparse.Namespace, origin: Origin | None, device: torch.device) -> None:
    """Build everything and train."""
    folder = open_output_dir(args, origin and origin.resumed)
    training, loader = build(args, origin, device)
    del origin  # a model and its optimizer once more
    log = RunLog(folder, step=training.step, tensorboard=args.tensorboard)
    describe = {"args": vars(args), "stage": "pretrain", "categories": None}
    engine.train(training, loader, args, device, log, describe)


def choices() -> Choices:
    """What can be chosen by name."""
    return Choices(stage="pretrain", datasets=DATASETS, detectors=DETECTORS, pretexts=PRETEXTS)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Origin | None]:
    """Complete arguments, and the checkpoint to go on from if ``--resume`` finds one."""
    known = choices()
    parser = pretrain_parser(known)
    args, defaults = recipes.parse(parser, argv, known)
    origin = find_origin(args, "pretrain")
    start_from = {}
    if origin:
        check_saved_args(parser, origin.content["args"], origin.path)
        start_from = {"saved": origin.content["args"], "source": origin.path, "resumes": True}
    recipes.complete(args, defaults, known, recipes.pretrain_recipe, **start_from, fixed=("method",))
    check_pretrain(args, known, distributed.num_launched())
    return args, origin


def build(args: argparse.Namespace, origin: Origin | None, device: torch.device) -> tuple[engine.Training, DataLoader]:
    """The run, new or as the checkpoint left it, and its data."""
    task = PRETEXTS[args.method]
    dataset = build_dataset(args)
    chosen = usable_images(dataset.images, None, dataset.reading, args, "train")
    if chosen is not None:
        dataset.keep(chosen)
    loader = make_train_loader(dataset, task.collate, args)
    say(f"{args.method}: {len(dataset)} images, {len(loader)} batches per epoch, regions: {args.proposals}")
    if warning := task.warning(args):
        say(f"warning: {warning}")
    detector = build_detector(args, origin)
    method = task.build(args, detector).to(device)
    training = engine.make_training(args, method, param_groups(args, method), device, len(dataset))
    engine.resume(training, origin, args)
    return training, loader


def param_groups(args: argparse.Namespace, method: nn.Module) -> list[dict[str, Any]]:
    """What the detector's record names learns at a multiple of ``--lr``; a multiple of 1 makes no group.

    A flag that only finetuning has does not count here.
    """
    shares = {flag: getattr(args, flag, 1) for flag in DETECTORS[args.detr].rates.values()}
    group_of = {part: flag for part, flag in DETECTORS[args.detr].rates.items() if shares[flag] != 1}
    rates = {"rest": args.lr} | {flag: args.lr * shares[flag] for flag in group_of.values()}
    return engine.param_groups(method, rates, group_of)


def build_dataset(args: argparse.Namespace) -> PretextDataset:
    """Samples of the unlabelled images for ``--method``, as the backbone wants them."""
    return build_pretext_data(args, PRETEXTS[args.method], *backbone_normalization(args.backbone))


def build_detector(args: argparse.Namespace, origin: Origin | None) -> DETR:
    """The detector to pretrain: as it was saved, or new around a pretrained backbone."""
    record, task = DETECTORS[args.detr], PRETEXTS[args.method]
    classification = task.classification or record.classification
    num_logits = num_outputs(task.num_classes, classification)
    detector = record.build(args, num_logits, classification=classification, train_backbone=False)
    if origin:
        load_detector(detector, origin.content["model"], origin.path, keep_class_head=True)
    elif args.backbone_weights:
        say(load_backbone_weights(detector.backbone[0], args.backbone_weights).describe(args.backbone_weights))
    else:
        say("warning: no --backbone_weights: the frozen backbone is random and its features mean little")
    return detector


if __name__ == "__main__":
    run_script(main, INTERRUPTED)
