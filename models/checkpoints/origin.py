"""The checkpoint that a run starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Foreign:
    """What a checkpoint of another project holds besides weights.

    Attributes:
        kind: the project.
        sources: name of a weight -> names in the file that it was made from.
        left_over: names in the file that do not belong to the detector.
        assumed: architecture flags that the file does not tell; they have the papers' values.
    """

    kind: str
    sources: dict[str, tuple[str, ...]]
    left_over: list[str]
    assumed: list[str] = field(default_factory=list)

    def in_file(self, names: list[str]) -> list[str]:
        """The names in the file for these names of weights."""
        return list(dict.fromkeys(source for name in names for source in self.sources.get(name, (name,))))


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run starts from.

    Attributes:
        path: its file.
        content: what the file holds.
        resumes: the run continues the one that wrote it; otherwise it only takes the detector.
        foreign: of a checkpoint of another project; None: it is this project's.
    """

    path: Path
    content: dict[str, Any]
    resumes: bool
    foreign: Foreign | None = None

    @property
    def resumed(self) -> Path | None:
        """The file, if the run continues from it; else None."""
        return self.path if self.resumes else None
