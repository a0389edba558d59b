"""What both scripts do around their work: errors in one line, device, seeds, process group."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable

import numpy as np
import torch

from util import distributed
from util.errors import UserError, one_line


def run_script(main: Callable[[], None]) -> None:
    """Run ``main``; the user's errors become one line on stderr and exit status 1, without a traceback."""
    try:
        main()
    except (UserError, FloatingPointError) as error:
        who = f"error (process {distributed.rank()})" if distributed.rank() else "error"
        print(f"{who}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; go on with --resume auto", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        distributed.shutdown()


def select_device(name: str) -> torch.device:
    """``auto``: a GPU where there is one.

    Raises:
        UserError: ``cuda`` was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch finds no GPU; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
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
