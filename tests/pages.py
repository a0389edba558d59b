"""The commands that the README and the pages of docs/ show, as a user would copy them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "results/README.md",
]


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: relative to the project.
        words: the command, split as a shell does.
        variables: what is assigned before it.
    """

    page: str
    words: tuple[str, ...]
    variables: tuple[str, ...] = ()

    @property
    def script(self) -> str | None:
        """The project's Python file that it runs, if any."""
        files = [word for word in self.words if word.endswith(".py") and (ROOT / word).is_file()]
        return files[0] if files and "pytest" not in self.words else None

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def read_commands(page: Path) -> list[Command]:
    """All lines of the ``sh`` blocks of a page, one command each; a backslash joins lines."""
    commands = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            given = [word for word in words if re.match(r"[A-Z_]+=", word)]
            words = [word for word in words[len(given) :] if word != "..."]
            if words:
                commands.append(Command(page.relative_to(ROOT).as_posix(), tuple(words), tuple(given)))
    return commands


COMMANDS = [command for page in PAGES for command in read_commands(page)]
