"""One run per folder: the lock that a run holds on its output folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from util.errors import UserError
from util.files import naming

NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
LONGEST = 1000  # bytes to read of the file


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``. The system releases it when the process ends, in whatever way.

    The file stays: if it were removed before the release, another run could lock the removed file.

    Raises:
        UserError: another run holds it; the message names its machine and process.
    """
    path = folder / NAME
    with naming(path):
        handle = _take(path, folder)
    try:
        yield
    finally:
        os.close(handle)


def _take(path: Path, folder: Path) -> int:
    """The open file ``path``, locked.

    Raises:
        UserError: another run holds the lock of ``folder``.
    """
    # Not through a link, which could lead to a file of another user.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if not _lock(handle):
            raise UserError(f"--output_dir {folder}: {_holder(handle)} is writing there: wait for it")
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    except BaseException:
        os.close(handle)
        raise
    return handle


def _lock(handle: int) -> bool:
    """Lock a file, or return that another process has locked it.

    Loading processes do not inherit this lock, and it works over NFS.
    """
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    return True


def _holder(handle: int) -> str:
    try:
        held_by = json.loads(os.pread(handle, LONGEST, 0))
        return f"process {int(held_by['pid'])} on {held_by['host']!s:.100}"
    except (ValueError, TypeError, LookupError, RecursionError):
        return "another run"
