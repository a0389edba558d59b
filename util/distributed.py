"""The process group and the few collectives that are needed; without a process group they are the identity."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from util.signals import die_with_parent


def init(device_type: str) -> None:
    """Join the process group of ``python -m torch.distributed.run``, if the environment describes one.

    nccl on GPUs (one per process, chosen by LOCAL_RANK), gloo on CPUs. If the launcher ends, the process gets SIGTERM;
    otherwise it would train on unnoticed, and nothing would restart the others.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(signal.SIGTERM)
    if device_type == "cuda":
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if _is_initialized():
        # The threads of gloo (every run has a gloo group, see util.stopping) need the interpreter's lock to release the
        # last collective's tensors. Destroying the group waits for them and, in PyTorch 2.6, holds the lock: one in ten
        # processes hung.
        time.sleep(0.1)
        dist.destroy_process_group()


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def num_launched() -> int:
    """Number of processes that the launcher started; known before they join the group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def was_restarted() -> bool:
    """Whether the launcher restarted this process (--max_restarts) because a process of the run ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_rank() -> int:
    """Index of this process on its own machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """Index of this process among all; known from the launcher before it joins the group."""
    return dist.get_rank() if _is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints messages."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of ``tensor`` over processes, as a new tensor without gradient."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def all_gather_object(value: Any) -> list[Any]:
    """``value`` of every process, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
