"""The command line as a user meets it: help with every default, errors in one line that name what is nearest."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

UNKNOWN = "unrecognized arguments: "
"""How argparse begins when it does not know a flag."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage, and whose help shows every default."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, **{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit with status 2."""
        if message.startswith(UNKNOWN):
            message = self._of_unknown(message.removeprefix(UNKNOWN).split(" "))
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")

    def _of_unknown(self, words: list[str]) -> str:
        flags = [word.partition("=")[0] for word in words if word.startswith("-")]
        if not flags:
            return f"{' '.join(words)!r:.100}: not understood; every value follows its --FLAG"
        known = [option for action in self._actions for option in action.option_strings]
        return f"{flags[0]}: no such flag{nearest(flags[0], known) or '; --help lists them all'}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(choices)}{nearest(value, choices)}")


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default to every help text that does not tell it; switches are off."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.nargs == 0 or not action.option_strings or "default" in text or action.default is argparse.SUPPRESS:
            return text
        told = "none" if action.default is None else "%(default)s"
        return f"{text}; default: {told}" if text else f"default: {told}"


class DocFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The same for parsers whose description keeps its lines."""


def nearest(word: Any, known: Iterable[str]) -> str:
    """``; did you mean X?`` with the nearest of ``known``; empty if none is near."""
    by_letters = {name.lower(): name for name in known}
    similar = difflib.get_close_matches(str(word).lower(), list(by_letters), n=1, cutoff=0.6)
    return f"; did you mean {by_letters[similar[0]]}?" if similar else ""
