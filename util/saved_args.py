"""Checks arguments from a checkpoint or an args.json: the command line must be able to produce them."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from util.errors import CheckpointError, UserError
from util.inputs import Unreadable, read_json
from util.logger import say


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


def read_args(parser: argparse.ArgumentParser, path: str | Path) -> dict[str, Any]:
    """The arguments of another run of the same script, from its ``args.json`` or the folder where this lies.

    What ``parser`` does not know is left out, and said.

    Raises:
        UserError: no such file, none with arguments, or of the other script.
    """
    path = Path(path)
    path = path / "args.json" if path.is_dir() else path
    try:
        saved = read_json(path)
    except Unreadable as error:
        raise UserError(f"--args_from {path}: {error}") from None
    if not isinstance(saved, dict):
        raise UserError(f"--args_from {path}: holds a {type(saved).__name__}, not the arguments of a run")
    known = {action.dest for action in parser._actions if action.dest != "help"}
    if not saved.keys() & known:
        raise UserError(f"--args_from {path}: holds no arguments of {parser.prog}; a run writes such a file, args.json")
    if ("method" in saved) != ("method" in known):  # --method chooses the pretext task
        other = "main_pretrain.py" if "method" in saved else "main_finetune.py"
        raise UserError(f"--args_from {path}: of a run of {other}, not of {parser.prog}")
    check_saved_args(parser, saved, path)
    unknown = [name for name in saved if name not in known]
    if unknown:
        say(f"{path}: left out, because there are no such flags: {', '.join(f'--{name:.40}' for name in unknown)}")
    return {name: value for name, value in saved.items() if name in known}


def _could_be_parsed(action: argparse.Action, value: Any) -> bool:
    if action.nargs == 0:  # store_true
        return type(value) is bool
    if action.nargs == "+":
        return isinstance(value, list) and all(_is_one(action, item) for item in value)
    return _is_one(action, value)


def _is_one(action: argparse.Action, value: Any) -> bool:
    kinds = {None: (str,), int: (int,), float: (int, float)}[action.type]
    return type(value) in kinds and (action.choices is None or value in action.choices)
