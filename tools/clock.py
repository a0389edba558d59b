"""What the benchmarks measure on and by which clock."""

from __future__ import annotations

import time

import torch


def milliseconds(device: torch.device) -> float:
    """A clock that is read when the device's queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * time.perf_counter()


def describe(device: torch.device) -> str:
    """What a benchmark ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"
