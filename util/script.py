"""What both scripts do around their work: errors in one line, device, seeds, process group."""

from __future__ import annotations

import argparse
import errno
import os
import random
import sys
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch

from util import distributed
from util.errors import UserError, one_line

# A disk that is full, or over a quota, or that must not be written to.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# How torch begins when one of its loading processes is gone.
LOST_WORKER = "DataLoader worker (pid"

# What a collective says when a process at its other end is gone.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


def run_script(main: Callable[[], None], interrupted: str = "interrupted") -> None:
    """Run ``main``; the user's errors become one line on stderr and exit status 1, without a traceback.

    Args:
        interrupted: what Ctrl-C is answered with.
    """
    try:
        main()
        distributed.shutdown()
    except (UserError, FloatingPointError) as error:
        who = f"error (process {distributed.rank()})" if distributed.rank() else "error"
        _leave(f"{who}: {one_line(error)}", status=1)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _leave(f"error: cannot write {error.filename or 'a file'}: {error.strerror}", status=1)
    except RuntimeError as error:
        if str(error).startswith(LOST_WORKER):
            reason = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
            _leave(f"error: {one_line(reason)}; if memory ran out, lower --num_workers and run it again", status=1)
        if distributed.world_size() == 1 or not any(sign in str(error) for sign in LOST_PEER):
            raise
        _leave(f"error (process {distributed.rank()}): another process ended; its message says why", status=1)
    except KeyboardInterrupt:
        _leave(interrupted, status=130)


def _leave(message: str, status: int) -> NoReturn:
    """Say ``message`` and exit.

    Among several processes at once: to leave the group in good order would be to wait for the others, who wait for
    this one, and only its end makes the launcher end them.
    """
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
