"""What a run tells: a progress bar, log.txt as JSON lines, optionally tensorboard."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from util import distributed
from util.files import write_text


class Meters:
    """Running means that stay on the device until they are read, so that a step never waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def update(self, values: dict[str, Tensor]) -> None:
        """Add one step's values (scalars, no gradient)."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def read(self) -> dict[str, float]:
        """Means since the last reading, over steps and processes; then start anew. Waits for the device."""
        if not self._count:
            return {}
        means = distributed.all_reduce_mean(torch.stack(list(self._sums.values())) / self._count)
        result = dict(zip(self._sums, means.tolist(), strict=True))
        self._sums, self._count = {}, 0
        return result


class RunLog:
    """``log.txt`` of the output folder, and tensorboard if asked for; written by the main process alone."""

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        """Open the log to go on after ``step``; what a stopped run wrote of later steps is dropped."""
        self._path = folder / "log.txt"
        self._board = None
        if not distributed.is_main():
            return
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        lines = self._path.read_text().splitlines() if self._path.exists() and step > 0 else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text("".join(line + "\n" for line in kept), self._path)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line: ``{"kind", "step", ...values}``; numbers that are not finite become null (JSON has none)."""
        if not distributed.is_main():
            return
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()


def _step_of(line: str) -> float:
    """The step of a line of log.txt; a line cut by a crash belongs to no step that was finished."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class Progress:
    """A bar over all steps with loss, lr, throughput and time left; quiet where nobody looks."""

    def __init__(self, *, total: int, start: int, images_per_step: int) -> None:
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, disable=not shows_progress())
        self._images_per_step = images_per_step
        self._since, self._steps = time.perf_counter(), 0

    def advance(self) -> None:
        """One step is done."""
        self._steps += 1
        self._bar.update()

    def report(self, values: dict[str, float]) -> float:
        """Show the newest values and return the images a second since the last report."""
        seconds = time.perf_counter() - self._since
        rate = self._steps * self._images_per_step / max(seconds, 1e-9)
        self._since, self._steps = time.perf_counter(), 0
        self._bar.set_postfix_str(f"loss {values['loss']:.4g}  lr {values['lr']:.2g}  {rate:.3g} images/s")
        return rate

    def pause(self) -> None:
        """The clock of the throughput starts anew: what came before was not training."""
        self._since, self._steps = time.perf_counter(), 0

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()


def shows_progress() -> bool:
    """Whether a progress bar would be seen: a terminal, and the main process."""
    return distributed.is_main() and sys.stderr.isatty()


def say(text: str) -> None:
    """Print for the user, once: from the main process, above a progress bar."""
    if distributed.is_main():
        tqdm.write(text)
        sys.stdout.flush()
