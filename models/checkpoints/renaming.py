"""Renames state dicts; each tensor remembers its names in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from util.errors import CheckpointError

WRAPPER = "module."
"""Prefix of every name with DistributedDataParallel."""

Rule = tuple[re.Pattern, str, int]


class Renaming:
    """Tensors that are renamed from the names of a file to those of this project.

    Attributes:
        weights: ``{name: tensor}``.
        sources: name of a tensor -> names in the file that it was made from.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = dict(weights)
        self.sources = {name: (name,) for name in weights}

    def rename(self, new_name: Callable[[str], str]) -> None:
        """Rename every tensor from ``name`` to ``new_name(name)``."""
        self.sources = {new_name(name): source for name, source in self.sources.items()}
        self.weights = {new_name(name): value for name, value in self.weights.items()}

    def unwrap(self) -> None:
        """Remove :data:`WRAPPER`."""
        self.rename(lambda name: name.removeprefix(WRAPPER))

    def in_file(self, names: Iterable[str]) -> list[str]:
        """The names in the file of tensors with these names."""
        return list(dict.fromkeys(source for name in names for source in self.sources[name]))

    def names(self, beginning: str) -> list[str]:
        """The names that start with ``beginning``."""
        return [name for name in self.weights if name.startswith(beginning)]

    def concatenate(self, parts: list[str], name: str, dim: int) -> None:
        """Replace tensors by their concatenation; tensors that do not fit stay."""
        values = [self.weights[part] for part in parts]
        try:
            joined = torch.cat(values, dim)
        except (RuntimeError, IndexError):  # loading will report the shapes, under the file's names
            return
        self.sources[name] = tuple(source for part in parts for source in self.sources[part])
        self.weights[name] = joined
        for part in set(parts) - {name}:
            del self.weights[part], self.sources[part]

    def copy(self, name: str, new_name: str) -> None:
        """Give a tensor a second name."""
        self.weights[new_name] = self.weights[name]
        self.sources[new_name] = self.sources[name]

    def alias(self, old: str, new: str) -> None:
        """Give tensors whose names start with ``old`` second names that start with ``new``, where these are missing."""
        for name in self.names(old):
            new_name = new + name.removeprefix(old)
            if new_name not in self.weights:
                self.copy(name, new_name)

    def split(self, belongs: Callable[[str], bool]) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors whose names belong, and the names in the file of the others."""
        kept = {name: value for name, value in self.weights.items() if belongs(name)}
        return kept, self.in_file(name for name in self.weights if name not in kept)


def num_layers(names: Iterable[str], layers: str) -> int:
    """How many layers have parameters under ``layers``.

    Raises:
        CheckpointError: a number is missing. So a name with a huge number cannot ask for as many layers.
    """
    pattern = re.compile(rf"{re.escape(layers)}\.([0-9]+)\.")
    found = {match[1] for name in names if (match := pattern.match(name))}
    missing = next((number for number in range(len(found)) if str(number) not in found), None)
    if missing is not None:
        raise CheckpointError(f"{layers} has {len(found)} layers, but no layer has the number {missing}")
    return len(found)


def compile_rules(pairs: Iterable[tuple[str, str]], *, back: bool = False) -> list[Rule]:
    """Rules for :func:`apply_rules` from pairs of names.

    Args:
        pairs: (theirs, ours). ``*`` is a number; ``#`` is a number that they count from 0 and we from 1. A name that
            ends in a dot stands for all names that start with it.
        back: from ours to theirs.
    """
    rules = []
    for theirs, ours in pairs:
        old, new, step = (ours, theirs, -1) if back else (theirs, ours, 1)
        pattern = re.escape(old).replace(r"\*", r"(\d+)").replace(r"\#", r"(\d+)")
        rules.append((re.compile(pattern if old.endswith(".") else f"{pattern}$"), new, step))
    return rules


def apply_rules(rules: list[Rule], name: str) -> str:
    """The new name by the first rule that fits, or ``name`` itself."""
    for pattern, new, step in rules:
        if match := pattern.match(name):
            numbers = iter(match.groups())
            filled = re.sub(r"[*#]", lambda mark: str(int(next(numbers)) + (step if mark[0] == "#" else 0)), new)  # noqa: B023
            return filled + name[match.end() :]
    return name
