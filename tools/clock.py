"""What the benchmarks measure on and by which clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def milliseconds(device: torch.device) -> float:
    """A clock that is read when the device's queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * time.perf_counter()


def in_turn(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each run in each round; they take turns, and one more round at first warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for count in range(rounds + 1):
        for name, run in runs.items():
            began = milliseconds(device)
            run()
            if count:
                times[name].append(milliseconds(device) - began)
    return times


def describe(device: torch.device) -> str:
    """What a benchmark ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"
