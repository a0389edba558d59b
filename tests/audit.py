"""Runs a script as it is and writes down on which images it trains, and at which learning rate.

    python -m torch.distributed.run ... -m tests.audit FOLDER STOP main_pretrain.py ARGUMENTS

``FOLDER/RANK.txt`` gets a line of JSON for every step of a process: epoch, images (their indices in the data set), lr.
In its STOP-th step (0: never) the main process sends SIGTERM to the launcher. Batches are written when they are drawn,
so the script must load them itself (``--num_workers 0``).
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from datasets.loader import EpochBatchSampler, Key

TRUE_ITER = EpochBatchSampler.__iter__
SECONDS = 2  # that the launcher gets to pass the signal on


class Audit:
    """What one process trains on."""

    def __init__(self, folder: Path, stop: int) -> None:
        self.path = folder / f"{os.environ['RANK']}.txt"
        self.stop = stop
        self.steps = 0
        self.keys: list[Key] = []

    def drawn(self, sampler: EpochBatchSampler) -> Iterator[list[Key]]:
        """The batches of ``sampler``, noted."""
        for batch in TRUE_ITER(sampler):
            self.keys += batch
            yield batch

    def before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Note the step."""
        self.steps += 1
        (epoch,) = {epoch for epoch, _ in self.keys}
        record = {"epoch": epoch, "images": [index for _, index in self.keys], "lr": optimizer.param_groups[0]["lr"]}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.keys = []
        if self.steps == self.stop and os.environ["RANK"] == "0":
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(SECONDS)


def main() -> None:
    """Run the script."""
    folder, stop, script = sys.argv[1:4]
    audit = Audit(Path(folder), int(stop))
    EpochBatchSampler.__iter__ = lambda sampler: audit.drawn(sampler)
    register_optimizer_step_pre_hook(audit.before_step)
    sys.argv = sys.argv[3:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
