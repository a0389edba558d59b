"""The progress of the proposal tool: a file of records with checksums, to which records are only appended.

A record is ``<II`` (length, CRC-32) and that many bytes. The first record is the plan in JSON: method, data set, shard.
Every other one is the result of an image: ``<i`` the number N of boxes and N x 4 + N float32 (boxes, then scores), or
-1 and the reason for the failure in UTF-8. A process may be killed while it writes: an incomplete record, or one that
does not match its CRC, is the end of the file, and is removed before the work continues.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from util.errors import DataError
from util.inputs import NotJson, Unreadable, parse_json, require_file

_FRAME = struct.Struct("<II")
_COUNT = struct.Struct("<i")
_LARGEST_RECORD = 1 << 26
Outcome = tuple[np.ndarray, np.ndarray] | str  # boxes [N, 4] and scores [N], float32; or why the image failed


def encode(outcome: Outcome) -> bytes:
    """The record of one image."""
    if isinstance(outcome, str):
        return _COUNT.pack(-1) + outcome.encode(errors="surrogateescape")
    boxes, scores = (np.ascontiguousarray(values, dtype="<f4") for values in outcome)
    return _COUNT.pack(len(scores)) + boxes.tobytes() + scores.tobytes()


def decode(record: bytes) -> Outcome:
    """The reverse of :func:`encode`.

    Raises:
        ValueError: not a record of an image.
    """
    count = _COUNT.unpack_from(record)[0] if len(record) >= _COUNT.size else 0
    if count < 0:
        return record[_COUNT.size :].decode(errors="surrogateescape")
    if len(record) != _COUNT.size + 5 * 4 * count:
        raise ValueError(f"{len(record)} bytes for {count} boxes")
    values = np.frombuffer(record, dtype="<f4", offset=_COUNT.size)
    return values[: 4 * count].reshape(count, 4), values[4 * count :]


class Journal:
    """The journal of one shard, open for appending and locked against all other processes.

    Attributes:
        done: number of images recorded so far.

    Raises:
        DataError: the journal has another plan, or another process is writing it.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self._file = open(path, "ab+")  # noqa: SIM115 - closed by close()
        try:
            # This lock belongs to this process only: workers do not inherit it, so they cannot hold it after its death.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.done = self._recover(plan)
        except (BlockingIOError, PermissionError):  # the lock is taken; other errors are raised as they are
            self._file.close()
            raise DataError(f"{path}: another process is working on this shard; wait for it or stop it") from None
        except BaseException:
            self._file.close()
            raise

    def _recover(self, plan: dict[str, Any]) -> int:
        self._file.seek(0)
        records = _records(self._file)
        header = next(records, None)
        if header is None:
            self._file.truncate(0)
            self.append(json.dumps(plan).encode())
            self.sync()
            return 0
        _check_plan(self.path, header, plan)
        done, end = 0, self._file.tell()
        for _ in records:
            done, end = done + 1, self._file.tell()
        self._file.truncate(end)
        return done

    def append(self, record: bytes) -> None:
        """Append a record."""
        self._file.write(_FRAME.pack(len(record), zlib.crc32(record)) + record)

    def sync(self) -> None:
        """Make sure that everything is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync, close the file and release the lock."""
        self.sync()
        self._file.close()


def read_journal(path: Path, plan: dict[str, Any]) -> Iterator[Outcome]:
    """The outcomes in a journal, one by one.

    Raises:
        DataError: the journal is missing, or has another plan.
    """
    try:
        require_file(path)
        stream = open(path, "rb")  # noqa: SIM115 - closed below
    except (OSError, Unreadable) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', error)}); make this shard first"
        ) from None
    with stream:
        records = _records(stream)
        _check_plan(path, next(records, b"{}"), plan)
        for number, record in enumerate(records):
            try:
                yield decode(record)
            except ValueError as error:
                raise DataError(f"{path}: record {number} is not of an image ({error}); remove the file") from None


def _records(stream: BinaryIO) -> Iterator[bytes]:
    while len(frame := stream.read(_FRAME.size)) == _FRAME.size:
        length, checksum = _FRAME.unpack(frame)
        if length > _LARGEST_RECORD:
            return
        record = stream.read(length)
        if len(record) < length or zlib.crc32(record) != checksum:
            return
        yield record


def _check_plan(path: Path, header: bytes, plan: dict[str, Any]) -> None:
    try:
        found = parse_json(header)
    except NotJson:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a journal of this tool; remove it")
    for key in plan:
        if found.get(key) != plan[key]:
            raise DataError(
                f"{path}: begun with another {key.replace('_', ' ')} ({found.get(key)}, now {plan[key]}); "
                f"continue with the first one, or remove {path.parent} to start again"
            )
