"""A pretraining step of Siamese DETR against the arrangement of the authors' public code: `benchmark.py pretrain`."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from statistics import median

import torch

import engine
import main_pretrain
from models import PRETEXTS
from models.backbone import RESNETS
from models.pretext.siamese import SiameseDETR
from tools.arithmetic import SIDE, Arithmetic, at_best, large_matrix
from tools.benchmark_gpu import two_view_batch
from tools.clock import describe, in_turn
from tools.memory import peak_megabytes
from tools.plain_siamese import PlainSiamese, plain_step
from training import make_training, speed_up
from util.errors import UserError
from util.precision import BACKBONE_ALONE, processor_has_bf16

DETECTORS = ("vanilla", "conditional")
"""Those that the authors' code can train on a CPU: its deformable attention is for GPUs."""

CPU = torch.device("cpu")


def benchmark_pretrain(detr: str, rounds: int, size: tuple[int, int], argv: list[str]) -> None:
    """Print milliseconds and peak memory of a step of both, on noise, with random weights.

    Both have the same weights and losses, see :mod:`tools.plain_siamese`. Each has its own process, and
    they work in turn. Beside them stands the time that our arithmetic takes at best, as in ``benchmark.py detector``,
    and on a CPU that multiplies bf16 our step with ``--amp bf16_backbone``.

    Args:
        size: height and width of the views.
        argv: more of the command line of main_pretrain.py.

    Raises:
        UserError: flags that the authors' arrangement does not have.
    """
    args = parse(["--detr", detr, "--batch_size", "2", *argv])
    matrix = large_matrix(CPU)
    with contextlib.ExitStack() as stack:
        names = [name for name in STEPS if name != BACKBONE_ALONE or processor_has_bf16()]
        workers = {name: stack.enter_context(Worker(name, args, size)) for name in names}
        operations = workers["ours"].ask("count")
        steps = {name: partial(worker.ask, "step") for name, worker in workers.items()}
        times = in_turn(steps | {"product": lambda: matrix @ matrix}, rounds, CPU)
        peaks = {name: worker.ask("peak") for name, worker in workers.items()}
    best = at_best(operations, median(times["product"]))
    print(
        f"{describe(CPU)}, {detr} {args.backbone}, {args.batch_size} images, views of {size[0]} x {size[1]}, "
        f"{args.num_regions} regions with crops of {args.crop_size}, float32, medians of {rounds} rounds in turn"
    )
    print(f"{'':<14}{'ms':>10}{'':<24}{'peak MB':>10}{'before':>10}")
    for name, worker in workers.items():
        spread = f"   ({min(times[name]):.1f} .. {max(times[name]):.1f})"
        print(f"{name:<14}{median(times[name]):>10.1f}{spread:<24}{peaks[name]:>10.0f}{worker.before:>10.0f}")
    ratio, of_peaks = (median(times["authors"]) / median(times["ours"]), peaks["authors"] / peaks["ours"])
    print(f"ratio of times {ratio:.2f}, of peaks {of_peaks:.2f}")
    print(
        f"limit of ours {best:.1f} ms: {operations / 1e9:.0f} GFLOP in products of two matrices of {SIDE} x {SIDE}, "
        "measured in turn"
    )
    print(
        "peak: largest resident size of the process; before: that before the first step, PyTorch and weights included"
    )


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


Step = Callable[[], None]


def our_step(args: argparse.Namespace, size: tuple[int, int]) -> Step:
    """A step of main_pretrain.py, always on the same batch."""
    method = build(args)
    speed_up(method, args)
    training = make_training(args, method, main_pretrain.param_groups(args, method), CPU, 10**6)
    batches = itertools.repeat(two_view_batch(args, args.batch_size, *size))

    def step() -> None:
        engine.train_step(method, training, batches, args, CPU)

    return step


def our_step_in_bf16(args: argparse.Namespace, size: tuple[int, int]) -> Step:
    """The same with ``--amp bf16_backbone``."""
    return our_step(argparse.Namespace(**{**vars(args), "amp": BACKBONE_ALONE}), size)


def their_step(args: argparse.Namespace, size: tuple[int, int]) -> Step:
    """The same in the arrangement of the authors' code."""
    return plain_step(PlainSiamese(args, build(args)).train(), two_view_batch(args, args.batch_size, *size), args)


STEPS = {"ours": our_step, "authors": their_step, BACKBONE_ALONE: our_step_in_bf16}


class Worker:
    """A process that makes one kind of step whenever it is asked to; as a context it ends with it.

    Attributes:
        before: its megabytes before the first step.
    """

    def __init__(self, name: str, args: argparse.Namespace, size: tuple[int, int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, args, size), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process ends the waiting for it
        self.before: float = self.connection.recv()

    def ask(self, what: str) -> float:
        """The answer of :func:`serve`."""
        self.connection.send(what)
        return self.connection.recv()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()
        self.process.join()


def serve(connection: Connection, name: str, args: argparse.Namespace, size: tuple[int, int]) -> None:
    """Make steps as the parent asks, until it closes the connection.

    ``step``: make one, ``count``: make one and answer its floating point operations, ``peak``: answer megabytes.
    """
    step = STEPS[name](args, size)
    answers = {"step": step, "count": partial(count, step), "peak": partial(peak_megabytes, CPU)}
    connection.send(peak_megabytes(CPU))
    with contextlib.suppress(EOFError):
        while True:
            connection.send(answers[connection.recv()]())


def count(step: Step) -> float:
    """The floating point operations of a step."""
    with Arithmetic() as arithmetic:
        step()
    return arithmetic.operations
