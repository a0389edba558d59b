"""Whether a file of ``torch.save`` is as it was written: torch itself does not look at the checksums in it."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from pathlib import Path

_ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26x2H")
"""Of a record: lengths of its name and of what follows the name, at the end of 30 bytes."""

NOT_A_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    LookupError,
    struct.error,
    UnicodeDecodeError,
    OSError,
)
"""What Python's reader of zip archives stumbles with."""


def find_damage(path: Path) -> str | None:
    """What is wrong with a zip archive, as torch has written since 2020, by the CRC-32 of its records.

    Returns:
        One phrase; None if nothing is, or the file is an older one and has no checksums.
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
