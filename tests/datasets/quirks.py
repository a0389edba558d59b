"""A quirk of public annotation files: how a correct data set is changed, and what a user expects."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from datasets import DATASETS, settle_format
from datasets.records import DetectionRecords
from tests.datasets.layouts import SMALL, Splits
from util.errors import DataError

FLAGS = dict.fromkeys("train_ann train_images val_ann val_images voc_train voc_val".split())
WHOLE = {"a": 2, "b": 0, "c.1": 1}
"""Stem of each training image of SMALL -> number of its boxes."""


@dataclass(frozen=True)
class Quirk:
    """A change of a data set, and the expected result.

    Attributes:
        change: changes the data set in a folder.
        boxes: stem of each training image -> number of boxes that are read.
        told: part of the notes on the training set; None: there must be no notes.
        error: a regular expression for the error; the other expectations are then ignored.
        check: further checks of the records.
    """

    change: Callable[[Path], object]
    boxes: dict[str, int] | None = None
    told: str | None = None
    error: str | None = None
    check: Callable[[DetectionRecords], bool] = lambda records: True


def read(root: Path, split: str = "train", *, damaged: str = "error") -> DetectionRecords:
    """The records of a split, the format recognised."""
    args = Namespace(**FLAGS, data_path=str(root), dataset_file="auto", damaged=damaged)
    settle_format(args)
    return DATASETS[args.dataset_file].read_labelled(args, split, None)


def hold(root: Path, write: Callable[[Path, Splits], None], quirk: Quirk) -> None:
    """Check that a data set, written and changed, is read as expected."""
    write(root, SMALL)
    quirk.change(root)
    if quirk.error is not None:
        with pytest.raises(DataError, match=quirk.error) as error:
            read(root)
        assert "\n" not in str(error.value)
        return
    records = read(root)
    counts = np.diff(records.offsets).tolist()
    assert {records.path(n).stem: counts[n] for n in range(len(records))} == (quirk.boxes or WHOLE)
    assert all(records.path(n).is_file() for n in range(len(records)))
    told = "; ".join([*records.notes, records.dropped.describe()])
    if quirk.told is None:
        assert re.fullmatch(r"\d+ box(es)?", told)
    else:
        assert quirk.told in told
    assert quirk.check(records)


def in_json(path: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A change of the content of a JSON file."""

    def apply(root: Path) -> None:
        content = json.loads((root / path).read_text())
        change(content)
        (root / path).write_text(json.dumps(content))

    return apply


def in_text(path: str, *replacements: tuple[str, str]) -> Callable[[Path], None]:
    """A change of parts of a text file; these must occur in it."""

    def apply(root: Path) -> None:
        text = (root / path).read_text()
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (root / path).write_text(text)

    return apply


def renamed(old: str, new: str) -> Callable[[Path], object]:
    """A file with another name."""
    return lambda root: (root / old).rename(root / new)


def written(path: str, content: str | bytes) -> Callable[[Path], object]:
    """A file of this content."""

    def apply(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return apply


def several(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    """One change after the other."""

    def apply(root: Path) -> None:
        for change in changes:
            change(root)

    return apply
