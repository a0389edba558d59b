"""Run a test's function in several processes that share a gloo group."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from util.distributed import shutdown


def run_processes(function: Callable[..., Any], *args: Any, world_size: int = 2) -> list[Any]:
    """``function(rank, *args)`` of every process, in order of rank.

    ``function`` must be importable by name; what it returns goes through ``torch.save``.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (world_size, folder, function, args), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _process(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        shutdown()
