"""Checks arguments from a checkpoint: the command line must be able to produce them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from util.errors import CheckpointError


def check_saved_args(
    parser: argparse.ArgumentParser, saved: dict[str, Any], source: str | Path, names: Collection[str] | None = None
) -> None:
    """Check that all arguments of ``parser``, or only those in ``names``, have values of the right type, or None.

    Raises:
        CheckpointError: a value has another type; the message names it.
    """
    for action in parser._actions:  # argparse has no public list of them
        value = saved.get(action.dest) if names is None or action.dest in names else None
        if value is not None and not _could_be_parsed(action, value):
            raise CheckpointError(f"{source}: damaged or made by hand: its argument {action.dest} is {value!r:.60}")


def _could_be_parsed(action: argparse.Action, value: Any) -> bool:
    if action.nargs == 0:  # store_true
        return type(value) is bool
    if action.nargs == "+":
        return isinstance(value, list) and all(_is_one(action, item) for item in value)
    return _is_one(action, value)


def _is_one(action: argparse.Action, value: Any) -> bool:
    kinds = {None: (str,), int: (int,), float: (int, float)}[action.type]
    return type(value) in kinds and (action.choices is None or value in action.choices)
