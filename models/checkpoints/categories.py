"""The categories of class heads in checkpoints of other projects."""

from __future__ import annotations

import reprlib
from typing import Any

from datasets.coco import COCO_CATEGORIES
from util.errors import CheckpointError

COCO_LABELS = 91
"""Outputs for COCO in the public checkpoints, where a label is the raw id of a category."""

_KINDS = {"label": int, "id": int | None, "name": str}
"""Keys of a category and their types."""


def coco_categories() -> list[dict[str, Any]]:
    """COCO's categories, with raw ids as labels."""
    return [{"label": number, "id": number, "name": name} for number, name in sorted(COCO_CATEGORIES.items())]


def saved_categories(found: Any) -> list[dict[str, Any]] | None:
    """The categories that a file lists, perhaps with unknown ids (None); None if it is not such a list."""
    if not (isinstance(found, list) and found and all(map(_is_category, found))):
        return None
    return [{key: entry[key] for key in _KINDS} for entry in found]


def _is_category(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        key in entry and isinstance(entry[key], kind) for key, kind in _KINDS.items()
    )


def named_categories(names: dict[int, str]) -> list[dict[str, Any]]:
    """Categories of a Hugging Face configuration, ``{label: name}``; their ids are known only for COCO."""
    if all(names.get(number) == name for number, name in COCO_CATEGORIES.items()) and max(names) < COCO_LABELS:
        return coco_categories()
    return [{"label": label, "id": None, "name": name} for label, name in sorted(names.items())]


def with_ids_of(categories: list[dict[str, Any]], data: list[dict[str, Any]], source: object) -> list[dict[str, Any]]:
    """The categories of a data set, with the labels that the model has for these names.

    Raises:
        CheckpointError: the model does not know a category of the data set.
    """
    label_of_name = {category["name"]: category["label"] for category in categories}
    for category in data:
        if category["name"] not in label_of_name:
            raise CheckpointError(
                f'{source}: does not know the category "{category["name"]}" of the data '
                f"(it knows {reprlib.repr(list(label_of_name))})"
            )
    return [{**category, "label": label_of_name[category["name"]]} for category in data]


def same_categories(known: list[dict[str, Any]] | None, data: list[dict[str, Any]]) -> bool:
    """Whether a class head for ``known`` fits ``data``: same labels, names and, if they are known, ids."""
    if known is None or len(known) != len(data):
        return False
    return all(
        (a["label"], a["name"]) == (b["label"], b["name"]) and a["id"] in (None, b["id"])
        for a, b in zip(known, data, strict=True)
    )
