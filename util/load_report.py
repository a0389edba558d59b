"""What became of the entries of a weights file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MOST_NAMES = 8


@dataclass
class LoadReport:
    """Names of parameters and buffers.

    Attributes:
        loaded: taken from the file.
        new: of the model, kept as they were initialised.
        left_over: of the file, used nowhere.
    """

    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def describe(self, source: str | Path) -> str:
        """Three lines for the user."""
        return (
            f"{source}: {len(self.loaded)} tensors loaded\n"
            f"  newly made: {_enumerate(self.new)}\n"
            f"  left over in the file: {_enumerate(self.left_over)}"
        )


def _enumerate(names: list[str]) -> str:
    """The first names and how many there are in all."""
    if not names:
        return "nothing"
    # One counter for each batch norm; frozen ones have no use for it.
    counters = [name for name in names if name.endswith("num_batches_tracked")]
    others = [name for name in names if not name.endswith("num_batches_tracked")]
    parts = others[:MOST_NAMES]
    if len(others) > MOST_NAMES:
        parts.append(f"{len(others) - MOST_NAMES} more")
    if counters:
        parts.append(f"{len(counters)} num_batches_tracked")
    return ", ".join(parts)
