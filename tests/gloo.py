"""Run a test's function, or a script, in several processes that share a gloo group."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
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
        _start(_call, (world_size, folder, function, args), world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def run_script(script: str, *argv: Any, world_size: int = 2) -> None:
    """``main`` of main_pretrain or main_finetune, as torch.distributed.run would call it in every process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _start(_main, (world_size, port, script, [str(arg) for arg in argv]), world_size)


def _start(function: Callable[..., None], args: tuple, world_size: int) -> None:
    """Call ``function(rank, *args)`` in processes that are forked from one that has imported everything already."""
    multiprocessing.set_forkserver_preload(["engine", "tests.gloo"])
    mp.start_processes(_prepare, (dict(os.environ), function, args), nprocs=world_size, start_method="forkserver")


def _prepare(rank: int, environment: dict[str, str], function: Callable[..., None], args: tuple) -> None:
    os.environ.clear()
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    function(rank, *args)


def _call(rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        shutdown()


def _main(rank: int, world_size: int, port: int, script: str, argv: list[str]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    importlib.import_module(script).main(argv)
    shutdown()
