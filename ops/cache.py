"""The cache of compiled libraries, and which of them may be loaded: loading one runs its code."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 5.0
"""Seconds of waiting for another process before a message says so."""


def cache_folder() -> Path:
    """TORCH_EXTENSIONS_DIR, else ~/.cache/torch_extensions.

    Raises:
        OSError: neither is known.
    """
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "torch_extensions"
    except RuntimeError:  # no HOME, and a user that the system does not know
        raise OSError("there is no home folder for compiled code; set HOME or TORCH_EXTENSIONS_DIR") from None


def check_private(path: Path, cache: Path) -> None:
    """Check that only this user or the system can write a library, and every folder from ``cache`` down to it.

    Raises:
        PermissionError: others can; names the file or folder.
    """
    for place in (path, *(folder for folder in path.parents if folder.is_relative_to(cache))):
        status = place.stat()
        advice = "who could change the code that it holds; set TORCH_EXTENSIONS_DIR to another folder"
        if status.st_uid not in (os.geteuid(), 0):
            raise PermissionError(f"{place} belongs to another user, {advice}")
        # On many systems files belong to a group that holds only their user (umask 002).
        writable = stat.S_IWOTH | (0 if status.st_gid == os.getegid() else stat.S_IWGRP)
        is_shared = place != path and status.st_mode & stat.S_ISVTX  # as /tmp: only owners can replace their files
        if status.st_mode & writable and not is_shared:
            raise PermissionError(f"{place} can be written by other users, {advice}")


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock among processes; the system releases it when the process ends. A long wait prints a message.

    Args:
        path: the file of the lock, in a private folder.
        doing: what the other process is doing, for the message.
    """
    with open(path, "w") as file:
        begun = time.monotonic()
        while not _try_lock(file.fileno()):
            if time.monotonic() - begun > PATIENCE:
                print(f"waiting for another process that is {doing} ({path}) ...", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
                break
            time.sleep(0.1)
        yield


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
