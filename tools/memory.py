"""Memory of processes, in megabytes; Linux only for what lies outside a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def private_megabytes(pid: int) -> float:
    """What a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def peak_megabytes(device: torch.device) -> float:
    """The most that was allocated on the GPU so far, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
