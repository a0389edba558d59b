"""A pretraining step of Siamese DETR against the arrangement of the authors' public code: `benchmark.py pretrain`."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median

import torch

import engine
import main_pretrain
from models import PRETEXTS
from models.backbone import RESNETS
from models.pretext.siamese import SiameseDETR
from tests.models.pretext.plain_siamese import PlainSiamese, plain_step
from tools.arithmetic import SIDE, Arithmetic, at_best, large_matrix
from tools.benchmark_gpu import two_view_batch
from tools.clock import describe, in_turn
from tools.memory import peak_megabytes
from training import make_training
from util.errors import UserError

DETECTORS = ("vanilla", "conditional")
"""Those that the authors' code can train on a CPU: its deformable attention is for GPUs."""

CPU = torch.device("cpu")


def benchmark_pretrain(detr: str, rounds: int, size: tuple[int, int], argv: list[str]) -> None:
    """Print milliseconds and peak memory of a step of both, on noise, with random weights.

    Both have the same weights and losses, see :mod:`tests.models.pretext.plain_siamese`. Beside them stands the time
    that our arithmetic takes at best, as in ``benchmark.py detector``.

    Args:
        size: height and width of the views.
        argv: more of the command line of main_pretrain.py.

    Raises:
        UserError: flags that the authors' arrangement does not have.
    """
    args = parse(["--detr", detr, "--batch_size", "2", *argv])
    peaks = {name: peak_alone(name, args, size) for name in STEPS}
    steps = {name: make(args, size) for name, make in STEPS.items()}
    with Arithmetic() as arithmetic:
        steps["ours"]()
    matrix = large_matrix(CPU)
    times = in_turn(steps | {"product": lambda: matrix @ matrix}, rounds, CPU)
    best = at_best(arithmetic.operations, median(times["product"]))
    ours, theirs = (median(times[name]) for name in STEPS)
    print(
        f"{describe(CPU)}, {detr} {args.backbone}, {args.batch_size} images, views of {size[0]} x {size[1]}, "
        f"{args.num_regions} regions with crops of {args.crop_size}, float32, medians of {rounds} rounds in turn"
    )
    print(f"{'':<10}{'ms':>10}{'':<24}{'peak MB':>10}")
    for name in STEPS:
        spread = f"   ({min(times[name]):.1f} .. {max(times[name]):.1f})"
        print(f"{name:<10}{median(times[name]):>10.1f}{spread:<24}{peaks[name]:>10.0f}")
    print(f"ratio of times {theirs / ours:.2f}, of peaks {peaks['authors'] / peaks['ours']:.2f}")
    print(
        f"limit of ours {best:.1f} ms: {arithmetic.operations / 1e9:.0f} GFLOP in products of two matrices of "
        f"{SIDE} x {SIDE}, measured in turn"
    )
    print(f"peak: largest resident size of a process that makes {STEPS_FOR_PEAK} steps, PyTorch and weights included")


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of main_pretrain.py for a step that both arrangements can make."""
    args, _ = main_pretrain.parse(
        [*argv, "--dataset_file", "imagefolder", "--data_path", ".", "--device", "cpu", "--amp", "none"]
    )
    plain = {"method": "siamese", "matching": "free", "content_in": "query_pos", "content_dropout": 0.0}
    plain |= {"contrast_loss_coef": 0.0, "no_feature_loss": False, "no_global_loss": False}
    plain |= {"position_embedding": "sine", "dilation": False, "pre_norm": False, "compile": False, "accum_steps": 1}
    other = next((name for name, value in plain.items() if getattr(args, name) != value), None)
    if other is not None:
        raise UserError(f"--{other}: the authors' arrangement has {plain[other]} alone; leave it out")
    if args.backbone not in RESNETS:
        raise UserError(f"--backbone {args.backbone}: the authors' arrangement has ResNets alone: {', '.join(RESNETS)}")
    return args


def build(args: argparse.Namespace) -> SiameseDETR:
    """The pretext task of the flags, with random weights, in training mode."""
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):  # a warning that the backbone is random
        detector = main_pretrain.build_detector(args, None)
    return PRETEXTS[args.method].build(args, detector).train()


Step = Callable[[], object]


def our_step(args: argparse.Namespace, size: tuple[int, int]) -> Step:
    """A step of main_pretrain.py, always on the same batch."""
    method = build(args)
    training = make_training(args, method, main_pretrain.param_groups(args, method), CPU, 10**6)
    batches = itertools.repeat(two_view_batch(args, args.batch_size, *size))
    return lambda: engine.train_step(method, training, batches, args, CPU)


def their_step(args: argparse.Namespace, size: tuple[int, int]) -> Step:
    """The same in the arrangement of the authors' code."""
    return plain_step(PlainSiamese(args, build(args)).train(), two_view_batch(args, args.batch_size, *size), args)


STEPS = {"ours": our_step, "authors": their_step}
STEPS_FOR_PEAK = 2
"""The second one has the optimizer's state."""


def peak_alone(name: str, args: argparse.Namespace, size: tuple[int, int]) -> float:
    """The peak memory of a step in a process of its own, in megabytes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(peak_here, name, args, size).result()


def peak_here(name: str, args: argparse.Namespace, size: tuple[int, int]) -> float:
    """The peak memory of this process, once it has made some steps."""
    step = STEPS[name](args, size)
    for _ in range(STEPS_FOR_PEAK):
        step()
    return peak_megabytes(CPU)
