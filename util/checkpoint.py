"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from util import distributed
from util.errors import CheckpointError, UserError
from util.public_pickle import PUBLIC_GLOBALS

if TYPE_CHECKING:
    from models.checkpoints.foreign import Foreign

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
    """Write ``value`` by ``torch.save``: to a temporary file beside ``path``, synced, then renamed."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            _write_synced(value, file)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock colleagues out
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_synced(value: Any, file: BinaryIO) -> None:
    try:
        torch.save(value, file)
    except RuntimeError as error:  # torch's zip writer hides what the disk said
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    file.flush()
    os.fsync(file.fileno())


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


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run starts from.

    Attributes:
        path: its file.
        content: what the file holds.
        resumes: the run goes on where this one stopped; otherwise it only takes over the detector.
        foreign: what is to know of it where it is of another project.
    """

    path: Path
    content: dict[str, Any]
    resumes: bool
    foreign: Foreign | None = None


def rng_state() -> dict[str, Any]:
    """The global random states of this process, as tensors and plain numbers (safe to load)."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global state is meant
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [
            name,
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def restore_rank_rng(states: list[dict[str, Any]]) -> None:
    """Give this process its own random state of those that the ranks of the stopped run had.

    A run resumed with more processes than before keeps the fresh seeds in the additional ones.
    """
    if distributed.rank() < len(states):
        set_rng_state(states[distributed.rank()])


def open_output_dir(args: argparse.Namespace, origin: Origin | None) -> Path:
    """Make the folder of a training run, prove that it can be written, write ``args.json``. Collective.

    Raises:
        UserError: it cannot be made or written, or holds another run that this one would overwrite.
    """
    folder = Path(args.output_dir)
    if distributed.is_main():
        make_writable(folder)
        goes_on_here = origin is not None and origin.resumes and origin.path.resolve().parent == folder.resolve()
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


def write_json(value: Any, path: str | Path) -> None:
    """Write ``value`` as JSON, as :func:`write_text` does."""
    write_text(json.dumps(value, indent=2) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file: to a temporary file, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
