"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

from util import distributed
from util.errors import CheckpointError, UserError
from util.files import write_json, written_whole
from util.public_pickle import PUBLIC_GLOBALS

LATEST = "checkpoint.pth"

# What torch's reader stumbles with over a file that is cut off, damaged or something else.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, OSError, AssertionError, TypeError, AttributeError)
DAMAGED += (ArithmeticError, struct.error)


def load_file(path: str | Path) -> Any:
    """Read a file written by ``torch.save`` onto the CPU. Code in it never runs (``weights_only=True``).

    Beside tensors and plain containers it may hold what public checkpoints do: see :mod:`util.public_pickle`.

    Raises:
        CheckpointError: no such file, truncated, not a checkpoint, or holding other objects; the message names the
            file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        # An open file, for the ending of a path's name must not decide how torch reads it.
        with path.open("rb") as file, torch.serialization.safe_globals(PUBLIC_GLOBALS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # a class or function that the file asks for
            raise CheckpointError(
                f"{path}: refused: it holds more than tensors and plain containers, loading it could run code"
            ) from None
        raise CheckpointError(f"{path}: not a checkpoint, or damaged") from None
    except DAMAGED as error:
        raise CheckpointError(f"{path}: not a checkpoint, or truncated ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def save_file(value: Any, path: str | Path) -> None:
    """Write ``value`` by ``torch.save``, whole or not at all."""
    # An open file: given a path, torch would not say what the disk said.
    with written_whole(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's zip writer hides what the disk said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_checkpoint(output_dir: str | Path, checkpoint: dict[str, Any], *, keep: int) -> Path:
    """Write ``checkpoint_STEP.pth``, point ``checkpoint.pth`` at it, and delete all but the ``keep`` last written.

    ``checkpoint.pth`` is a hard link (a copy where there are none): it costs no space and is complete
    at any moment.
    """
    folder = Path(output_dir)
    path = folder / f"checkpoint_{checkpoint['step']:08d}.pth"
    save_file(checkpoint, path)
    temporary = folder / f".{LATEST}.link"
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        os.replace(temporary, folder / LATEST)
    except OSError:  # no hard links here
        save_file(checkpoint, folder / LATEST)
    by_age = sorted(folder.glob("checkpoint_????????.pth"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    for old in by_age[:-keep]:
        old.unlink()
    return path


def open_output_dir(args: argparse.Namespace, resumed: Path | None) -> Path:
    """Make the folder of a training run, prove that it can be written, write ``args.json``. Collective.

    Args:
        resumed: the checkpoint that the run goes on from, if any.

    Raises:
        UserError: it cannot be made or written, or holds another run that this one would overwrite.
    """
    folder = Path(args.output_dir)
    if distributed.is_main():
        make_writable(folder)
        goes_on_here = resumed is not None and resumed.resolve().parent == folder.resolve()
        if not goes_on_here and (folder / LATEST).exists():
            raise UserError(
                f"--output_dir {folder} holds a run already: go on with --resume auto, or name another folder"
            )
        for leftover in folder.glob(".checkpoint_*.pth.*"):  # of a save that was killed
            leftover.unlink()
        write_json(vars(args), folder / "args.json")
    distributed.barrier()
    return folder


def make_writable(folder: str | Path) -> None:
    """Make ``folder`` and prove that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror or error})") from None
