"""Every code block of README.md and docs/ runs, and prints what the page shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from docs.looks import differences
from docs.pages import ROOT, Block, blocks, pages, seen, tabs
from docs.running import Reader

RUN = ("console", "bash", "python", "setup")
DATA = ("json", "yaml", "toml", "text", "bibtex")
"""Languages of what is read, not run."""
REASONS = {
    "pip": "needs a package index",
    "make": "sets up an environment",
    "git": "needs the network",
    "cd": "follows git",
    "docker": "needs the network",
    "vllm": "needs a GPU",
    "curl": "needs a server",
}
"""Why the commands of ``sh`` blocks don't run here."""
PAGES = pages()
ALL = [block for page in PAGES for block in blocks(page)]

pytestmark = [
    # transformers' and PEFT's own, of loading and saving tiny models.
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_blocks_run_and_print_what_is_shown(page: Path, desk: Callable[[], Path]) -> None:
    found = blocks(page)
    for tab in tabs(found):
        if not any(b.language in RUN for b in seen(found, tab)):
            continue
        desk()
        for ran in Reader().follow(seen(found, tab)):
            context = f"{ran.block}\n{ran.source}\n{ran.printed}"
            assert ran.exit_code == ran.expected_exit, context
            missing = differences(ran.shown, ran.printed) if ran.shown else []
            assert not missing, f"not printed: {missing}\n{context}"


def test_blocks_that_do_not_run_have_a_reason() -> None:
    silent = [b for b in ALL if b.language == "sh" and not b.not_run]
    for block in silent:
        typed = [x for x in block.text.splitlines() if x.strip() and not x.startswith((" ", "#"))]
        programs = {re.split(r"[\s/]", x.removeprefix("$ "))[0] for x in typed}
        assert programs <= set(REASONS), f"{block}: say why: <!-- not run: reason -->"
    assert all(len(b.not_run.split()) > 1 for b in ALL if b.not_run), "a reason is a few words"


def test_few_blocks_do_not_run() -> None:
    left_out = [b for b in ALL if b.not_run and b.language != "sh"]
    runs = [b for b in ALL if b.language in RUN and not b.not_run]
    assert len(runs) > 8 * len(left_out)


@pytest.mark.parametrize("block", ALL, ids=str)
def test_languages_are_known(block: Block) -> None:
    assert block.language in (*RUN, *DATA, "sh")
    if block.language == "json":
        json.loads(block.text)


def test_each_howto_runs_something() -> None:
    for page in (ROOT / "docs" / "howto").glob("*.md"):
        assert any(b.language in RUN and not b.not_run for b in blocks(page)), page
