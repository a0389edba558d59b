"""SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGHUP end a script with one line, and training after the current step.

Slurm, Kubernetes and spot instances send the second and the third, a terminal that is closed the last. This module
imports nothing slow, so that the scripts can call :func:`end_in_one_line` before they import PyTorch, which takes
seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from util.streams import swallow_what_nobody_reads

UNDER_NOHUP = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, *(() if UNDER_NOHUP else (signal.SIGHUP,)))
INTERRUPTED = "interrupted before training began: run the same command again"
"""The message of the main scripts."""

ECHO_SECONDS = 1.0
"""A second signal within this time is the same one, which the launcher passes on to its group of processes."""

PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Stopped(KeyboardInterrupt):
    """A signal ends the script.

    Attributes:
        number: of the signal; the exit status is 128 + number.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def end_in_one_line(message: str) -> None:
    """From now on a signal prints ``message`` and ends the process; for the time of imports."""

    def end(number: int, _frame: object) -> None:
        swallow_what_nobody_reads()
        tell(message)
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)


def tell(message: str) -> None:
    """Write a line to stderr immediately, only from the main process; for signal handlers."""
    if os.environ.get("RANK", "0") == "0" and sys.__stderr__ is not None:
        os.write(sys.__stderr__.fileno(), f"{message}\n".encode(errors="replace"))


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _raise_stopped(number: int, _frame: object) -> None:
    swallow_what_nobody_reads()
    raise Stopped(number)


def handles_hang_up() -> bool:
    """Whether SIGHUP does anything else than kill this process at once, as it does outside of scripts."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL


def hang_up() -> None:
    """Act on output that nobody reads any more as on a terminal that is closed; ``nohup`` lets the run go on."""
    if not UNDER_NOHUP:
        signal.raise_signal(signal.SIGHUP)


def raising() -> contextlib.AbstractContextManager[None]:
    """Context in which a signal raises :class:`Stopped`."""
    return _handled_by(_raise_stopped)


class HeldSignals:
    """Context in which the first signal is only recorded; the second one ends the process at once.

    Attributes:
        received: number of the first signal, or 0.
    """

    def __init__(self, doing: str) -> None:
        """``doing``: what the script finishes before it stops, for the message."""
        self.received = 0
        self._doing = doing
        self._since = 0.0
        self._context = _handled_by(self._note)

    def __enter__(self) -> HeldSignals:
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def _note(self, number: int, _frame: object) -> None:
        swallow_what_nobody_reads()
        if not self.received:
            self.received, self._since = number, time.monotonic()
            name = signal.Signals(number).name
            tell(f"{name}: {self._doing}, then stopping; another signal ends the run at once")
        elif time.monotonic() - self._since > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Context in which signals wait. Processes that it starts let them wait until :func:`protect_worker`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def protect_worker(_worker: int = 0) -> None:
    """For a loading process: ignore signals, which the parent handles, and end with the parent.

    Ctrl-C and job managers send signals to the whole group of processes, but the parent needs its workers to finish its
    step. The second SIGTERM ends the worker; it comes from a parent that stops at once.
    """
    terms = iter((None,))

    def end_at_the_second(_number: int, _frame: object) -> None:
        if next(terms, "second") is not None:
            os._exit(128 + signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_at_the_second)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.excepthook = _tell_unless_the_parent_left
    die_with_parent(signal.SIGKILL)


def _tell_unless_the_parent_left(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """The thread that hands tensors to the parent (multiprocessing's) tells here that a signal has ended the parent."""
    if not isinstance(error, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)


def die_with_parent(number: int) -> None:
    """Let the system send signal ``number`` to this process when its parent ends, in whatever way. Only on Linux.

    On other systems PyTorch's watchdog ends loading processes after some seconds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
