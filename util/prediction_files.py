"""The output of main_predict.py: a journal while it runs, and the results at the end."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from util.errors import UserError
from util.files import written_whole
from util.inputs import Unreadable, require_file
from util.logger import say

JOURNAL = "predictions.jsonl"
BEGINNING = b'{"settings": '  # of the journal
RESULTS = "predictions.json"
TABLE = "predictions.csv"


@dataclass(frozen=True)
class ImageRecord:
    """The detections in one image.

    Attributes:
        file: its path.
        width, height: of the upright image in pixels.
        found: [category id, score, x1, y1, x2, y2] of each detection, best first, in pixels.
    """

    file: str
    width: int
    height: int
    found: list[list[float]]

    def check(self, category_ids: Collection[int]) -> None:
        """Check a record that was read from a file.

        Raises:
            ValueError: a type is wrong, a number is not finite, or a category is not in ``category_ids``.
        """
        sides = (self.width, self.height)
        if not isinstance(self.file, str) or any(type(side) is not int for side in sides):
            raise ValueError("file, width or height")
        for category_id, *numbers in self.found:
            if category_id not in category_ids or len(numbers) != 5 or not all(map(_is_finite, numbers)):
                raise ValueError("found")


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and math.isfinite(number)


class PredictionJournal:
    """``predictions.jsonl``: first a line with the settings, then a line per finished image.

    A killed run loses only the images that it was working on.

    Attributes:
        done: file -> where its line begins, in bytes.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], category_ids: Collection[int]) -> None:
        """Open the journal of ``folder``, a new one or that of a stopped run.

        Args:
            category_ids: those that the detector can find.

        Raises:
            UserError: the folder holds predictions with other ``settings``, or the journal is damaged.
        """
        self._path = folder / JOURNAL
        self._category_ids = category_ids
        self.done: dict[str, int] = {}
        if os.path.lexists(self._path):
            self._read(settings)
        elif (folder / RESULTS).exists():
            raise UserError(f"--output_dir {folder} holds a {RESULTS} without its {JOURNAL}: choose another folder")
        self._file = self._path.open("ab")
        if self._file.tell() == 0:
            self._append([{"settings": settings}])

    def add(self, records: Sequence[ImageRecord]) -> None:
        """Add finished images."""
        start = self._file.tell()
        for record, length in zip(records, self._append([asdict(record) for record in records]), strict=True):
            self.done[record.file] = start
            start += length

    def records(self, files: Sequence[str]) -> Iterator[tuple[int, ImageRecord]]:
        """(index in ``files``, record) of the finished images, in the order of ``files``."""
        with self._path.open("rb") as lines:
            for place, file in enumerate(files):
                if file in self.done:
                    lines.seek(self.done[file])
                    yield place, ImageRecord(**json.loads(lines.readline()))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, lines: list[dict[str, Any]]) -> list[int]:
        """Write all lines at once; returns their lengths in bytes."""
        encoded = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines]
        self._file.write(b"".join(encoded))
        self._file.flush()
        return list(map(len, encoded))

    def _read(self, settings: dict[str, Any]) -> None:
        """Find the lines of a stopped run, and cut off a last line that is unfinished or damaged."""
        try:
            require_file(self._path)
        except Unreadable as error:
            raise UserError(f"{self._path}: cannot be read ({error}); move it away") from None
        with self._path.open("r+b") as file:
            start, end = 0, os.fstat(file.fileno()).st_size
            for number, line in enumerate(file):
                if not (line.endswith(b"\n") and self._take(number, start, line, settings)):
                    is_ours = number > 0 or BEGINNING.startswith(line[: len(BEGINNING)])
                    if not is_ours or start + len(line) < end:
                        raise UserError(f"{self._path}, line {number + 1}: damaged; delete the file to start again")
                    say(f"{self._path}: the last line is unfinished or damaged; it is dropped, its image done again")
                    break
                start += len(line)
            file.truncate(start)

    def _take(self, number: int, start: int, line: bytes, settings: dict[str, Any]) -> bool:
        """Take in a line of the file; False: it is damaged."""
        try:
            content = json.loads(line)
            if number == 0:
                self._compare(content["settings"], json.loads(json.dumps(settings)))
            else:
                record = ImageRecord(**content)
                record.check(self._category_ids)
                self.done[record.file] = start
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return False
        return True

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            raise UserError(
                f"--output_dir {self._path.parent} holds another run's predictions ({', '.join(other)} differ"
                f"{'s' if len(other) == 1 else ''}): choose another folder, or delete this one"
            )


def write_results(
    folder: Path,
    journal: PredictionJournal,
    files: Sequence[str],
    categories: Sequence[dict[str, Any]],
    info: dict[str, Any],
) -> int:
    """Write ``predictions.json`` and ``predictions.csv``, completely or not at all; returns the number of detections.

    It reads the journal line by line, so the results need not fit in memory.

    Args:
        files: all images; the id of an image is its index, from 1.
        categories: ``{"id", "name"}``.
        info: further entries of ``predictions.json``.
    """
    with _text_written_whole(folder / RESULTS) as out:
        head = json.dumps({"info": info, "categories": list(categories)}, indent=1, ensure_ascii=False)
        out.write(head.removesuffix("\n}") + ',\n "images": [')
        _write_rows(out, (_image_row(place, record) for place, record in journal.records(files)))
        out.write(',\n "annotations": [')
        count = _write_rows(out, _annotation_rows(journal, files))
        out.write("\n}\n")
    name_of_id = {category["id"]: category["name"] for category in categories}
    with _text_written_whole(folder / TABLE) as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["file", "class", "score", "x1", "y1", "x2", "y2"])
        for _, record in journal.records(files):
            table.writerows([record.file, name_of_id[int(row[0])], *row[1:]] for row in record.found)
    return count


def _image_row(place: int, record: ImageRecord) -> dict[str, Any]:
    return {"id": place + 1, "file_name": record.file, "width": record.width, "height": record.height}


def _annotation_rows(journal: PredictionJournal, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """COCO's results, with the required entries of its annotations, so that every reader of COCO accepts them."""
    number = 0
    for place, record in journal.records(files):
        for category_id, score, x1, y1, x2, y2 in record.found:
            number += 1
            width, height = round(x2 - x1, 3), round(y2 - y1, 3)
            yield {
                "id": number,
                "image_id": place + 1,
                "category_id": int(category_id),
                "bbox": [x1, y1, width, height],
                "score": score,
                "area": round(width * height, 3),
                "iscrowd": 0,
            }


def _write_rows(out: TextIO, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    for count, row in enumerate(rows, start=1):
        out.write(("," if count > 1 else "") + "\n  " + json.dumps(row, ensure_ascii=False))
    out.write("\n ]")
    return count


@contextmanager
def _text_written_whole(path: Path) -> Iterator[TextIO]:
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        yield out
