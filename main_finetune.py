"""Train a detector on labelled boxes, from a pretrained checkpoint or from scratch; or evaluate one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

if __name__ == "__main__":  # before PyTorch is imported, which takes seconds
    from util.signals import INTERRUPTED, end_in_one_line

    end_in_one_line(INTERRUPTED)

import torch
from PIL import Image
from torch.utils.data import DataLoader

import engine
from datasets import DATASETS, detection_dataset, labelled_or_auto, layout_of, settle_format
from datasets.coco_eval import DetectionEvaluator
from datasets.detection import DetectionDataset
from datasets.finetuning import FEW_IMAGES, build_sets, leave_out_damaged, takes_few
from datasets.held_out import find_images
from datasets.loader import collate_detection, make_eval_loader, make_train_loader
from datasets.records import DetectionRecords
from datasets.small_recipe import describe_recipe, small_detector, small_recipe, values_of
from models import DETECTORS
from models.backbone import backbone_normalization
from models.backbone_weights import start_backbone
from models.checkpoints.categories import same_categories, with_ids_of
from models.checkpoints.find import find_origin
from models.checkpoints.load import load_origin
from models.checkpoints.origin import Origin
from models.checkpoints.restore import restore_detector
from models.criterion import build_criterion
from models.detr import DETR
from models.postprocess import PostProcess
from models.predictor import Predictor
from models.published_weights import called
from models.run_pictures import draw_found, draw_samples
from models.supervised import SupervisedDETR
from training import Training, group_parameters, make_training, resume, speed_up
from util import recipes
from util.args import finetune_parser
from util.check_args import check_finetune
from util.checkpoint import BEST, make_writable, open_output_dir, output_dir_of_one_run
from util.ema import Ema
from util.errors import CheckpointError, UserError
from util.files import write_json
from util.logger import RunLog, say
from util.records import Choices, num_outputs
from util.run_summary import describe_run, every
from util.saved_args import check_saved_args
from util.script import run_script, start

NUM_PICTURES = 8
"""Images that --tensorboard shows."""

SHOWN_SCORE = 0.3
"""Least score of a detection on them."""


@dataclass(frozen=True)
class Looked:
    """What choosing the recipe has shown.

    Attributes:
        records: the labelled training images; None: nothing has looked at them.
        recipe: the lines that tell what ``--recipe small`` has chosen; empty: another recipe is used.
    """

    records: DetectionRecords | None = None
    recipe: str = ""


def main(argv: list[str] | None = None) -> None:
    """Arguments -> data, detector -> training, or evaluation alone."""
    args, origin, looked = parse_and_look(argv)
    device = start(args)
    if args.eval:
        evaluate_only(args, origin, device)
        return
    with output_dir_of_one_run(args):
        run(args, origin, device, looked)


def run(args: argparse.Namespace, origin: Origin | None, device: torch.device, looked: Looked) -> None:
    """Build everything and train."""
    folder = open_output_dir(args, origin and origin.resumed)
    training, train_loader, val_loader = build(args, origin, device, looked)
    del origin  # a model and its optimizer once more
    log = RunLog(folder, step=training.step, tensorboard=args.tensorboard)
    train_set = train_loader.dataset
    describe = {"args": vars(args), "stage": "finetune", "categories": train_set.categories}
    describe["train_images"] = train_set.records.relative_paths() if takes_few(args) else None
    val_set = None if val_loader is None else val_loader.dataset
    describe["val_images"] = val_set.records.relative_paths() if args.val_fraction else None
    summary = {"data": describe_data(train_set, val_set), "evaluated": describe_evaluation(args, val_set)}
    say(describe_run(args, training.schedule, training.method.detector, device, **summary))
    if log.shows_pictures:
        normalization = backbone_normalization(args.backbone)
        log.picture("samples", training.step, draw_samples(train_set, NUM_PICTURES, *normalization))

    def evaluate_now() -> dict[str, float]:
        numbers = score_run(args, training, val_loader, device)
        if log.shows_pictures:
            log.picture("predictions", training.step, draw_predictions(args, training, val_set, device))
        return numbers

    evaluation = engine.Evaluation(evaluate_now, best_by=args.best_by, patience=args.patience)
    evaluation = None if val_set is None else evaluation
    engine.train(training, train_loader, args, device, log, describe, evaluation)


def draw_predictions(
    args: argparse.Namespace, training: Training, dataset: DetectionDataset, device: torch.device
) -> Image.Image:
    """What is in some images, and what the detector that is evaluated finds there now."""
    detector = training.method.detector if training.ema is None else training.ema.module
    predictor = Predictor(
        detector,
        PostProcess(detector.classification),
        dataset.categories,
        backbone=args.backbone,
        device=device,
        amp=args.amp,
    )
    return draw_found(predictor, dataset, NUM_PICTURES, SHOWN_SCORE)


def describe_data(train_set: DetectionDataset, val_set: DetectionDataset | None) -> str:
    """How many images and objects there are, and the first classes."""
    names = [category["name"] for category in train_set.categories]
    classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
    first = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    trained_on = f"{len(train_set)} images to train on, {train_set.num_objects} objects, {classes} ({first})"
    return f"{trained_on}; {len(val_set or ())} images to evaluate on"


def describe_evaluation(args: argparse.Namespace, val_set: DetectionDataset | None) -> str:
    """When the detector is evaluated, and what comes of it."""
    if val_set is None:
        return "not at all: there are no images for it"
    when = f"after every {every(args.eval_every, 'epoch')}" if args.eval_every else "at the end"
    what = "the averaged weights (--ema), and those that are trained; " if args.ema else ""
    ends = f"; after {args.patience} without a better one the run ends" if args.patience else ""
    return f"{when}: {what}the best by {args.best_by} is kept as {BEST}{ends}"


def choices() -> Choices:
    """What can be chosen by name."""
    return Choices(stage="finetune", datasets=labelled_or_auto(), detectors=DETECTORS)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Origin | None]:
    """Complete arguments, and the checkpoint to start from, if any. See :func:`parse_and_look`."""
    args, origin, _ = parse_and_look(argv)
    return args, origin


def parse_and_look(argv: list[str] | None = None) -> tuple[argparse.Namespace, Origin | None, Looked]:
    """Complete arguments, the checkpoint to start from, if any, and what a look at the training images has shown.

    A new run looks at them to choose its recipe, unless ``--recipe paper`` is typed.

    Raises:
        UserError: ``--eval`` without a checkpoint, flags that cannot work, or data that cannot be read.
    """
    known = choices()
    parser = finetune_parser(known)
    args, defaults = recipes.parse(parser, argv, known)
    origin, start_from = find_start(args, parser)

    def complete(small: dict[str, Any] | None = None) -> argparse.Namespace:
        completed = argparse.Namespace(**vars(args))
        fixed = (*FEW_IMAGES, "val_fraction", "recipe")
        recipes.complete(completed, defaults, known, recipes.finetune_recipe, small=small, fixed=fixed, **start_from)
        check_finetune(completed, known)
        settle_format(completed)
        return completed

    paper = complete()
    if args.eval or args.recipe == recipes.PAPER or start_from.get("resumes"):
        return paper, origin, Looked()
    args.dataset_file = paper.dataset_file  # recognised, where it was not typed
    records = DATASETS[args.dataset_file].read_labelled(paper, "train", None)
    if args.recipe is None and len(records) >= recipes.SMALL_BELOW:
        return paper, origin, Looked(records)
    parts = [] if "saved" in start_from else small_detector(args)
    paper = complete(values_of(parts))
    parts += small_recipe(args, paper, records, DETECTORS[paper.detr])
    small = complete(values_of(parts))
    return small, origin, Looked(records, describe_recipe(parts, args, small, len(records)))


def find_start(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[Origin | None, dict[str, Any]]:
    """The checkpoint to start from, if any, and what :func:`util.recipes.complete` must know of it.

    If it is a backbone alone, ``args`` change as if it were typed as ``--backbone_weights``.

    Raises:
        UserError: ``--eval`` without a checkpoint, or two backbones.
    """
    origin = find_origin(args, "finetune")
    if origin and not origin.foreign:
        names = None if origin.resumes else recipes.architecture_names(DETECTORS)
        check_saved_args(parser, origin.content["args"], origin.path, names)
    if args.eval and (origin is None or not origin.resumes):
        found = "--pretrain only starts a training" if args.pretrain else f"there is none in {args.output_dir}"
        hint = f" ({found})" if args.pretrain or args.resume else ""
        raise UserError(f"--eval needs the checkpoint to evaluate: --resume FILE{hint}")
    if origin is None:
        return None, {}
    saved = recipes.with_recipe(origin.content["args"])
    start_from = {"saved": saved, "source": origin.path, "resumes": origin.resumes}
    if origin.content["stage"] == "backbone":
        if args.backbone_weights:
            raise UserError(f"--pretrain {args.pretrain} is a backbone, and so is --backbone_weights: choose one")
        args.pretrain, args.backbone_weights, origin = None, args.pretrain, None
    return origin, start_from


def build(
    args: argparse.Namespace, origin: Origin | None, device: torch.device, looked: Looked = Looked()
) -> tuple[Training, DataLoader, DataLoader | None]:
    """The run, new or as the checkpoint left it, and its training and validation data (None: it is not evaluated).

    Prints what the data are, and then what ``--recipe small`` has chosen for them.
    """
    normalization = backbone_normalization(args.backbone)
    kept = {name: kept_images(origin, name) for name in ("train_images", "val_images")}
    train_set, val_set = build_sets(args, *normalization, records=looked.records, **kept)
    if looked.recipe:
        say(looked.recipe)
    if val_set is not None and args.best_by == "voc_mAP50" and val_set.metric != "voc":
        raise UserError("--best_by voc_mAP50 needs data in VOC's format")
    if val_set is None and args.patience:
        raise UserError(f"--patience {args.patience} counts evaluations, and there are no images to evaluate on")
    val_loader = None if val_set is None else make_eval_loader(val_set, args)
    detector = build_detector(args, origin, train_set)
    train_loader = make_train_loader(train_set, collate_detection, args)
    method = SupervisedDETR(detector=detector, criterion=make_criterion(args, detector)).to(device)
    training = make_training(args, method, param_groups(args, detector), device, len(train_set))
    if args.ema:
        training.ema = Ema(detector, args.ema)
    speed_up(method, args)  # behind the copies that are not trained
    resume(training, origin, args)
    return training, train_loader, val_loader


def evaluate_only(args: argparse.Namespace, origin: Origin, device: torch.device) -> None:
    """``--eval``: score a saved detector; its categories are those it was trained with."""
    make_writable(args.output_dir)
    val_loader = build_eval_loader(args, origin)
    if origin.content.get("ema") is not None:
        say(f"{origin.path}: the averaged weights (--ema) are evaluated")
    score(args, restore_detector(args, origin).to(device), val_loader, device)


def score_run(
    args: argparse.Namespace, training: Training, loader: DataLoader, device: torch.device
) -> dict[str, float]:
    """Evaluate the trained weights; with ``--ema`` the averaged ones, and beside them those as ``raw_...``."""
    detector = training.method.detector
    if training.ema is None:
        return score(args, detector, loader, device)
    summary = engine.evaluate(detector, make_criterion(args, detector), loader, device, args.amp, args.max_detections)
    raw = {f"raw_{name}": value for name, value in numbers_of(summary or {}).items()}
    numbers = score(args, training.ema.module, loader, device)
    if raw:
        say(f"these scores are of the averaged weights (--ema); the trained weights have AP {raw['raw_AP']:.3f}")
    return numbers | raw


def score(args: argparse.Namespace, detector: DETR, loader: DataLoader, device: torch.device) -> dict[str, float]:
    """Evaluate, print the table, write eval.json; returns the numbers that log.txt keeps."""
    criterion = make_criterion(args, detector)
    summary = engine.evaluate(detector, criterion, loader, device, args.amp, args.max_detections)
    if summary is None:  # the main process has it
        return {}
    say(f"{DetectionEvaluator.table(summary)}\nloss_val {summary['loss_val']:.4g}")
    write_json(summary, f"{args.output_dir}/eval.json")
    return numbers_of(summary)


def numbers_of(summary: dict[str, Any]) -> dict[str, float]:
    """What log.txt keeps of an evaluation."""
    numbers = {name: value for name, value in summary.items() if isinstance(value, float)}
    return numbers | ({"voc_mAP50": summary["voc"]["mAP50"]} if "voc" in summary else {})


def kept_images(origin: Origin | None, name: str) -> list[str] | None:
    """The images that a resumed run trained on (``train_images``) or held out (``val_images``), if it chose them."""
    return origin.content.get(name) if origin and origin.resumes else None


def build_detector(args: argparse.Namespace, origin: Origin | None, train_set: DetectionDataset) -> DETR:
    """The detector to train: from a checkpoint of either stage, or new."""
    record = DETECTORS[args.detr]
    num_logits = num_outputs(train_set.num_labels, record.classification)
    detector = record.build(args, num_logits, classification=record.classification, train_backbone=args.lr_backbone > 0)
    if origin:
        is_same = same_categories(origin.content["categories"], train_set.categories)
        if origin.resumes and not is_same:
            names = [
                ", ".join(category["name"] for category in categories)
                for categories in (origin.content["categories"], train_set.categories)
            ]
            raise CheckpointError(
                f"--resume {origin.path}: trained for {names[0]}, the data has {names[1]}; to start on new "
                "categories use --pretrain"
            )
        new_parts = () if origin.resumes else args.new_parts or ()  # a resumed run has trained them
        report = load_origin(detector, origin, keep_class_head=is_same, new_parts=new_parts)
        say(report.describe(origin.path))
    elif args.backbone_weights:
        report = start_backbone(detector.backbone[0], args.backbone_weights, args.backbone)
        if report is not None:
            report.notes.append("a backbone alone: the Transformer starts from scratch")
            say(report.describe(called(args.backbone_weights)))
    else:
        say(
            "warning: neither --pretrain nor --backbone_weights: everything starts random; --backbone_weights imagenet "
            "gives the backbone published weights"
        )
    return detector


def make_criterion(args: argparse.Namespace, detector: DETR) -> Any:
    """The detection losses of this detector."""
    return build_criterion(args, num_logits=detector.num_logits, classification=detector.classification)


def param_groups(args: argparse.Namespace, detector: DETR) -> list[dict[str, Any]]:
    """Groups of parameters with rates of their own.

    The backbone learns at ``--lr_backbone``, and so do learned positions, which are part of it in DETR's code
    (``backbone.1``). What the detector's record names learns at a multiple of ``--lr``.
    """
    multipliers = DETECTORS[args.detr].rates
    rates = {"rest": args.lr, "backbone": args.lr_backbone}
    rates |= {flag: args.lr * getattr(args, flag) for flag in multipliers.values()}
    return group_parameters(detector, rates, {"backbone.": "backbone", **multipliers})


def build_val_set(args: argparse.Namespace, categories: list[dict], split: str = "val") -> DetectionDataset:
    """The images of a split, to evaluate on; their categories must be among those that the detector is trained for."""
    if any(category["id"] is None for category in categories):
        found = DATASETS[args.dataset_file].read_labelled(args, split, None).categories
        categories = with_ids_of(categories, found, args.resume)
    records = DATASETS[args.dataset_file].read_labelled(args, split, categories)
    dataset = detection_dataset(records, args, "val", *backbone_normalization(args.backbone))
    leave_out_damaged(dataset, args, "val")
    return dataset


def build_eval_loader(args: argparse.Namespace, origin: Origin) -> DataLoader:
    """What ``--eval`` evaluates on: the validation images, or those that the run of the checkpoint held out."""
    categories = origin.content["categories"]
    if "val" in layout_of(args).splits:
        return make_eval_loader(build_val_set(args, categories), args)
    dataset = build_val_set(args, categories, "train")
    if held := kept_images(origin, "val_images"):
        records = dataset.records
        dataset.records = records.select(find_images(records.relative_paths(), held, records.source))
        say(f"evaluating on the {len(dataset)} images that were held out")
    else:
        say(f"warning: no validation images: evaluating on all {len(dataset)}, also those that were trained on")
    return make_eval_loader(dataset, args)


if __name__ == "__main__":
    run_script(main, INTERRUPTED)
