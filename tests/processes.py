"""Watching the processes that a tool starts."""

import signal
import time
from pathlib import Path


def wait_until(condition, seconds: float = 60, every: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(every)


def session(leader: int) -> list[int]:
    """Living processes of the session that ``leader`` leads."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(of) == leader and state != "Z":
                members.append(int(entry.name))
    return members


def without_nohup() -> None:
    """For ``preexec_fn``: SIGHUP reaches the new process, also where the tests themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
