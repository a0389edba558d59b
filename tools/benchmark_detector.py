"""A whole detector against that of Hugging Face's transformers: `benchmark.py detector`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import main_finetune
from models import DETECTORS
from models.detr import DETR
from models.precision import computing
from models.supervised import SupervisedDETR
from tools.arithmetic import SIDE, Arithmetic, at_best, large_matrix
from tools.clock import describe, in_turn
from util.nested_tensor import NestedTensor
from util.optional import require
from util.precision import BACKBONE_ALONE, processor_has_bf16
from util.records import num_outputs

HEIGHT, WIDTH = 640, 800
NUM_OBJECTS = 8
NUM_CLASSES = 91
THEIRS = {  # --detr -> its name in transformers, and the stages of the ResNet that it sees
    "vanilla": ("Detr", ["stage4"]),
    "conditional": ("ConditionalDetr", ["stage4"]),
    "deformable": ("DeformableDetr", ["stage2", "stage3", "stage4"]),
}


def benchmark_detector(detr: str, rounds: int, batch_size: int, device: torch.device) -> None:
    """Print milliseconds of an inference and of a training step of both, in turn, with random weights.

    Beside them stands the time that our arithmetic takes at best: its matrix products, convolutions and attention,
    counted by PyTorch, at the speed of one large matrix product. Deformable attention is not counted.

    ResNet-50, 6 + 6 layers, as many queries as the recipe has, images of 640 x 800. A training step is forward, losses
    of all layers, backward and AdamW. Where the hardware multiplies bf16, ``--amp bf16_backbone`` is measured, too.

    Raises:
        UserError: transformers is not installed.
    """
    torch.manual_seed(0)
    pixels = torch.randn(batch_size, 3, HEIGHT, WIDTH).to(device)
    labels = torch.randint(90, (NUM_OBJECTS,)).to(device)
    boxes = (torch.rand(NUM_OBJECTS, 4) * 0.3 + 0.2).to(device)
    args, _ = main_finetune.parse(["--recipe", "paper", "--detr", detr, "--dataset_file", "coco", "--data_path", "."])
    targets = (pixels, labels, boxes)
    matrix = large_matrix(device)
    steps = {"ours": _ours(args, *targets), "transformers": _theirs(detr, args.num_queries, *targets)}
    if device.type == "cuda" or processor_has_bf16():
        steps[BACKBONE_ALONE] = _ours(args, *targets, amp=BACKBONE_ALONE)
    print(f"{describe(device)}, {detr}, {batch_size} x float32, medians of {rounds} rounds in turn")
    print(f"{'':<14}{'ours':>12}{'transformers':>15}{'ratio':>8}{'limit of ours':>17}{'ours, ' + BACKBONE_ALONE:>23}")
    for index, part in enumerate(("inference", "training step")):
        with Arithmetic() as arithmetic:
            steps["ours"][index]()
        functions = {name: functions[index] for name, functions in steps.items()} | {"product": lambda: matrix @ matrix}
        times = in_turn(functions, rounds, device)
        ours, theirs, per_product = (median(times[name]) for name in ("ours", "transformers", "product"))
        limit = at_best(arithmetic.operations, per_product)
        low = f"{median(times[BACKBONE_ALONE]):>20.1f} ms" if BACKBONE_ALONE in times else ""
        print(f"{part:<14}{ours:>9.1f} ms{theirs:>12.1f} ms{theirs / ours:>8.2f}{limit:>14.1f} ms{low}")
    print(f"limit: the same number of operations in products of two matrices of {SIDE} x {SIDE}, measured in turn")


Steps = tuple[Callable[[], None], Callable[[], None]]


def random_detector(args: argparse.Namespace, *, train_backbone: bool) -> DETR:
    """The detector of ``--detr`` for COCO, with random weights."""
    record = DETECTORS[args.detr]
    num_logits = num_outputs(NUM_CLASSES, record.classification)
    return record.build(args, num_logits, classification=record.classification, train_backbone=train_backbone)


def _ours(args: argparse.Namespace, pixels: Tensor, labels: Tensor, boxes: Tensor, amp: str = "none") -> Steps:
    detector = random_detector(args, train_backbone=True)
    method = SupervisedDETR(detector=detector, criterion=main_finetune.make_criterion(args, detector))
    method.to(pixels.device)
    images = NestedTensor(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool))
    batch = (images, [{"labels": labels, "boxes": boxes}] * len(pixels))

    def detect() -> object:
        with computing(method, pixels.device, amp):
            return detector(images)

    def loss() -> Tensor:
        with computing(method, pixels.device, amp):
            return method(batch)[0]

    return _steps(method, detect, loss)


def _theirs(detr: str, num_queries: int, pixels: Tensor, labels: Tensor, boxes: Tensor) -> Steps:
    transformers = require("transformers", "transformers", "this comparison")
    name, stages = THEIRS[detr]
    config = getattr(transformers, f"{name}Config")(
        backbone_config=transformers.ResNetConfig(out_features=stages),
        num_labels=NUM_CLASSES,
        num_queries=num_queries,
        auxiliary_loss=True,
        activation_dropout=0.1,  # where the public code has it, too
    )
    model = getattr(transformers, f"{name}ForObjectDetection")(config).to(pixels.device)
    _train_as_the_recipe_does(model)
    targets = [{"class_labels": labels, "boxes": boxes}] * len(pixels)
    return _steps(model, lambda: model(pixels), lambda: model(pixels, labels=targets).loss)


def _train_as_the_recipe_does(model: nn.Module) -> None:
    """Let all of their ResNet but its stem and first stage be trained, as in ours and in the public code.

    Some versions look for parameters named "stage.1" to "stage.3" and freeze the others. The names are "stages.1" to
    "stages.3", so that the whole backbone would be frozen and their step a quarter less arithmetic than ours.
    """
    parameters = [p for n, p in model.named_parameters() if re.search(r"backbone.*\.stages\.[123]\.", n)]
    if not parameters:
        raise RuntimeError("the names of transformers' backbone have changed: nothing of it would be trained")
    for parameter in parameters:
        parameter.requires_grad_(True)


def _steps(model: nn.Module, detect: Callable[[], object], loss: Callable[[], Tensor]) -> Steps:
    """Inference without gradients, and one optimizer step on ``loss``."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def infer() -> None:
        model.eval()
        with torch.no_grad():
            detect()

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return infer, train
