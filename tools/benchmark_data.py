"""How fast two-view samples are made, against a plain arrangement and with workers: `benchmark.py data`."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import main_pretrain
from datasets.images import load_image, load_reduced
from datasets.loader import EpochBatchSampler, make_loader
from datasets.pretext.two_view import TwoViewDataset, as_planes, change_colours, collate_two_view, cut_crops, cut_views
from models import PRETEXTS
from tests.datasets.pretext.plain_two_view import cut_crops_plainly, cut_plainly, finish_plainly
from tools.memory import private_megabytes
from util.errors import UserError

PARTS = ("read", "draw", "views", "crops", "colours")
WARM_UP_SAMPLES = 3


def benchmark_data(num_samples: int, argv: list[str]) -> None:
    """Print milliseconds a part of a sample in one thread, samples a second with workers, and their memory.

    Args:
        num_samples: that are made both ways in turn, of images spread over the data set.
        argv: the command line of main_pretrain.py.

    Raises:
        UserError: the flags name another method than Siamese DETR.
    """
    args, _ = main_pretrain.parse(argv)
    if PRETEXTS[args.method].dataset is not TwoViewDataset:
        raise UserError(f"--method {args.method} has no two views to make; leave it out")
    dataset = main_pretrain.build_dataset(args)
    torch.set_num_threads(1)
    ours, plain = measure_samples(dataset, num_samples)
    print(f"{num_samples} of {len(dataset)} images, {args.num_regions} regions, crops of {args.crop_size} pixels")
    print("one thread, medians, milliseconds of CPU time")
    print(f"{'':<10}{'ours':>10}{'plain':>10}{'ratio':>8}")
    for name in (*PARTS, "sample"):
        fast, slow = median(ours[name]), median(plain[name])
        print(f"{name:<10}{fast:>10.2f}{slow:>10.2f}{slow / fast:>8.1f}")
    print(f"{'samples/s':<10}{1e3 / median(ours['sample']):>10.1f}{1e3 / median(plain['sample']):>10.1f}")
    measure_workers(dataset, args)


Times = dict[str, list[float]]


def measure_samples(dataset: TwoViewDataset, num_samples: int) -> tuple[Times, Times]:
    """Milliseconds of CPU time of each part of samples made our way and the plain way, in turn, with the same plans."""
    ours: Times = defaultdict(list)
    plain: Times = defaultdict(list)
    for count in range(-WARM_UP_SAMPLES, num_samples):
        index = max(count, 0) * len(dataset) // num_samples
        for make, times in ((make_sample, ours), (make_plainly, plain)):
            clock = PartClock()
            make(dataset, index, clock)
            if count >= 0:
                for name, value in clock.times.items():
                    times[name].append(value)
                times["sample"].append(sum(clock.times.values()))
    return ours, plain


class PartClock:
    """Milliseconds of CPU time of this process by part."""

    def __init__(self) -> None:
        self.times: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Account for what happens inside."""
        began = time.process_time()
        yield
        self.times[name] += 1e3 * (time.process_time() - began)


def make_sample(dataset: TwoViewDataset, index: int, clock: PartClock) -> tuple[Tensor, Tensor]:
    """Views and crops of ``dataset[0, index]``, part by part."""
    transform = dataset.transform
    with clock.part("read"):
        image, size = load_reduced(dataset.images.path(index), transform.useful_short_side)
    with clock.part("draw"):
        plan = dataset.plan((0, index), size)
    with clock.part("views"):
        views = cut_views(image, plan.geometry)
    with clock.part("crops"):
        crops = cut_crops(views, plan.boxes, transform.crop_size)
    with clock.part("colours"):
        views, crops = change_colours(as_planes(views), as_planes(crops), plan.photometrics)
        return transform.normalise(views), transform.normalise(crops)


def make_plainly(dataset: TwoViewDataset, index: int, clock: PartClock) -> tuple[Tensor, Tensor]:
    """The same with Pillow and torchvision, picture by picture."""
    transform = dataset.transform
    with clock.part("read"):
        image = load_image(dataset.images.path(index))
    with clock.part("draw"):
        plan = dataset.plan((0, index), image.size)
    with clock.part("views"):
        views = cut_plainly(image, plan)
    with clock.part("crops"):
        crops = cut_crops_plainly(views, plan, transform.crop_size)
    with clock.part("colours"):
        mean, std = (values.flatten() / 255 for values in (transform.normalise.mean, transform.normalise.std))
        return finish_plainly(views, crops, plan, mean.tolist(), std.tolist())


def measure_workers(dataset: TwoViewDataset, args: argparse.Namespace) -> None:
    """Print samples a second of wall time with workers, once they all work, and their memory after either epoch."""
    sampler = EpochBatchSampler(len(dataset), args.batch_size, seed=args.seed)
    loader = make_loader(dataset, sampler, collate_two_view, num_workers=args.num_workers, pin_memory=False)
    used = []
    for epoch in range(2):
        sampler.set_position(epoch)
        began, batches = time.perf_counter(), iter(loader)
        for _ in batches:
            pass
        used.append(memory_of_workers(batches))
    rate = len(sampler) * args.batch_size / (time.perf_counter() - began)
    print(f"{args.num_workers} workers, batches of {args.batch_size}: {rate:.1f} samples/s")
    print(f"memory of their own, MB: {used[0]:.0f} after one epoch, {used[1]:.0f} after another")


def memory_of_workers(batches: DataLoader) -> float:
    """Memory that the loader's workers (without any: this process) share with no other process, in MB; Linux only."""
    processes = getattr(batches, "_workers", [])
    return sum(private_megabytes(process.pid) for process in processes) or private_megabytes(os.getpid())
