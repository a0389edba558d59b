"""Writes files and folders completely or not at all: under a temporary name first, then renamed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which becomes ``path`` when the block ends without an error.

    Its name has the suffix of ``path`` and cannot be predicted, so that nobody can place a link there. It is synced
    before it is renamed: after a crash of the machine there is either the old file or the new one.
    """
    path = Path(path)
    with naming(path):
        yield from _written_whole(path)


def _written_whole(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_beginning(path), suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(0o644)  # mkstemp's 0600 would lock colleagues out
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def folder_written_whole(folder: str | Path, *, scratch: str | Path | None = None) -> Iterator[Path]:
    """A temporary folder, which becomes ``folder`` when the block ends without an error.

    Args:
        folder: must not exist, or be an empty folder.
        scratch: parent of the temporary folder, on the same file system; None: the parent of ``folder``.
    """
    folder = Path(folder)
    temporary = Path(tempfile.mkdtemp(dir=scratch or folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock colleagues out
        os.replace(temporary, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(value: Any, path: str | Path) -> None:
    """Write ``value`` as JSON."""
    write_text(json.dumps(value, indent=2) + "\n", path)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError in the block that has no file name (a full disk), or that of a temporary file, gets ``path``."""
    path = Path(path)
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name.startswith(_beginning(path)):
            error.filename = str(path)
        raise


def hard_link(file: str | Path, name: str | Path) -> bool:
    """Let ``name`` be a hard link to ``file``, in one move even if it exists.

    Returns:
        False: the file system refuses it, perhaps because it has no hard links.
    """
    name = Path(name)
    temporary = name.with_name(f"{_beginning(name)}{secrets.token_hex(8)}")
    try:
        os.link(file, temporary)
        os.replace(temporary, name)
    except OSError:
        return False
    finally:
        temporary.unlink(missing_ok=True)  # of two names of one file, replace leaves both
    return True


def _beginning(path: Path) -> str:
    """Of the names of temporary files for ``path``."""
    return f".{path.name}."


def write_bytes(content: bytes, path: str | Path) -> None:
    """Write a file."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file in UTF-8; characters that UTF-8 cannot encode are escaped."""
    write_bytes(text.encode(errors="backslashreplace"), path)
