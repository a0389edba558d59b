"""What all scripts share: errors in one line, device, seeds, process group."""

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

from util import distributed, signals, streams
from util.errors import UserError, one_line

# The disk is full, over a quota, or read-only.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# Beginning of torch's message when a loading process has ended.
LOST_WORKER = "DataLoader worker (pid"

# In messages of collectives when another process has ended.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


def run_script(main: Callable[[], None], interrupted: str = "interrupted") -> None:
    """Run ``main``; an error that the user can correct becomes one line on stderr and exit status 1.

    A signal (Ctrl-C, SIGTERM, SIGUSR1, SIGHUP) also becomes one line, and the exit status says which signal. Output
    that nobody reads any more counts as SIGHUP.

    Args:
        interrupted: the message for a signal that ``main`` does not handle.
    """
    streams.open_missing()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show must not end the run
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
        if isinstance(error, BrokenPipeError) and streams.swallow_what_nobody_reads():
            _leave(interrupted, status=128 + signal.SIGHUP)
        message = explain(error)
        if message is None:
            raise
        _leave(f"{_who()}: {message}", status=1)


def explain(error: Exception) -> str | None:
    """The message for an error from outside the code; None: the code is wrong."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "the GPU's memory is full: lower --batch_size (and raise --accum_steps), --max_size or --scales, "
            "or use --amp bf16"
        )
    if isinstance(error, MemoryError):
        return "memory is full: lower --batch_size, --num_workers, --max_size or --scales"
    if isinstance(error, OSError):
        return explain_os_error(error)
    if isinstance(error, UnicodeEncodeError) and "surrogate" in error.reason:
        return f"{error.object!r:.200}: the file system cannot store this name"
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):
        return "a path in the flags holds a NUL byte, which no file name can have"
    if isinstance(error, RuntimeError):
        return explain_lost_process(error)
    return None


def explain_os_error(error: OSError) -> str:
    """What the system refused, and where."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"{reason} (the system does not name the file)"
    does = "cannot write" if error.errno in UNWRITABLE else "cannot use"
    return f"{does} {os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: {reason}"


def explain_lost_process(error: RuntimeError) -> str | None:
    """The message if a loading process or another training process has ended; None: another error."""
    if str(error).startswith(LOST_WORKER):
        reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
        return f"{one_line(reason)}; if memory ran out, lower --num_workers and run it again"
    if distributed.world_size() > 1 and any(sign in str(error) for sign in LOST_PEER):
        return "another process ended; its message says why"
    return None


def _who() -> str:
    return f"error (process {distributed.rank()})" if distributed.rank() else "error"


def _leave(message: str | None, status: int) -> NoReturn:
    """Print ``message``, if there is one, and exit.

    One of several processes exits at once. To leave the group it would wait for the others, but they wait for it, and
    the launcher ends them only after it has ended.
    """
    streams.swallow_what_nobody_reads()
    if message is not None:
        print(message, file=sys.stderr, flush=True)
    if distributed.world_size() > 1:
        sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status) from None


def select_device(name: str) -> torch.device:
    """The device of ``--device``; ``auto``: a GPU if there is one.

    Raises:
        UserError: there is no GPU for ``cuda``, or not one per process.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch finds no GPU; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if distributed.local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"process {distributed.local_rank()} of this machine has no GPU: it has {torch.cuda.device_count()} GPUs; "
            "lower --nproc_per_node"
        )
    return torch.device("cuda", distributed.local_rank())


def start(args: argparse.Namespace) -> torch.device:
    """Join the process group, choose the device, and seed this process (each rank has its own seed)."""
    device = select_device(args.device)
    args.device = device.type
    distributed.init(device.type)
    seed = args.seed + distributed.rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from the global state
    torch.manual_seed(seed)
    return device
