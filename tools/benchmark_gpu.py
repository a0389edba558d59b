"""Training steps, eager, compiled and recorded, in float32 and in 16 bits, on made-up images: `benchmark.py gpu`."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import engine
import main_finetune
import main_pretrain
from datasets.pretext.two_view import TwoViewBatch
from models import DETECTORS, PRETEXTS
from models.supervised import SupervisedDETR
from tools.clock import describe, milliseconds
from tools.launches import count_launches, label_replays, show_fused_kernels
from tools.memory import peak_megabytes
from training import Training, make_training, speed_up
from util.nested_tensor import NestedTensor
from util.records import num_outputs

WARM_UP_STEPS = 3
NUM_CLASSES = 80
NUM_OBJECTS = 7  # about COCO's mean
MODES = {"eager": [], "compiled": ["--compile"], "graphs": ["--compile", "--cuda_graphs"]}
HEAD = ("images/s", "ms/step", "busy", "peak MB", "launches", "first step s")


@dataclass(frozen=True)
class Measured:
    """Of a training step.

    Attributes:
        images_per_second, milliseconds: of wall time.
        busy: share of it in which the GPU computes; None on a CPU.
        peak: megabytes.
        launches: operations sent to the device.
        first: seconds of the first step, compilation included.
    """

    images_per_second: float
    milliseconds: float
    busy: float | None
    peak: float
    launches: int
    first: float

    def __str__(self) -> str:
        busy = f"{self.busy:>10.0%}" if self.busy is not None else f"{'-':>10}"
        left = f"{self.images_per_second:>12.1f}{self.milliseconds:>12.1f}"
        return f"{left}{busy}{self.peak:>12.0f}{self.launches:>12}{self.first:>14.1f}"


def benchmark_gpu(
    stage: str,
    *,
    detectors: Sequence[str],
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    size: tuple[int, int],
    steps: int,
    device: torch.device,
    argv: list[str],
) -> None:
    """Print a line for every combination, eager, compiled and with CUDA graphs, and how many times faster it is than
    eager float32.

    Args:
        stage: "pretrain" or "finetune".
        precisions: values of ``--amp``.
        size: height and width of images and views in pixels.
        argv: further flags of the stage's script.
    """
    if device.type == "cpu":
        show_fused_kernels()
    print(f"{stage}, {size[0]} x {size[1]}, {steps} steps, on {describe(device)}, PyTorch {torch.__version__}")
    print(f"{'':<38}{HEAD[0]:>12}{HEAD[1]:>12}{HEAD[2]:>10}{HEAD[3]:>12}{HEAD[4]:>12}{HEAD[5]:>14}{'faster':>8}")
    for name in detectors:
        reference: dict[int, float] = {}
        for amp, (mode, more) in itertools.product(precisions, MODES.items()):
            torch._dynamo.reset()
            flags = ["--detr", name, "--amp", amp, "--device", device.type, *argv, *more]
            step_of = STAGES[stage](flags, size, device)
            for batch_size in batch_sizes:
                found = measure(step_of(batch_size), batch_size, steps, device)
                ratio = found.images_per_second / reference.setdefault(batch_size, found.images_per_second)
                print(f"{name:<14}{amp:<7}{mode:<10}{batch_size:>5}  {found}{ratio:>8.2f}", flush=True)


def measure(step: Callable[[], object], batch_size: int, steps: int, device: torch.device) -> Measured:
    """Measure a step that is called again and again."""
    began = time.perf_counter()
    step()
    milliseconds(device)
    first = time.perf_counter() - began
    for _ in range(WARM_UP_STEPS - 1):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = milliseconds(device)
    for _ in range(steps):
        step()
    wall = (milliseconds(device) - began) / steps
    return Measured(
        images_per_second=1e3 * batch_size / wall,
        milliseconds=wall,
        busy=busy_milliseconds(step, device) / wall if device.type == "cuda" else None,
        peak=peak_megabytes(device),
        launches=count_launches(step, device).total(),
        first=first,
    )


def busy_milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """How long the GPU computes in a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        milliseconds(device)
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e3


StepOf = Callable[[int], Callable[[], object]]
"""Batch size -> a training step on always the same batch."""


def pretraining(argv: list[str], size: tuple[int, int], device: torch.device) -> StepOf:
    """Steps of main_pretrain.py."""
    args, _ = main_pretrain.parse(["--dataset_file", "imagefolder", "--data_path", ".", *argv])
    method = PRETEXTS[args.method].build(args, main_pretrain.build_detector(args, None))
    _speed_up(method.to(device), args)
    training = make_training(args, method, main_pretrain.param_groups(args, method), device, 10**6)
    return _steps(training, args, device, lambda batch_size: two_view_batch(args, batch_size, *size))


def finetuning(argv: list[str], size: tuple[int, int], device: torch.device) -> StepOf:
    """Steps of main_finetune.py."""
    args, _ = main_finetune.parse(["--recipe", "paper", "--dataset_file", "coco", "--data_path", ".", *argv])
    record = DETECTORS[args.detr]
    outputs = num_outputs(NUM_CLASSES, record.classification)
    detector = record.build(args, outputs, classification=record.classification, train_backbone=args.lr_backbone > 0)
    method = SupervisedDETR(detector=detector, criterion=main_finetune.make_criterion(args, detector))
    _speed_up(method.to(device), args)
    training = make_training(args, method, main_finetune.param_groups(args, detector), device, 10**6)
    return _steps(training, args, device, lambda batch_size: labelled_batch(batch_size, *size))


STAGES = {"pretrain": pretraining, "finetune": finetuning}


def _speed_up(method: nn.Module, args: argparse.Namespace) -> None:
    only_counts = args.cuda_graphs and args.device == "cpu"
    args.cuda_graphs = args.cuda_graphs and not only_counts
    speed_up(method, args)
    if only_counts:
        label_replays(method)


def _steps(
    training: Training, args: argparse.Namespace, device: torch.device, make_batch: Callable[[int], Any]
) -> StepOf:
    training.method.train()

    def step_of(batch_size: int) -> Callable[[], object]:
        batches = itertools.repeat(engine.to_device(make_batch(batch_size), device))
        return lambda: engine.train_step(training.method, training, batches, args, device)

    return step_of


def two_view_batch(args: argparse.Namespace, batch_size: int, height: int, width: int) -> TwoViewBatch:
    """Noise without padding, with regions anywhere."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(batch_size, 2, args.num_regions, 2, generator=generator) * 0.5
    sides = 0.1 + 0.4 * torch.rand(corners.shape, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=-1) * torch.tensor([width, height, width, height])
    shape = (batch_size, 2, args.num_regions, 3, args.crop_size, args.crop_size)
    return TwoViewBatch(
        views=torch.randn(batch_size, 2, 3, height, width, generator=generator),
        mask=torch.zeros(batch_size, 2, height, width, dtype=torch.bool),
        boxes=boxes,
        size=torch.tensor([[height, width]] * batch_size),
        crops=torch.randn(shape, generator=generator),
    )


def labelled_batch(batch_size: int, height: int, width: int) -> tuple[NestedTensor, list[dict[str, torch.Tensor]]]:
    """Noise without padding, with objects anywhere."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch_size, 3, height, width, generator=generator)
    targets = [
        {
            "labels": torch.randint(NUM_CLASSES, (NUM_OBJECTS,), generator=generator),
            "boxes": 0.2 + 0.3 * torch.rand(NUM_OBJECTS, 4, generator=generator),
        }
        for _ in range(batch_size)
    ]
    return NestedTensor(pixels, torch.zeros(batch_size, height, width, dtype=torch.bool)), targets
