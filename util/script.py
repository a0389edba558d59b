"""What both scripts do around their work: errors in one line, device, seeds, process group."""

from __future__ import annotations

import argparse
import errno
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch

from util import distributed, signals
from util.errors import UserError, one_line

# A disk that is full, or over a quota, or that must not be written to.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# How torch begins when one of its loading processes is gone.
LOST_WORKER = "DataLoader worker (pid"

# What a collective says when a process at its other end is gone.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


def run_script(main: Callable[[], None], interrupted: str = "interrupted") -> None:
    """Run ``main``; what is the user's to mend becomes one line on stderr and exit status 1, without a traceback.

    A signal (Ctrl-C, SIGTERM, SIGUSR1) is one line, too, and the exit status says which.

    Args:
        interrupted: what a signal is answered with that ``main`` itself has no answer to.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal has no letters for must not end the run
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals.raising():
            main()
            distributed.shutdown()
    except (UserError, FloatingPointError) as error:
        _leave(f"{_who()}: {one_line(error)}", status=1)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        _leave((str(stop) or interrupted) if distributed.is_main() else None, status=128 + number)
    except Exception as error:
        message = told_as(error)
        if message is None:
            raise
        _leave(f"{_who()}: {message}", status=1)


def told_as(error: Exception) -> str | None:
    """The line for an error that comes from outside the code; None: the code itself is wrong."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU's memory is full: lower --batch_size (--accum_steps makes up for it), --max_size or --scales, "
            "or use --amp bf16"
        )
    if isinstance(error, MemoryError):
        return "memory is full: lower --batch_size, --num_workers, --max_size or --scales"
    if isinstance(error, OSError):
        return told_as_os_error(error)
    if isinstance(error, UnicodeEncodeError) and "surrogate" in error.reason:
        return f"{error.object!r:.200}: the file system has no such name"
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return "a path among the flags holds a NUL byte, so no file can have this name"
    if isinstance(error, RuntimeError):
        return told_as_lost_process(error)
    return None


def told_as_os_error(error: OSError) -> str:
    """What the system refused, and where."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"{reason} (the system does not say where)"
    does = "cannot write" if error.errno in UNWRITABLE else "cannot use"
    return f"{does} {os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: {reason}"


def told_as_lost_process(error: RuntimeError) -> str | None:
    """The line for a loading process, or another training process, that is gone; None: another error."""
    if str(error).startswith(LOST_WORKER):
        reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
        return f"{one_line(reason)}; if memory ran out, lower --num_workers and run it again"
    if distributed.world_size() > 1 and any(sign in str(error) for sign in LOST_PEER):
        return "another process ended; its message says why"
    return None


def _who() -> str:
    return f"error (process {distributed.rank()})" if distributed.rank() else "error"


def _leave(message: str | None, status: int) -> NoReturn:
    """Say ``message``, if there is one, and exit.

    Among several processes at once: to leave the group in good order would be to wait for the others, who wait for
    this one, and only its end makes the launcher end them.
    """
    if message is not None:
        print(message, file=sys.stderr, flush=True)
    if distributed.world_size() > 1:
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status) from None


def select_device(name: str) -> torch.device:
    """``auto``: a GPU where there is one.

    Raises:
        UserError: ``cuda`` was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch finds no GPU; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if distributed.local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"process {distributed.local_rank()} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "lower --nproc_per_node"
        )
    return torch.device("cuda", distributed.local_rank())


def start(args: argparse.Namespace) -> torch.device:
    """Join the process group, choose the device and seed this process (each rank its own dropout)."""
    device = select_device(args.device)
    args.device = device.type
    distributed.init(device.type)
    seed = args.seed + distributed.rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from the global state
    torch.manual_seed(seed)
    return device
