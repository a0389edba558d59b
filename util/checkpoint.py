"""Checkpoint files: read without running their code, written completely or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shutil
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
from util.files import hard_link, write_json, written_whole
from util.plain_content import what_is_wrong
from util.public_pickle import PUBLIC_GLOBALS
from util.run_lock import locked

LATEST = "checkpoint.pth"
BEST = "checkpoint_best.pth"

# Errors of torch's reader for a file that is truncated, damaged or not a checkpoint.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, OSError, AssertionError, TypeError, AttributeError)
DAMAGED += (ArithmeticError, struct.error)


def load_file(path: str | Path) -> Any:
    """Read a file written by ``torch.save`` onto the CPU. Code in it never runs (``weights_only=True``).

    It may hold tensors, plain containers and what public checkpoints hold (:mod:`util.public_pickle`).

    Raises:
        CheckpointError: no such file, truncated, damaged, not a checkpoint, or it holds other objects, unusual tensors
            or tensors that are larger than the file; the message names the file.
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
        # An open file: given a path, torch would choose the format by the ending of its name.
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
    """Write ``value`` with ``torch.save``, completely or not at all."""
    # An open file: given a path, torch would hide the reason of an error of the disk.
    with written_whole(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's zip writer hides the error of the disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_checkpoint(
    output_dir: str | Path, checkpoint: dict[str, Any], *, keep: int, written: list[Path] | None = None
) -> Path:
    """Write ``checkpoint_STEP.pth``, link ``checkpoint.pth`` to it, and delete all but the last ``keep`` files.

    ``checkpoint.pth`` is a hard link (or a copy, if the file system has no links): it needs no space and is complete at
    any moment.

    Args:
        written: checkpoints of this run, oldest first (see :func:`written_before`). The new file is added and deleted
            files are removed from the list; no other file is ever deleted.
    """
    folder = Path(output_dir)
    path = folder / f"checkpoint_{checkpoint['step']:08d}.pth"
    written = [] if written is None else written
    save_file(checkpoint, path)
    if not hard_link(path, folder / LATEST):
        save_file(checkpoint, folder / LATEST)
    written[:] = [*(old for old in written if old != path), path]
    for old in written[:-keep]:
        old.unlink(missing_ok=True)
    del written[:-keep]
    return path


def keep_as_best(output_dir: str | Path, saved: Path) -> None:
    """Let ``checkpoint_best.pth`` be the checkpoint ``saved``: by a hard link, which costs no space, or as a copy."""
    best = Path(output_dir) / BEST
    if not hard_link(saved.resolve(), best):
        with written_whole(best) as copy:
            shutil.copyfile(saved, copy)


def written_before(output_dir: str | Path, resumed: Path | None, step: int) -> list[Path]:
    """The checkpoints in the output folder that a run, resumed there after ``step``, has written itself.

    Later ones are damaged or from an abandoned run; they are not deleted.
    """
    folder = Path(output_dir)
    if resumed is None or resumed.resolve().parent != folder.resolve():
        return []
    return [path for path in numbered_checkpoints(folder) if step_of(path) <= step]


def numbered_checkpoints(folder: Path) -> list[Path]:
    """All ``checkpoint_STEP.pth`` of a folder, sorted by step."""
    return sorted((path for path in folder.glob("checkpoint_*.pth") if step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint; -1: it is not such a name."""
    match = re.fullmatch(r"checkpoint_([0-9]{8,18})\.pth", path.name)
    return int(match[1]) if match else -1


def candidates(folder: Path) -> list[Path]:
    """The files that ``--resume auto`` tries, in this order: ``checkpoint.pth``, then the others, newest first."""
    latest = [folder / LATEST] if os.path.lexists(folder / LATEST) else []
    numbered = [path for path in numbered_checkpoints(folder) if path.is_file()]
    return latest + sorted(numbered, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def open_output_dir(args: argparse.Namespace, resumed: Path | None) -> Path:
    """Make the folder of a training run, check that it is writable, write ``args.json``. Collective.

    Args:
        resumed: the checkpoint that the run resumes, if any.

    Raises:
        UserError: it cannot be made or written, or holds another run that this run would overwrite.
    """
    folder = Path(args.output_dir)
    if distributed.is_main():
        make_writable(folder)
        goes_on_here = resumed is not None and resumed.resolve().parent == folder.resolve()
        if not goes_on_here and (candidates(folder) or (folder / BEST).exists()):
            raise UserError(
                f"--output_dir {folder} already holds a run: continue it with --resume auto, or choose another folder"
            )
        for leftover in folder.glob(".checkpoint*.pth.*"):  # of a save that was killed
            leftover.unlink()
        write_json(vars(args), folder / "args.json")
    distributed.barrier()
    return folder


@contextmanager
def output_dir_of_one_run(args: argparse.Namespace) -> Iterator[None]:
    """Make the output folder and hold its lock, in the main process.

    Raises:
        UserError: it cannot be made or written, or another run is writing there.
    """
    with ExitStack() as stack:
        if distributed.is_main():
            make_writable(args.output_dir)
            stack.enter_context(locked(Path(args.output_dir)))
        yield


def make_writable(folder: str | Path) -> None:
    """Make ``folder`` and check that it is writable.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise UserError(f"--output_dir {folder}: exists and is not a folder") from None
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror or error})") from None
