"""What large data sets and many processes cost, as far as one machine can show: `benchmark.py scale`."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

import main_pretrain
from datasets.loader import EpochBatchSampler
from models import PRETEXTS
from tests.gloo import run_processes
from tools.benchmark_gpu import pretraining
from tools.benchmark_start import make_empty_files, print_starts
from training import Training, make_training, parameters_to_train
from util import distributed
from util.checkpoint import save_checkpoint

DETECTORS = ("vanilla", "conditional", "deformable")
SHARE_OF_TIME = 0.05
"""That writing checkpoints may take."""

SCALING_SIZE, SCALING_BATCH, SCALING_STEPS, SCALING_ROUNDS = (352, 448), 2, 3, 3
"""Pixels of the views, images per process, steps and rounds with one process and with two."""


def benchmark_scale(num_images: int, num_folders: int, num_processes: int, batch_size: int) -> None:
    """Print seconds and memory of a start, the coverage of an epoch, and bytes and seconds of a large run.

    Args:
        num_images, num_folders: of a data set that is made of empty files, and removed.
        num_processes: of the simulated run.
        batch_size: images per process.
    """
    folder = Path(tempfile.mkdtemp(prefix="benchmark_scale_"))
    try:
        make_empty_files(folder / "images", num_images, num_folders)
        print(f"{num_images:,} images in {num_folders:,} folders")
        print(f"{'':<34}{'seconds':>10}{'own memory, MB':>18}{'peak, MB':>12}")
        for count in (1, 8):
            print_starts(folder, count)
    finally:
        shutil.rmtree(folder)
    print_coverage(num_images, num_processes, batch_size)
    for name in DETECTORS:
        print_exchange(name, num_images, num_processes, batch_size)
    print_weak_scaling()


def print_coverage(num_images: int, num_processes: int, batch_size: int) -> None:
    """Print how often the images come in an epoch of so many processes."""
    counts = np.zeros(num_images, dtype=np.int64)
    for rank in range(num_processes):
        for batch in EpochBatchSampler(num_images, batch_size, seed=0, world_size=num_processes, rank=rank):
            np.add.at(counts, [index for _, index in batch], 1)
    left_out = int((counts == 0).sum())
    print(
        f"an epoch of {num_processes} processes x {batch_size} images: {int((counts == 1).sum()):,} images once, "
        f"{int((counts > 1).sum())} twice, {left_out} left out (fewer than one batch of {num_processes * batch_size})"
    )


def print_exchange(name: str, num_images: int, num_processes: int, batch_size: int) -> None:
    """Print what a detector's pretraining sends in a step, and how long a checkpoint takes to write."""
    training = pretraining_of(name, num_images)
    sent = sum(parameter.numel() for parameter in parameters_to_train(training.method)) * 4
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            path = save_checkpoint(folder, training.state_dict(), keep=1)
            seconds.append(time.perf_counter() - began)
        size = path.stat().st_size / 2**20
    writing = median(seconds)
    steps = num_images // (num_processes * batch_size)
    print(
        f"{name:<12} all-reduces {sent / 2**20:.0f} MiB of gradients a step; a checkpoint is {size:.0f} MiB and takes "
        f"{writing:.2f} s ({min(seconds):.2f} .. {max(seconds):.2f}): at most {SHARE_OF_TIME:.0%} of epochs of "
        f"{writing / SHARE_OF_TIME:.0f} s, which are {steps:,} steps of {1e3 * writing / SHARE_OF_TIME / steps:.1f} ms"
    )


def pretraining_of(name: str, num_images: int) -> Training:
    """A pretraining of a detector with ResNet-50 whose optimizer has made a step."""
    args, _ = main_pretrain.parse(
        ["--detr", name, "--dataset_file", "imagefolder", "--data_path", ".", "--device", "cpu"]
    )
    method = PRETEXTS[args.method].build(args, main_pretrain.build_detector(args, None))
    groups = main_pretrain.param_groups(args, method)
    training = make_training(args, method, groups, torch.device("cpu"), num_images)
    for parameter in parameters_to_train(method):
        parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    return training


def print_weak_scaling() -> None:
    """Print how many images per second two processes train on, with one thread each, against one such process.

    A step waits for the slowest process. So the time of each round is that of the slower one.
    """
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(SCALING_ROUNDS):
        for count, rounds in times.items():
            rounds.append(max(run_processes(_seconds_per_step, world_size=count)))
    one, two = (median(rounds) for rounds in times.values())
    spread = [single / double for single, double in zip(times[1], times[2], strict=True)]
    print(
        f"conditional, {SCALING_BATCH} images per process, one thread each: a step takes {one:.2f} s with one process, "
        f"{two:.2f} s with two: {one / two:.2f} of the images per second and process ({min(spread):.2f} .. "
        f"{max(spread):.2f})"
    )


def _seconds_per_step(rank: int) -> float:
    """Median of some pretraining steps, exchange of gradients included."""
    make_step = pretraining(["--detr", "conditional", "--device", "cpu"], SCALING_SIZE, torch.device("cpu"))
    step = make_step(SCALING_BATCH)
    step()
    seconds = []
    for _ in range(SCALING_STEPS):
        distributed.barrier()
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return median(seconds)
