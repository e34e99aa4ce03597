"""The project's Markdown pages as data: fenced blocks, the commands in them, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.common import REPOSITORY

# A user's pages: every command on them is run.
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
# Pages with links that must not break.
LINKED = (*sorted(REPOSITORY.glob("*.md")), *PAGES[1:], *sorted((REPOSITORY / "benchmarks").glob("*.md")))

_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: where it is.
        line: number of its first line.
        language: first word behind the fence, e.g. `sh`.
        note: what follows that: `no-run`, or the name of the file that the block is.
        text: between the fences.
    """

    page: Path
    line: int
    language: str
    note: str
    text: str

    @property
    def runs(self) -> bool:
        return self.note != "no-run"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, without comments; a trailing backslash continues a line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2].strip(), found[3])
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of relative links."""
    return [target for target in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What `#…` can point to, by GitHub's rule for headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def own_command(words: list[str]) -> list[str] | None:
    """The arguments of a `longrope-export` command, however it is started; None for another program's."""
    if words[0] == "longrope-export":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["longrope_export"]:
        return words[words.index("-m") + 2 :]
    return None


def own_commands(shell_blocks: list[Block]) -> Iterator[tuple[Block, list[str]]]:
    """Every `longrope-export` command of some blocks."""
    for block in shell_blocks:
        for words in block.commands:
            if arguments := own_command(words):
                yield block, arguments
