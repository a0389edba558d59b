"""Recognises the format of a data set from the content of its folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets.images import IMAGE_EXTENSIONS
from datasets.tree import Tree
from util.errors import DataError
from util.logger import say
from util.records import DataRecord

AUTO = DataRecord(
    title="recognised by what is in the folder",
    read_labelled=None,
    read_unlabelled=lambda args, split: None,
)
"""The value of ``--dataset_file`` that :func:`recognise` replaces."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the parts of a data set are.

    Attributes:
        title: of the layout, for the user.
        splits: "train" and perhaps "val" -> the place of its annotations, in words.
    """

    title: str
    splits: Mapping[str, str]


def recognise(args: argparse.Namespace, records: Mapping[str, DataRecord]) -> str:
    """The name of the format in ``args.data_path``: the first of ``records`` that finds its layout there.

    Raises:
        DataError: no such folder, or no format is recognised; the expected layouts and the tree found are printed.
    """
    tree = Tree(args.data_path)
    for name, record in records.items():
        if record.find is not None and record.find(args, tree) is not None:
            return name
    raise not_found(
        tree,
        [record for record in records.values() if record.looks],
        f"{tree.root}: no labelled data set is recognised here: {_why_not(tree)}. Above are the layouts that were "
        "looked for, and what was found. COCO annotations in any other place: --train_ann FILE --train_images DIR",
    )


def _why_not(tree: Tree) -> str:
    """What is missing, as far as the suffixes of the files tell it."""
    if not tree.images:
        return f"there are no images ({' '.join(sorted(IMAGE_EXTENSIONS))})"
    if not tree.with_suffix(".json", ".xml", ".txt"):
        return (
            "there are images, but no annotations (.json, .xml or .txt); give the folder that holds both, and convert "
            "other annotations, such as .csv"
        )
    return "the annotations have another form or lie in another place; move or convert them"


def not_found(tree: Tree, records: Sequence[DataRecord], message: str) -> DataError:
    """Print the expected layouts and the tree found; return the error that no layout was recognised."""
    there = tree.describe()
    say("looked for:")
    for record in records:
        for number, line in enumerate(record.looks):
            say(f"  {record.title if number == 0 else '':40}{line}")
    say(f"found in {tree.root}:")
    for line in there:
        say(f"  {line}")
    return DataError(message)
