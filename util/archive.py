"""Finds damage in files of ``torch.save`` by their checksums, which torch itself does not check."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from pathlib import Path

_ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26x2H")
"""Of a record, 30 bytes; the last four are the lengths of its name and of its extra field."""

NOT_A_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    LookupError,
    struct.error,
    UnicodeDecodeError,
    OSError,
)
"""Errors of Python's reader for a damaged zip archive."""


def find_damage(path: Path) -> str | None:
    """What is wrong with a zip archive, the format of torch since 2020, by the CRC-32 of its records.

    Returns:
        A phrase; None if nothing is wrong, or the file has an older format without checksums.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_START)) != _ZIP_START:
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                return _first_damage(records, view)
        except NOT_A_ZIP:
            return "its table of contents is damaged or cut off"


def _first_damage(records: list[zipfile.ZipInfo], content: memoryview) -> str | None:
    if sum(record.file_size for record in records) > len(content):
        return "it unpacks to more than it holds"
    if not any(record.CRC for record in records):  # torch.serialization.set_crc32_options(False)
        return None
    for record in records:
        lengths = _LOCAL_HEADER.unpack_from(content, record.header_offset)
        start = record.header_offset + _LOCAL_HEADER.size + sum(lengths)
        if record.compress_type != zipfile.ZIP_STORED:
            return "its records are compressed, which PyTorch never does"
        with content[start : start + record.file_size] as stored:
            if len(stored) != record.file_size or zlib.crc32(stored) != record.CRC:
                return f"the checksum of its part {record.filename.partition('/')[2]} is wrong"
    return None
