"""Checkpoint files: read without running code, written whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import secrets
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from util import distributed
from util.archive import find_damage
from util.errors import CheckpointError, UserError
from util.files import write_json, written_whole
from util.plain_content import what_is_wrong
from util.public_pickle import PUBLIC_GLOBALS
from util.run_lock import locked

LATEST = "checkpoint.pth"

# What torch's reader stumbles with over a file that is cut off, damaged or something else.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, OSError, AssertionError, TypeError, AttributeError)
DAMAGED += (ArithmeticError, struct.error)


def load_file(path: str | Path) -> Any:
    """Read a file written by ``torch.save`` onto the CPU. Code in it never runs (``weights_only=True``).

    Beside tensors and plain containers it may hold what public checkpoints do: see :mod:`util.public_pickle`.

    Raises:
        CheckpointError: no such file, truncated, its checksums are wrong, not a checkpoint, or holding other objects,
            unusual tensors or more numbers than it has room for; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        damage = find_damage(path)
        if damage is not None:
            raise CheckpointError(
                f"{path}: not a checkpoint, or damaged ({damage}); take another copy, or an earlier one"
            )
        # An open file, for the ending of a path's name must not decide how torch reads it.
        with path.open("rb") as file, torch.serialization.safe_globals(PUBLIC_GLOBALS):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # a class or function that the file asks for
            raise CheckpointError(
                f"{path}: refused: it holds more than tensors and plain containers, loading it could run code"
            ) from None
        raise CheckpointError(f"{path}: not a checkpoint, or damaged") from None
    except DAMAGED as error:
        raise CheckpointError(f"{path}: not a checkpoint, or truncated ({_first_line(error)})") from None
    wrong = what_is_wrong(content, path.stat().st_size)
    if wrong is not None:
        raise CheckpointError(f"{path}: refused: {wrong}")
    return content


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


def save_checkpoint(
    output_dir: str | Path, checkpoint: dict[str, Any], *, keep: int, written: list[Path] | None = None
) -> Path:
    """Write ``checkpoint_STEP.pth``, point ``checkpoint.pth`` at it, and delete those of ``written`` beyond ``keep``.

    ``checkpoint.pth`` is a hard link (a copy where there are none): it costs no space and is complete
    at any moment.

    Args:
        written: what the run has written before, oldest first (see :func:`written_before`); the new file is added, and
            what is deleted is taken out. Nothing else is ever deleted.
    """
    folder = Path(output_dir)
    path = folder / f"checkpoint_{checkpoint['step']:08d}.pth"
    written = [] if written is None else written
    save_file(checkpoint, path)
    temporary = folder / f".{path.name}.{secrets.token_hex(8)}"
    try:
        os.link(path, temporary)
        os.replace(temporary, folder / LATEST)
    except OSError:  # no hard links here
        save_file(checkpoint, folder / LATEST)
    written[:] = [*(old for old in written if old != path), path]
    for old in written[:-keep]:
        old.unlink(missing_ok=True)
    del written[:-keep]
    return path


def written_before(output_dir: str | Path, resumed: Path | None, step: int) -> list[Path]:
    """The checkpoints in the output folder that a run which goes on there after ``step`` has written itself.

    Later ones are of a run that was abandoned, or damaged: they are nobody's to delete.
    """
    folder = Path(output_dir)
    if resumed is None or resumed.resolve().parent != folder.resolve():
        return []
    return [path for path in numbered_checkpoints(folder) if step_of(path) <= step]


def numbered_checkpoints(folder: Path) -> list[Path]:
    """All ``checkpoint_STEP.pth`` of a folder, by step."""
    return sorted((path for path in folder.glob("checkpoint_*.pth") if step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint; -1 if it has none."""
    match = re.fullmatch(r"checkpoint_([0-9]{8,18})\.pth", path.name)
    return int(match[1]) if match else -1


def candidates(folder: Path) -> list[Path]:
    """What ``--resume auto`` tries, in this order: ``checkpoint.pth``, then the others from the one written last."""
    latest = [folder / LATEST] if os.path.lexists(folder / LATEST) else []
    numbered = [path for path in numbered_checkpoints(folder) if path.is_file()]
    return latest + sorted(numbered, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


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
        if not goes_on_here and candidates(folder):
            raise UserError(
                f"--output_dir {folder} holds a run already: go on with --resume auto, or name another folder"
            )
        for leftover in folder.glob(".checkpoint_*.pth.*"):  # of a save that was killed
            leftover.unlink()
        write_json(vars(args), folder / "args.json")
    distributed.barrier()
    return folder


@contextmanager
def output_dir_of_one_run(args: argparse.Namespace) -> Iterator[None]:
    """Make the output folder and hold its lock; the main process does it for all.

    Raises:
        UserError: it cannot be made or written, or another run writes there now.
    """
    with ExitStack() as stack:
        if distributed.is_main():
            make_writable(args.output_dir)
            stack.enter_context(locked(Path(args.output_dir)))
        yield


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
