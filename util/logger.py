"""The output of a run: log.txt as JSON lines, optionally tensorboard, and lines for the user."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from util import distributed, signals, streams
from util.errors import UserError
from util.files import naming, write_bytes
from util.inputs import Unreadable, read_bytes


class Meters:
    """Running means that stay on the device until they are read, so that a step never waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def update(self, values: dict[str, Tensor]) -> None:
        """Add one step's values (scalars, no gradient)."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def peek(self, name: str) -> float | None:
        """This process's mean of one value since the last reading; None where the host would wait for a device."""
        if name not in self._sums or self._sums[name].device.type != "cpu":
            return None
        return float(self._sums[name]) / self._count

    def read(self) -> dict[str, float]:
        """Means over steps since the last call, and over processes. Waits for the device."""
        if not self._count:
            return {}
        means = distributed.all_reduce_mean(torch.stack(list(self._sums.values())) / self._count)
        result = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._count = {}, 0
        return result


class RunLog:
    """``log.txt`` of the output folder, and perhaps tensorboard; only the main process writes."""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        """Open the log and continue after ``step``; lines of a stopped run about later steps are dropped."""
        self._path = folder / "log.txt"
        self._board = None
        if not distributed.is_main():
            return
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        text = _read(self._path)
        lines = text.splitlines(keepends=True)
        steps = [_step_of(line) for line in lines]
        unreadable = [number for number, found in enumerate(steps, start=1) if found is None]
        if lines and (step == 0 or unreadable):
            aside = _keep_a_copy(self._path, text)
            wrong = f"{_enumerate(unreadable)} damaged and dropped; " if unreadable and step else ""
            say(f"{self._path}: {wrong}the old log is kept as {aside.name}")
        kept = [line for line, found in zip(lines, steps, strict=True) if step and found is not None and found <= step]
        write_bytes(b"".join(kept), self._path)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line: ``{"kind", "step", ...values}``; NaN and infinity become null, as JSON has neither."""
        if not distributed.is_main():
            return
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with naming(self._path), self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()

    @property
    def shows_pictures(self) -> bool:
        """Whether :meth:`picture` has a place for pictures; not so without tensorboard."""
        return self._board is not None

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        """Show an RGB picture in tensorboard."""
        self._board.add_image(name, np.asarray(picture), step, dataformats="HWC")
        self._board.flush()


def find_evaluation(folder: Path, step: int) -> dict[str, float] | None:
    """The numbers in log.txt of ``folder`` of the checkpoint that was saved after ``step``; None: not evaluated."""
    for line in _read(folder / "log.txt").splitlines():
        if b'"eval"' in line and _step_of(line) == step:
            numbers = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
            return {name: value for name, value in numbers.items() if type(value) in (int, float) and name != "epoch"}
    return None


def _read(path: Path) -> bytes:
    """The content of a log; empty if there is no log.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_bytes(path) if path.exists() else b""
    except Unreadable as error:
        raise UserError(f"{path}: cannot be read ({error}); move it away") from None


def _step_of(line: bytes) -> int | None:
    """The step of a line of log.txt; None: not a record, such as a line that a crash has cut off."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if type(step) is int else None


def _keep_a_copy(path: Path, text: bytes) -> Path:
    """Write ``text`` to the first of path.1, path.2, ... that does not exist."""
    number = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.{n}").exists())
    aside = path.with_name(f"{path.name}.{number}")
    write_bytes(text, aside)
    return aside


def _enumerate(lines: list[int]) -> str:
    """ "line 3 is", "lines 1, 2, 3 and 8 more are"."""
    if len(lines) == 1:
        return f"line {lines[0]} is"
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return f"lines {', '.join(map(str, lines[:3]))}{more} are"


def shows_progress() -> bool:
    """Whether to show a progress bar: in the main process, on a terminal."""
    return distributed.is_main() and sys.stderr.isatty()


def say(text: str) -> None:
    """Print from the main process, above a progress bar. If nobody reads that any more, a script gets a SIGHUP."""
    if not distributed.is_main():
        return
    try:
        with naming("the standard output"):
            tqdm.write(text)
            sys.stdout.flush()
    except OSError as error:
        if not (error.errno in streams.GONE and signals.handles_hang_up() and streams.swallow_what_nobody_reads()):
            raise
        signals.hang_up()
