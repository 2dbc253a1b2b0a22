"""The blocks of a Markdown page, as a reader meets them.

A page may have content tabs (``=== "Python"``). A reader follows one of them, so a page is read
once per tab label: what is outside the tabs, and what is in that tab.

Marks, written as HTML comments on the line before a block:

``<!-- not run: reason -->``   the block can't run here
``<!-- exit: 2 -->``           its last command is meant to fail with this code

and anywhere on a page: ``<!-- setup: $ sharespace ... -->``, a command that runs before the next
block and that the reader does not see, because an earlier page has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<info>.*)")
_TAB = re.compile(r'(?P<indent> *)===!?\+? "(?P<label>[^"]+)"')
_COMMENT = re.compile(r" *<!-- (?P<key>not run|exit|setup): *(?P<value>.+?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block, or a ``setup`` comment (language ``"setup"``)."""

    page: Path
    line: int
    """Of its first line of text, from 1."""
    language: str
    text: str
    indent: str = ""
    tab: str | None = None
    """Label of the tab it is in."""
    not_run: str = ""
    """Reason, or empty."""
    exit_code: int = 0
    adjacent: bool = False
    """It follows a block directly, with nothing but empty lines between: it is its output."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """All pages whose blocks run: README.md and docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    return _Reader(page).read()


def tabs(found: list[Block]) -> list[str | None]:
    """The labels of the tabs; one None for a page without."""
    labels = dict.fromkeys(b.tab for b in found if b.tab)
    return list(labels) or [None]


def seen(found: list[Block], tab: str | None) -> list[Block]:
    """What a reader sees who follows this tab."""
    return [b for b in found if b.tab in (None, tab)]


class _Reader:
    def __init__(self, page: Path) -> None:
        self.page = page
        self.lines = page.read_text(encoding="utf-8").splitlines()
        self.found: list[Block] = []
        self.tab: tuple[str, int] | None = None
        self.marks: dict[str, str] = {}
        self.prose = True
        """Whether something other than empty lines came since the last block."""

    def read(self) -> list[Block]:
        at = 0
        while at < len(self.lines):
            fence = _FENCE.fullmatch(self.lines[at])
            at = self._block(at, fence) if fence else self._line(at)
        return self.found

    def _line(self, at: int) -> int:
        line = self.lines[at]
        if not line.strip():
            return at + 1
        self.prose = True
        indent = len(line) - len(line.lstrip())
        if self.tab and indent <= self.tab[1]:
            self.tab = None
        if tab := _TAB.fullmatch(line):
            self.tab = tab["label"], indent
        elif comment := _COMMENT.fullmatch(line):
            self._comment(at, comment["key"], comment["value"])
        else:
            self.marks = {}
        return at + 1

    def _comment(self, at: int, key: str, value: str) -> None:
        if key == "setup":
            self.found.append(Block(self.page, at + 1, "setup", value, tab=self._label()))
        else:
            self.marks[key] = value

    def _block(self, at: int, fence: re.Match[str]) -> int:
        indent, ticks = fence["indent"], fence["ticks"]
        if self.tab and len(indent) <= self.tab[1]:
            self.tab = None
        end = self.lines.index(indent + ticks, at + 1)
        text = "\n".join(line.removeprefix(indent) for line in self.lines[at + 1 : end])
        self.found.append(
            Block(
                page=self.page,
                line=at + 2,
                language=fence["info"].strip().split(" ")[0] or "text",
                text=text,
                indent=indent,
                tab=self._label(),
                not_run=self.marks.get("not run", ""),
                exit_code=int(self.marks.get("exit", "0")),
                adjacent=not self.prose,
            )
        )
        self.marks, self.prose = {}, False
        return end + 1

    def _label(self) -> str | None:
        return self.tab[0] if self.tab else None
