"""How a run shows that it goes on: by a bar in a terminal, by plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from util import distributed
from util.logger import say, shows_progress

LINE_SECONDS = 30.0
"""About so often there is a plain line where there is no terminal."""

Item = TypeVar("Item")


class Progress:
    """Loss, lr, throughput and time left: a bar over all steps, or a plain line about every 30 seconds."""

    def __init__(self, *, total: int, start: int, images_per_step: int) -> None:
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, disable=not shows_progress())
        self._writes_lines = distributed.is_main() and not shows_progress()
        self._images_per_step = images_per_step
        self._total, self._start, self._step = total, start, start
        self._began = self._told = self._since = time.perf_counter()
        self._since_step = start
        self._loss: float | None = None

    def advance(self) -> None:
        """One step is done."""
        self._step += 1
        self._bar.update()

    @property
    def is_due(self) -> bool:
        """Whether it is time for a plain line."""
        return self._writes_lines and time.perf_counter() - self._told >= LINE_SECONDS

    def report(self, values: dict[str, float]) -> float:
        """Show the newest means (``loss``, ``lr``) and return the images a second since the last report."""
        self._loss = values["loss"]
        rate = self._rate()
        self._bar.set_postfix_str(f"loss {values['loss']:.4g}  lr {values['lr']:.2g}  {rate:.3g} images/s")
        if self.is_due:
            self._tell(values["loss"], values["lr"], rate)
        self.pause()
        return rate

    def tell(self, loss: float | None, lr: float) -> None:
        """Write a plain line between two reports; ``loss`` None: the one that was reported last is shown."""
        self._tell(self._loss if loss is None else loss, lr, self._rate())

    def pause(self) -> None:
        """The clock of the throughput starts anew: what came before was not training."""
        self._since, self._since_step = time.perf_counter(), self._step

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()

    def _rate(self) -> float:
        images = (self._step - self._since_step) * self._images_per_step
        return images / max(time.perf_counter() - self._since, 1e-9)

    def _tell(self, loss: float | None, lr: float, rate: float) -> None:
        self._told = time.perf_counter()
        # All that was done since the beginning counts, the evaluations included: the rest will have them, too.
        left = (self._told - self._began) / max(self._step - self._start, 1) * (self._total - self._step)
        parts = [f"step {self._step}/{self._total}"]
        parts += [] if loss is None else [f"loss {loss:.4g}"]
        say("  ".join([*parts, f"lr {lr:.2g}", f"{rate:.3g} images/s", f"about {duration(left)} left"]))


def watched(items: Iterable[Item], total: int, doing: str) -> Iterator[Item]:
    """``items``, shown as they pass: by a bar that vanishes, or by a plain line about every 30 seconds.

    Args:
        total: their number.
        doing: what is done with them: "evaluate".
    """
    writes_lines = distributed.is_main() and not shows_progress()
    began = told = time.perf_counter()
    for done, item in enumerate(tqdm(items, desc=doing, total=total, leave=False, disable=not shows_progress())):
        now = time.perf_counter()
        if writes_lines and now - told >= LINE_SECONDS:
            told = now
            say(f"{doing}: {done}/{total}, about {duration((now - began) / max(done, 1) * (total - done))} left")
        yield item


def duration(seconds: float) -> str:
    """A time as one says it: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 days 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"
