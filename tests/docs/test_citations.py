"""What docstrings and comments cite is there: the pages, and the headings in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from docs.pages import ROOT

CITED = re.compile(r'(docs/[\w/-]+\.md),? ((?:(?:,| and)? ?"[^"]+")+)')
SOURCES = ("src", "tests", "benchmarks", "experiments")


def texts() -> Iterator[tuple[Path, str]]:
    """Each source file as one line, without what starts a comment's line."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = path.read_text(encoding="utf-8").splitlines()
            yield path, " ".join(line.strip().removeprefix("#").strip() for line in lines)


def headings(page: str) -> set[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return {match.strip() for match in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_every_page_that_is_cited_is_there() -> None:
    for path, text in texts():
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", text):
            assert (ROOT / page).is_file(), (path, page)


def test_the_method_is_cited_by_its_path() -> None:
    for path, text in texts():
        if path.parent.name != "docs":
            assert not re.search(r"(?<!docs/)(?<![\w/-])(method|house)\.md", text), path


def test_every_heading_that_is_cited_is_there() -> None:
    cited = 0
    for path, text in texts():
        for page, names in CITED.findall(text):
            for name in re.findall(r'"([^"]+)"', names):
                cited += 1
                assert name in headings(page), (path, page, name)
    assert cited > 20
