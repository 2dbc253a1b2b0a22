"""The recipes of CONTRIBUTING.md are the code of tests, and what it names is there."""

from __future__ import annotations

import re
from textwrap import dedent

from docs.pages import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_code_of_the_recipes_runs_in_the_tests_that_they_name() -> None:
    blocks = re.findall(r"<!-- from (\S+) -->\n *```python\n(.*?)\n *```", TEXT, re.DOTALL)
    assert len(blocks) == TEXT.count("```python") == 5
    for path, code in blocks:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert _plain(code) in _plain(source), path


def _plain(code: str) -> str:
    """Without the indent of a list or a function."""
    lines = dedent(code).splitlines()
    return "\n".join(line.strip() for line in lines if line.strip())


def test_every_file_and_folder_that_is_named_is_there() -> None:
    package = ROOT / "src" / "sharespace"
    for path in re.findall(r"`([\w/.]+(?:/|\.py))`", TEXT):
        places = (ROOT / path, package / path, *package.glob(f"*/{path}"))
        assert any(place.exists() for place in places), path
