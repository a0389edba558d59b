"""Reads files of others: only regular files, and one error for everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any


class Unreadable(ValueError):
    """A file cannot be read; the message is the reason, without the file's name."""


class NotJson(Unreadable):
    """A text is not JSON."""


def require_file(path: str | Path) -> None:
    """Check that ``path`` is a regular file before it is opened: reading a pipe or a device may never end.

    Raises:
        Unreadable: it does not exist or is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError:  # a NUL byte, or a lone surrogate
        raise Unreadable("no file can have this name") from None
    if stat.S_ISDIR(mode):
        raise Unreadable("a directory, not a file")
    if not stat.S_ISREG(mode):
        raise Unreadable("a pipe, socket or device, not a file")


def read_bytes(path: str | Path) -> bytes:
    """The content of a file.

    Raises:
        Unreadable: it cannot be read.
    """
    require_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file, without a byte order mark.

    Raises:
        Unreadable: it cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte {error.start})") from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        NotJson: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise NotJson("not JSON, or damaged (nested too deeply)") from None
    except ValueError as error:
        raise NotJson(f"not JSON, or damaged ({error})") from None


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        Unreadable: it cannot be read, or (NotJson) its content is not JSON.
    """
    return parse_json(read_bytes(path))
