"""Reports what became of the entries of a weights file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MOST_NAMES = 3
"""More names with the same beginning are only counted."""


@dataclass
class LoadReport:
    """Names of parameters and buffers.

    Attributes:
        loaded: taken from the file.
        new: of the model, with their initial values.
        left_over: of the file, not used.
        notes: further lines for the user.
    """

    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def describe(self, source: str | Path) -> str:
        """Three lines for the user, and the notes; ``source`` is the file."""
        lines = [
            f"{source}: {len(self.loaded)} tensors loaded",
            f"newly made: {_enumerate(self.new)}",
            f"left over in the file: {_enumerate(self.left_over)}",
            *self.notes,
        ]
        return "\n  ".join(lines)


def _enumerate(names: list[str]) -> str:
    """The names; many names with the same beginning become this beginning and their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_beginning(name), []).append(name)
    parts = [
        ", ".join(group) if len(group) <= MOST_NAMES else f"{beginning} ({len(group)})"
        for beginning, group in groups.items()
    ]
    return ", ".join(parts) or "nothing"


def _beginning(name: str) -> str:
    """``module.fc.*`` for ``module.fc.weight``; the counters of all batch norms are one group."""
    if name.endswith(".num_batches_tracked"):
        return "*.num_batches_tracked"
    wrapper = "module." if name.startswith("module.") else ""
    return f"{wrapper}{name.removeprefix(wrapper).split('.')[0]}.*"
