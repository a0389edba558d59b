"""Standard output and error that are missing, or that nobody reads any more."""

from __future__ import annotations

import errno
import os
import select
import sys

GONE = (errno.EPIPE, errno.EIO)
"""What writing to a closed pipe and to a closed terminal fails with."""

STREAMS = ("stdout", "stderr")


def open_missing() -> None:
    """Give a process that was started without output (``>&-``, some job managers) one that swallows it."""
    for name in STREAMS:
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process lives
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def swallow_what_nobody_reads() -> bool:
    """From now on what goes to a closed pipe or terminal vanishes without an error; returns whether there was one."""
    streams = [getattr(sys, f"__{name}__") for name in STREAMS]
    lost = [stream.fileno() for stream in streams if stream is not None and _is_gone(stream.fileno())]
    for descriptor in lost:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    return bool(lost)


def _is_gone(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
