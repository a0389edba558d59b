"""One child process per input, forked from a process that has imported everything, so that thousands take minutes."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from util.script import run_script

SECONDS = 20  # of computing
PATIENCE = 10 * SECONDS  # of waiting, for busy machines
BYTES = 4 << 30


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        status: exit status, or minus the number of the signal that ended it.
        told: what it wrote to stderr.
        seconds: how long it took.
        peak: the most memory that it held, in bytes.
    """

    status: int
    told: str
    seconds: float
    peak: int

    @property
    def fault(self) -> str | None:
        """What is wrong with this outcome, or None; success and an error of one line are right."""
        if self.status in (-signal.SIGALRM, -signal.SIGPROF):
            return "hangs"
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}"
        if "Traceback" in self.told:
            return f"traceback: {self.told.strip().splitlines()[-1][:200]}"
        errors = [line for line in self.told.splitlines() if line.startswith("error")]
        if self.status not in (0, 1) or len(errors) != self.status:
            return f"status {self.status} with {len(errors)} lines of error"
        return "takes more than 4 GiB" if self.peak > BYTES else None


def run(task: Callable[[], None]) -> Outcome:
    """Run ``task`` as a script in a child with limits on time and memory."""
    with tempfile.TemporaryFile() as told:
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(task, told.fileno())
        _, status, usage = os.wait4(child, 0)
        seconds = time.monotonic() - begun
        told.seek(0)
        text = told.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), text, seconds, usage.ru_maxrss * 1024)


def _child(task: Callable[[], None], told: int) -> None:
    status = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(told, 2)
        # pytest's capture has replaced both by files of its own
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        # On top of what the parent has mapped: PyTorch with CUDA reserves many gigabytes that it never uses.
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        run_script(task)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        sys.stderr.flush()
        os._exit(status)
