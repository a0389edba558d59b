"""What a run is, in some ten lines at its start; two of them follow when the first steps have shown it."""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
from torch import nn

from util import distributed
from util.logger import say
from util.precision import BACKBONE_ALONE, processor_has_bf16
from util.progress import duration
from util.schedule import Schedule

FIRST_STEPS = 10
FIRST_SECONDS = 10.0
"""After so many steps, or so much time, the duration is estimated; the first step does not count, it prepares much."""

GIB = 1 << 30


def describe_run(
    args: argparse.Namespace,
    schedule: Schedule,
    detector: nn.Module,
    device: torch.device,
    *,
    data: str,
    evaluated: str,
) -> str:
    """The summary, a line for each part.

    Args:
        args: complete.
        schedule: of the run, at its present place.
        detector: as it is trained.
        data, evaluated: what only the script knows: the images, and when and by what the run is evaluated.
    """
    rows = {
        "data": data,
        "sizes": _sizes(args),
        "device": _device(args, device),
        "detector": _detector(args, detector),
        "steps": _steps(args, schedule),
        "lr": _rates(args, schedule),
        "evaluated": evaluated,
        "saved": _saved(args),
        "output": f"{args.output_dir}: args.json, checkpoints, log.txt (a line every {every(args.log_every, 'step')})",
    }
    return "\n".join(_line(name, text) for name, text in rows.items())


def _line(name: str, text: str) -> str:
    return f"{name:<11}{text}"


def _sizes(args: argparse.Namespace) -> str:
    low, high = min(args.scales), max(args.scales)
    text = f"short side {low if low == high else f'{low} to {high}'}, long side at most {args.max_size} pixels"
    if getattr(args, "eval_size", None):
        text += f"; evaluated at {args.eval_size}, at most {args.eval_max_size}"
    return text


def _device(args: argparse.Namespace, device: torch.device) -> str:
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{device.type} with {number_of(torch.get_num_threads(), 'thread')}"
    processes = distributed.world_size()
    many = f"{processes} processes, each on {where}" if processes > 1 else where
    return f"{many}; loading: --num_workers {args.num_workers}; precision {_precision(args.amp, device)}"


def _precision(amp: str, device: torch.device) -> str:
    if amp != "none":
        return f"{amp} where it serves (--amp)"
    faster = device.type == "cpu" and processor_has_bf16()
    return f"float32; --amp {BACKBONE_ALONE} is faster on this processor" if faster else "float32"


def _detector(args: argparse.Namespace, detector: nn.Module) -> str:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in detector.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    return (
        f"{args.detr} on {args.backbone}, {args.num_queries} queries: {total / 1e6:.1f} million parameters, "
        f"{trained / 1e6:.1f} of them are trained"
    )


def _steps(args: argparse.Namespace, schedule: Schedule) -> str:
    epochs = schedule.total_steps / schedule.steps_per_epoch if args.epochs is None else args.epochs
    text = f"{schedule.total_steps:,} = {epochs:.4g} epochs of {number_of(schedule.steps_per_epoch, 'step')}"
    text += f", {number_of(schedule.images_per_step, 'image')} each"
    return f"{text}; {schedule.step:,} are done" if schedule.step else text


def _rates(args: argparse.Namespace, schedule: Schedule) -> str:
    parts = [f"{args.lr:g}"]
    if getattr(args, "lr_backbone", None) is not None:
        parts.append(f"backbone {args.lr_backbone:g}" if args.lr_backbone else "backbone frozen")
    if args.warmup_steps:
        parts.append(f"rising in the first {number_of(args.warmup_steps, 'step')}")
    if args.lr_schedule == "cosine":
        parts.append("falling to 0 along a cosine")
    elif schedule.drop_step is not None and schedule.drop_step < schedule.total_steps:
        parts.append(f"a tenth from step {schedule.drop_step:,} on")
    return ", ".join(parts)


def _saved(args: argparse.Namespace) -> str:
    intervals = [(args.save_every_epochs, "epoch"), (args.save_every_steps, "step")]
    parts = [f"after every {every(count, unit)}" for count, unit in intervals if count]
    return f"{', '.join([*parts, 'at the end'])}; the last {args.keep_checkpoints} are kept"


def every(count: int, unit: str) -> str:
    """``every(1, "epoch")`` is "epoch", ``every(3, "epoch")`` "3 epochs"."""
    return unit if count == 1 else number_of(count, unit)


def number_of(count: int, unit: str) -> str:
    """``number_of(1, "thread")`` is "1 thread", ``number_of(2, "thread")`` "2 threads"."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


class Beginning:
    """Says what only the first steps show: the memory in use, and how long the run will take."""

    def __init__(self, steps_left: int, device: torch.device) -> None:
        self._left, self._device = steps_left, device
        self._done = 0
        self._since = 0.0
        self._is_told = False

    def after_step(self) -> None:
        """One more step is done. The device is not waited for."""
        if self._is_told:
            return
        self._done += 1
        if self._done == 1:
            self._since = time.perf_counter()
            say(_line("memory", f"{memory_in_use(self._device)} after the first step"))
            return
        seconds, counted = time.perf_counter() - self._since, self._done - 1
        if counted >= FIRST_STEPS or seconds >= FIRST_SECONDS:
            self._is_told = True
            left = seconds / counted * (self._left - self._done)
            told = f"about {duration(left)} at {seconds / counted:.2g} s a step, evaluations not counted"
            say(_line("duration", told))


def memory_in_use(device: torch.device) -> str:
    """The most memory that this process has had so far, on its GPU if it has one."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{torch.cuda.max_memory_reserved(device) / GIB:.1f} of {total / GIB:.0f} GiB on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{most / GIB:.2g} GiB (loading processes not counted)"
