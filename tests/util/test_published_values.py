"""The recipes against the values that the papers and their code publish, as a table.

Every detector of the papers x data set x pretext task, and every finetuning. A value of ours that differs on purpose
stands in :data:`DIFFERENT` with the reason.
"""

import os
import re
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch

import main_finetune
import main_pretrain
from datasets import DATASETS
from models import DETECTORS, PRETEXTS
from tests.models.detectors import small_detector
from tests.util.test_args import finetune, pretrain
from training import make_training
from util.schedule import Schedule

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
DATA = ("imagefolder", "coco", "voc")  # what the papers train on; other formats are read by no published code
DETRS, METHODS = ("vanilla", "conditional", "deformable", "dab"), ("siamese", "updetr", "detreg")

# --- what all published recipes share
ADAMW = {"weight_decay": 1e-4, "clip_max_norm": 0.1, "dropout": 0.1, "accum_steps": 1, "warmup_steps": 0}
BOXES = {"set_cost_bbox": 5, "set_cost_giou": 2, "bbox_loss_coef": 5, "giou_loss_coef": 2}
SOFTMAX = {"set_cost_class": 1, "cls_loss_coef": 1, "eos_coef": 0.1, "focal_alpha": None}
FOCAL = {"set_cost_class": 2, "cls_loss_coef": 2, "eos_coef": None, "focal_alpha": 0.25}
LAYERS = {"enc_layers": 6, "dec_layers": 6, "hidden_dim": 256, "nheads": 8, "backbone": "resnet50"}
DETECTOR = {
    "vanilla": LAYERS | {"dim_feedforward": 2048, "num_queries": 100},
    "conditional": LAYERS | {"dim_feedforward": 2048, "num_queries": 100},
    "deformable": LAYERS
    | {"dim_feedforward": 1024, "num_queries": 300, "num_feature_levels": 4, "enc_n_points": 4, "dec_n_points": 4}
    | {"with_box_refine": False, "two_stage": False},
    "dab": LAYERS | {"dim_feedforward": 2048, "num_queries": 300},
}

# --- pretraining, by (method, data): Siamese DETR and its UP-DETR from the authors' configs, DETReg from its own code
SMALL = {"scales": [320, 336, 352, 368, 400, 416, 432, 448, 464, 480], "max_size": 600, "crop_size": 128}
LARGE = {"scales": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800], "max_size": 1333, "crop_size": 128}
LONG = {"max_steps": 300_000, "lr_drop_step": 200_000, "epochs": None, "lr_drop": None}
SHORT = {"max_steps": 120_000, "lr_drop_step": 80_000, "epochs": None, "lr_drop": None}
TWO_VIEWS = {"num_regions": 10, "view_iou": 0.5, "query_jitter": 0.1, "feature_loss_coef": 3}
PATCHES = {"num_regions": 10, "patch_dropout": 0.1, "shuffle_queries": False, "feature_loss_coef": 1}
TOP_30 = {"num_proposals": 30, "feature_loss_coef": 1, "batch_size": 4, "max_steps": None, "lr_drop_step": None}
USUAL = ADAMW | BOXES | SOFTMAX | {"lr": 1e-4, "batch_size": 8}
PRETRAINING = {
    ("siamese", "imagefolder"): USUAL | SMALL | LONG | TWO_VIEWS | {"global_loss_coef": 10},
    ("siamese", "coco"): USUAL | LARGE | SHORT | TWO_VIEWS | {"global_loss_coef": 0.3, "batch_size": 4},
    ("updetr", "imagefolder"): USUAL | SMALL | LONG | PATCHES | {"batch_size": 16},
    ("updetr", "coco"): USUAL | LARGE | SHORT | PATCHES | {"batch_size": 4},
    ("detreg", "imagefolder"): USUAL | SMALL | TOP_30 | {"epochs": 5, "lr_drop": 40},
    ("detreg", "coco"): USUAL | SMALL | TOP_30 | {"epochs": 50, "lr_drop": 40},
}
# Nobody published pretraining on VOC: it is treated as ImageNet.
PRETRAINING |= {(method, "voc"): PRETRAINING[method, "imagefolder"] for method in METHODS}
SLOWER = {"lr": 2e-4, "lr_linear_proj_mult": 0.1}
WITH_DETECTOR = {  # (method, data, detector) -> where it is another with this detector
    ("siamese", "imagefolder", "conditional"): {"feature_loss_coef": 5},
    ("siamese", "voc", "conditional"): {"feature_loss_coef": 5},
    ("siamese", "imagefolder", "deformable"): {"batch_size": 4},
    ("siamese", "voc", "deformable"): {"batch_size": 4},
    ("updetr", "imagefolder", "deformable"): {"batch_size": 8},
    ("updetr", "voc", "deformable"): {"batch_size": 8},
    ("detreg", "imagefolder", "vanilla"): {"epochs": 60, "lr_drop": 200},
    ("detreg", "voc", "vanilla"): {"epochs": 60, "lr_drop": 200},
    ("detreg", "coco", "vanilla"): {"epochs": 300, "lr_drop": 200},
}
WITH_DETECTOR |= {("detreg", data, "deformable"): FOCAL | SLOWER for data in ("imagefolder", "coco", "voc")}
WITH_DETECTOR |= {("detreg", data, "conditional"): FOCAL for data in ("imagefolder", "coco", "voc")}
# Nobody published pretraining of DAB-DETR: it keeps what its own code has.
DAB = {"dropout": 0, "cls_loss_coef": 1}
WITH_DETECTOR |= {(method, data, "dab"): DAB for method, data in product(METHODS, ("imagefolder", "coco", "voc"))}
WITH_DETECTOR |= {("detreg", data, "dab"): FOCAL | DAB for data in ("imagefolder", "coco", "voc")}
WITH_DETECTOR |= {
    (method, data, "deformable"): {**WITH_DETECTOR.get((method, data, "deformable"), {}), "lr_linear_proj_mult": 1}
    for method, data in product(("siamese", "updetr"), ("imagefolder", "coco", "voc"))
}

# --- finetuning: DETR, Conditional DETR and Deformable DETR as Siamese DETR's authors run them, DAB-DETR from its code
TUNING = ADAMW | BOXES | LARGE | {"batch_size": 2, "eval_size": 800, "eval_max_size": 1333, "crop_size": None}
FINETUNING = {
    "vanilla": TUNING | SOFTMAX | {"lr": 1e-4, "epochs": 150, "lr_drop": 100},
    "conditional": TUNING | FOCAL | {"lr": 1e-4, "epochs": 50, "lr_drop": 40},
    "deformable": TUNING | FOCAL | SLOWER | {"epochs": 50, "lr_drop": 40},
    "dab": TUNING | FOCAL | DAB | {"lr": 1e-4, "epochs": 50, "lr_drop": 40},
}
LR_BACKBONE = {  # detector -> with pretraining, from scratch
    "vanilla": (5e-5, 1e-5),
    "conditional": (5e-5, 1e-5),
    "deformable": (2e-5, 2e-5),
    "dab": (1e-5, 1e-5),
}

TOTAL = "any number of GPUs; what counts is the total of configs/, see test_images_per_step"
EQUAL_SIZES = "all tasks see the sizes of Siamese DETR on COCO, so that they compare"
NO_COCO = "not published for this detector; the length of DETReg's Deformable DETR, and the usual drop"
DIFFERENT = {  # (method, data, detector, flag), * for any -> ours, why
    ("siamese", "*", "*", "batch_size"): (8, TOTAL),
    ("updetr", "*", "*", "batch_size"): (8, TOTAL),
    ("detreg", "coco", "*", "scales"): (LARGE["scales"], EQUAL_SIZES),
    ("detreg", "coco", "*", "max_size"): (LARGE["max_size"], EQUAL_SIZES),
    ("detreg", "coco", "vanilla", "epochs"): (50, NO_COCO),
}


def ours_instead(*key: str) -> object:
    """Our value where it is another on purpose, else None."""
    for pattern, (value, _) in DIFFERENT.items():
        if all(part in (own, "*") for part, own in zip(pattern, key, strict=True)):
            return value
    return None


def published(method: str, data: str, detr: str) -> dict:
    return DETECTOR[detr] | PRETRAINING[method, data] | WITH_DETECTOR.get((method, data, detr), {})


@pytest.mark.parametrize("detr", DETRS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", PRETEXTS)
def test_pretraining(method, data, detr):
    args = pretrain("--method", method, "--dataset_file", data, "--detr", detr)
    for name, value in published(method, data, detr).items():
        expected = ours_instead(method, data, detr, name) or value
        assert getattr(args, name) == expected, f"--{name}"


def test_differences_are_real():
    """Each entry is used and says another value than the table."""
    for pattern, (value, reason) in DIFFERENT.items():
        *key, name = pattern
        known = zip(key, (METHODS, DATA, DETRS), strict=True)
        theirs = [published(*one)[name] for one in product(*(all_ if part == "*" else (part,) for part, all_ in known))]
        assert any(other != value for other in theirs), pattern
        assert reason


@pytest.mark.parametrize("detr", DETRS)
@pytest.mark.parametrize("data", ["coco", "voc"])
@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_finetuning(start, data, detr):
    args = finetune("--dataset_file", data, "--detr", detr, *(["--pretrain", "file"] if start == "pretrained" else []))
    for name, value in (DETECTOR[detr] | FINETUNING[detr]).items():
        if name != "crop_size":  # finetuning has no crops of regions
            assert getattr(args, name) == value, f"--{name}"
    assert args.lr_backbone == LR_BACKBONE[detr][start == "scratch"]


def test_the_table_is_whole():
    assert set(METHODS) == set(PRETEXTS)
    assert set(DETRS) <= set(DETECTORS)
    assert set(DATA) <= set(DATASETS)
    assert set(PRETRAINING) == set(product(METHODS, DATA))
    assert {key[:2] for key in WITH_DETECTOR} <= set(PRETRAINING)


def length_and_drop(args) -> tuple[int, int | None]:
    """Steps of a run whose epochs have 100, and the first one with the lower rate."""
    schedule = Schedule(100, 1, args.epochs, args.lr_drop, args.max_steps, args.lr_drop_step)
    return schedule.total_steps, schedule.drop_step


def test_detreg_on_imagenet_never_drops():
    for detr in DETRS:
        total, drop = length_and_drop(pretrain("--method", "detreg", "--detr", detr))
        assert drop > total
    args = pretrain("--method", "detreg", "--dataset_file", "coco", "--detr", "deformable")
    assert length_and_drop(args) == (5000, 4000)
    assert length_and_drop(pretrain("--method", "detreg", "--epochs", "3")) == (300, 4000)
    # a length in steps has the usual share
    assert length_and_drop(pretrain("--method", "detreg", "--max_steps", "90")) == (90, 60)


# file of configs/ with its arguments -> images per step of pretraining and of finetuning, over all GPUs
IMAGES_PER_STEP = {
    "imagenet.sh vanilla": (256, 16),
    "imagenet.sh conditional": (256, 16),
    "imagenet.sh deformable": (256, 32),
    "imagenet.sh deformable_single_scale": (256, 32),
    "coco_conditional_voc.sh": (64, 16),
    "ablations.sh no_global": (256,),
    "baselines.sh up_detr vanilla": (256, 16),
    "baselines.sh detreg deformable": (192, 32),
    "baselines.sh scratch conditional": (16,),
}


@pytest.mark.parametrize("script", IMAGES_PER_STEP)
def test_images_per_step(script, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho $*\n")  # prints the commands instead of running them
    (tmp_path / "python").chmod(0o755)
    places = dict.fromkeys(("IMAGENET", "COCO", "VOC", "SWAV", "PROPOSALS"), "/somewhere")
    env = places | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    commands = subprocess.run(
        ["bash", *script.split()], cwd=CONFIGS, env=env, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    found = []
    for command in commands:
        processes, images = re.search(r"--nproc_per_node=(\d+) .*--batch_size (\d+) ", command).groups()
        found.append(int(processes) * int(images))
        if "main_pretrain.py" in command:
            main_pretrain.parse(command.partition("main_pretrain.py ")[2].split())
    assert tuple(found) == IMAGES_PER_STEP[script]


def rates_by_name(groups, module) -> dict[str, float]:
    """Learning rate of each parameter to train."""
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    names = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert len(rate_of) == len(names)
    return {name: rate_of[id(parameter)] for name, parameter in names.items()}


def test_rates_of_deformable_detr():
    detector = small_detector("deformable")
    slow = {name for name in dict(detector.named_parameters()) if re.search("reference_points|sampling_offsets", name)}
    assert slow
    finetuning = main_finetune.param_groups(finetune("--detr", "deformable"), detector)
    detreg, siamese = (
        main_pretrain.param_groups(pretrain("--method", method, "--detr", "deformable"), detector)
        for method in ("detreg", "siamese")
    )
    assert len(siamese) == 1
    for groups, rate, slower in ((finetuning, 2e-4, 2e-5), (detreg, 2e-4, 2e-5), (siamese, 1e-4, 1e-4)):
        for name, found in rates_by_name(groups, detector).items():
            if not name.startswith("backbone."):
                assert found == pytest.approx(slower if name in slow else rate), name


def test_learned_positions_learn_with_the_backbone():
    """As in DETR, whose optimizer takes all names that hold "backbone"."""
    detector = small_detector("vanilla", position_embedding="learned")
    args = finetune("--detr", "vanilla", "--position_embedding", "learned", "--pretrain", "file")
    rates = rates_by_name(main_finetune.param_groups(args, detector), detector)
    assert {rates[f"backbone.1.{part}_embed.weight"] for part in ("row", "col")} == {5e-5}
    assert {rate for name, rate in rates.items() if name.startswith("backbone.")} == {5e-5}
    assert {rate for name, rate in rates.items() if not name.startswith("backbone.")} == {1e-4}


def test_the_optimizer_is_adamw_and_rates_drop_to_a_tenth():
    args = finetune("--detr", "conditional", "--device", "cpu")
    module = torch.nn.Linear(2, 2)
    groups = [{"params": list(module.parameters())}]
    training = make_training(args, module, groups, torch.device("cpu"), num_images=4)
    assert type(training.optimizer) is torch.optim.AdamW
    assert training.optimizer.defaults["betas"] == (0.9, 0.999)
    assert (training.optimizer.defaults["weight_decay"], training.optimizer.defaults["eps"]) == (1e-4, 1e-8)
    factor = training.scheduler.lr_lambdas[0]
    assert [factor(step) for step in (0, 79, 80, 99)] == [1, 1, pytest.approx(0.1), pytest.approx(0.1)]
