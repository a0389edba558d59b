"""The checkpoint that a run starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Foreign:
    """What is to know of another project's checkpoint beside its weights.

    Attributes:
        kind: what it was recognised as.
        sources: for each name of a weight those of the file that it was made of.
        left_over: names in the file that belong to no detector.
        assumed: architecture flags that the file does not tell; their values are the papers'.
    """

    kind: str
    sources: dict[str, tuple[str, ...]]
    left_over: list[str]
    assumed: list[str] = field(default_factory=list)

    def in_file(self, names: list[str]) -> list[str]:
        """The file's names for these names of weights."""
        return list(dict.fromkeys(source for name in names for source in self.sources.get(name, (name,))))


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run starts from.

    Attributes:
        path: its file.
        content: what the file holds.
        resumes: the run goes on where this one stopped; otherwise it only takes over the detector.
        foreign: what is to know of it where it is of another project.
    """

    path: Path
    content: dict[str, Any]
    resumes: bool
    foreign: Foreign | None = None

    @property
    def resumed(self) -> Path | None:
        """The file, if the run goes on where it stopped."""
        return self.path if self.resumes else None
