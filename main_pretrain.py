"""Pretrain the Transformer of a detector on images without labels."""

from __future__ import annotations

import argparse
from typing import Any

if __name__ == "__main__":  # before PyTorch is imported, which takes seconds
    from util.signals import INTERRUPTED, end_in_one_line

    end_in_one_line(INTERRUPTED)

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import engine
from datasets import DATASETS
from datasets.check_images import usable_images
from datasets.held_out import write_list
from datasets.loader import EvalSampler, make_loader, make_train_loader
from datasets.pretext.data import build_pretext_data, build_val_data, hold_out
from datasets.pretext.samples import PretextDataset
from datasets.pretext.two_view import TwoViewDataset
from models import DETECTORS, PRETEXTS
from models.backbone import backbone_normalization
from models.backbone_weights import start_backbone
from models.checkpoints.find import find_origin
from models.checkpoints.load import load_detector
from models.checkpoints.origin import Origin
from models.detr import DETR
from models.precision import computing
from models.pretext.base import PretextTask
from models.pretext.evaluate import evaluate, table
from models.published_weights import called
from models.run_pictures import draw_views
from training import Training, group_parameters, make_training, resume, speed_up
from util import distributed, recipes
from util.args import pretrain_parser
from util.check_args import check_pretrain
from util.checkpoint import make_writable, open_output_dir, output_dir_of_one_run
from util.errors import CheckpointError, UserError
from util.files import write_json
from util.logger import RunLog, say
from util.progress import watched
from util.records import Choices, num_outputs
from util.run_summary import describe_run, every
from util.saved_args import check_saved_args
from util.script import run_script, start

FIXED = ("method", "recipe", "val_fraction")
"""Arguments that a resumed run keeps, beside the detector's."""

MEASURE_SEED = 0
"""Of the samples to measure on, whatever ``--seed`` is: runs that are compared see the same."""


def main(argv: list[str] | None = None) -> None:
    """Arguments -> data, detector, pretext task -> training, or measurement alone."""
    args, origin = parse(argv)
    device = start(args)
    if args.eval:
        evaluate_only(args, origin, device)
        return
    with output_dir_of_one_run(args):
        run(args, origin, device)


def run(args: argparse.Namespace, origin: Origin | None, device: torch.device) -> None:
    """Build everything and train."""
    folder = open_output_dir(args, origin and origin.resumed)
    training, loader, val_loader = build(args, origin, device)
    del origin  # a model and its optimizer once more
    log = RunLog(folder, step=training.step, tensorboard=args.tensorboard)
    describe = {"args": vars(args), "stage": "pretrain", "categories": None}
    if args.val_fraction is not None:
        describe["val_images"] = val_loader.dataset.images.relative_paths()
    method = training.method
    data = f"{len(loader.dataset)} images for --method {args.method}, regions: {args.proposals}"
    evaluated = "not at all (--val_fraction measures it)"
    if val_loader is not None:
        evaluated = f"on {len(val_loader.dataset)} images, "
        evaluated += f"after every {every(args.eval_every, 'epoch')}" if args.eval_every else "at the end"
    say(describe_run(args, training.schedule, method.detector, device, data=data, evaluated=evaluated))
    dataset = loader.dataset
    if log.shows_pictures and isinstance(dataset, TwoViewDataset):
        log.picture("samples", training.step, draw_views(dataset, list(range(min(3, len(dataset)))), args.proposals))
    evaluation = None if val_loader is None else engine.Evaluation(lambda: score(args, method, val_loader, device))
    engine.train(training, loader, args, device, log, describe, evaluation)


def choices() -> Choices:
    """What can be chosen by name."""
    return Choices(stage="pretrain", datasets=DATASETS, detectors=DETECTORS, pretexts=PRETEXTS)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Origin | None]:
    """Complete arguments, and the checkpoint to go on from if ``--resume`` finds one.

    Raises:
        UserError: ``--eval`` without a checkpoint, or flags that cannot work.
    """
    known = choices()
    parser = pretrain_parser(known)
    args, defaults = recipes.parse(parser, argv, known)
    origin = find_origin(args, "pretrain")
    if args.eval and origin is None:
        found = "" if args.resume is None else f" (there is none in {args.output_dir})"
        raise UserError(f"--eval needs the checkpoint to measure: --resume FILE{found}")
    start_from = {}
    if origin:
        check_saved_args(parser, origin.content["args"], origin.path)
        start_from = {"saved": recipes.with_recipe(origin.content["args"]), "source": origin.path, "resumes": True}
    recipes.complete(args, defaults, known, recipes.pretrain_recipe, **start_from, fixed=FIXED)
    check_pretrain(args, known, distributed.num_launched())
    return args, origin


def build(
    args: argparse.Namespace, origin: Origin | None, device: torch.device
) -> tuple[Training, DataLoader, DataLoader | None]:
    """The run, new or as the checkpoint left it, its data, and samples to measure on (None: it is not measured)."""
    task = PRETEXTS[args.method]
    dataset, val_set = build_datasets(args, origin)
    val_loader = None if val_set is None else make_val_loader(args, val_set)
    loader = make_train_loader(dataset, task.collate, args)
    if args.recipe in task.recipes:
        values = " ".join(f"--{name} {getattr(args, name)}" for name in task.recipes[args.recipe])
        say(f"--recipe {args.recipe}, not the paper's: {values}")
    if warning := task.warning(args):
        say(f"warning: {warning}")
    detector = build_detector(args, origin)
    method = task.build(args, detector).to(device)
    training = make_training(args, method, param_groups(args, method), device, len(dataset))
    speed_up(method, args)
    resume(training, origin, args)
    return training, loader, val_loader


def param_groups(args: argparse.Namespace, method: nn.Module) -> list[dict[str, Any]]:
    """What the detector's record names learns at a multiple of ``--lr``; a multiple of 1 makes no group.

    A flag that only finetuning has does not count here.
    """
    shares = {flag: getattr(args, flag, 1) for flag in DETECTORS[args.detr].rates.values()}
    group_of = {part: flag for part, flag in DETECTORS[args.detr].rates.items() if shares[flag] != 1}
    rates = {"rest": args.lr} | {flag: args.lr * shares[flag] for flag in group_of.values()}
    return group_parameters(method, rates, group_of)


def build_dataset(args: argparse.Namespace) -> PretextDataset:
    """Samples of the unlabelled images for ``--method``, as the backbone wants them."""
    return build_pretext_data(args, PRETEXTS[args.method], *backbone_normalization(args.backbone))


def usable(args: argparse.Namespace, dataset: PretextDataset, name: str) -> PretextDataset:
    """The images that can be read, checked as the flags say; ``name`` is that of the set, for messages."""
    chosen = usable_images(dataset.images, None, dataset.reading, args, name)
    return dataset if chosen is None else dataset.select(chosen)


def build_datasets(args: argparse.Namespace, origin: Origin | None) -> tuple[PretextDataset, PretextDataset | None]:
    """Samples to train and to measure on, no image in both. The list of images that are held out is written."""
    dataset = usable(args, build_dataset(args), "train")
    if args.val_path is not None:
        task, normalization = PRETEXTS[args.method], backbone_normalization(args.backbone)
        return dataset, usable(args, build_val_data(args, task, *normalization, MEASURE_SEED), "val")
    if args.val_fraction is None:
        return dataset, None
    kept = origin.content.get("val_images") if origin else None
    train_set, val_set = hold_out(dataset, args.val_fraction, args.seed, kept, measure_seed=MEASURE_SEED)
    write_list(val_set.images.relative_paths(), len(dataset), args.output_dir)
    return train_set, val_set


def make_val_loader(args: argparse.Namespace, dataset: PretextDataset) -> DataLoader:
    """This process's share of the samples to measure on."""
    sampler = EvalSampler(len(dataset), args.batch_size, world_size=distributed.world_size(), rank=distributed.rank())
    collate, pinned = PRETEXTS[args.method].collate, args.device == "cuda"
    return make_loader(dataset, sampler, collate, num_workers=args.num_workers, pin_memory=pinned)


def measured_data(args: argparse.Namespace) -> PretextDataset:
    """All images of ``--data_path``, as ``--eval`` measures on them."""
    dataset = usable(args, build_dataset(args), "val")
    return dataset.select(np.arange(len(dataset)), seed=MEASURE_SEED)


def restore_method(args: argparse.Namespace, origin: Origin) -> PretextTask:
    """The pretext task of a checkpoint, heads included.

    Raises:
        CheckpointError: it does not fit the flags.
    """
    method = PRETEXTS[args.method].build(args, build_detector(args, origin))
    try:
        method.load_pretext_state_dict(origin.content["pretext"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"--resume {origin.path}: its heads do not fit these flags ({error})") from None
    return method


def evaluate_only(args: argparse.Namespace, origin: Origin, device: torch.device) -> None:
    """``--eval``: measure a checkpoint on all images of ``--data_path``."""
    make_writable(args.output_dir)
    loader = make_val_loader(args, measured_data(args))
    say(f"{args.method}: measuring on {len(loader.dataset)} images, regions: {args.proposals}")
    score(args, restore_method(args, origin).to(device), loader, device)


def score(args: argparse.Namespace, method: PretextTask, loader: DataLoader, device: torch.device) -> dict[str, float]:
    """Measure, print the table, write eval.json; returns the last decoder layer's numbers, for log.txt. Collective."""
    with computing(method, device, args.amp):
        batches = watched(loader, len(loader), "measure")
        by_layer = evaluate(method, (engine.to_device(batch, device) for batch in batches))
    say(table(by_layer))
    if distributed.is_main():
        write_json({"images": len(loader.dataset), "by_layer": by_layer}, f"{args.output_dir}/eval.json")
    return {name: values[-1] for name, values in by_layer.items()}


def build_detector(args: argparse.Namespace, origin: Origin | None) -> DETR:
    """The detector to pretrain: as it was saved, or new around a pretrained backbone."""
    record, task = DETECTORS[args.detr], PRETEXTS[args.method]
    classification = task.classification or record.classification
    num_logits = num_outputs(task.num_classes, classification)
    detector = record.build(args, num_logits, classification=classification, train_backbone=False)
    if origin:
        load_detector(detector, origin.content["model"], origin.path, keep_class_head=True)
    elif args.backbone_weights:
        report = start_backbone(detector.backbone[0], args.backbone_weights, args.backbone)
        if report is not None:
            say(report.describe(called(args.backbone_weights)))
    else:
        say(
            "warning: no --backbone_weights: the frozen backbone is random and its features mean little; "
            "--backbone_weights swav (as in the paper) or imagenet gives it published weights"
        )
    return detector


if __name__ == "__main__":
    run_script(main, INTERRUPTED)
