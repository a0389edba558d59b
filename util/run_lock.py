"""One run a folder: the lock that a run holds on its output folder."""

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

NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
LONGEST = 1000  # bytes of the file; what is longer was not written here


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``. The system lets go of it when its process ends, however that ends.

    The file stays: between removing it and letting go another run could take the lock of a file without a name.

    Raises:
        UserError: another run holds it; the message names its machine and process.
    """
    path = folder / NAME
    # Not through a link: it could lead to a file of somebody else, which would be overwritten.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            # A lock of this process alone, which its loading processes do not inherit; it works over NFS, too.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in TAKEN:
                error.filename = str(path)
                raise
            raise UserError(f"--output_dir {folder}: {_holder(handle)} is writing there: wait for it") from None
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        yield
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        held_by = json.loads(os.pread(handle, LONGEST, 0))
        return f"process {int(held_by['pid'])} on {held_by['host']!s:.100}"
    except (ValueError, TypeError, LookupError, RecursionError):
        return "another run"
