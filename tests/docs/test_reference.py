"""The reference pages are complete, and what was generated is what the code says now."""

from __future__ import annotations

import re
import runpy

import pytest

import sharespace
import sharespace.errors
import sharespace.learn
from docs.pages import ROOT, blocks, pages

DOCS = ROOT / "docs"
NEW = "run: python {}"


def test_command_line_reference_is_in_sync() -> None:
    script = DOCS / "reference" / "generate_cli.py"
    expected = runpy.run_path(str(script))["reference"]()
    found = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert found == expected, NEW.format(script.relative_to(ROOT))


@pytest.mark.parametrize("theme", ["LIGHT", "DARK"])
def test_figure_is_in_sync(theme: str) -> None:
    script = DOCS / "figures" / "method.py"
    names = runpy.run_path(str(script))
    found = (DOCS / "figures" / f"method-{theme.lower()}.svg").read_text(encoding="utf-8")
    assert found == names["draw"](names[theme]), NEW.format(script.relative_to(ROOT))


def test_python_reference_has_every_public_name() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    described = {m.rpartition(".")[2] for m in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    public = {name for name in sharespace.__all__ if not name.startswith("_")}
    errors = {name for name in public if name in vars(sharespace.errors)}
    missing = {*public, *sharespace.learn.__all__} - errors - described - {"Fit"}
    assert not missing
    assert "::: sharespace.errors" in page


def test_every_command_has_a_howto() -> None:
    from sharespace.cli.app import app

    text = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "howto").glob("*.md"))
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"$ sharespace {command.callback.__name__} " in text + " "


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS))
        assert re.search(rf" {re.escape(name)}$", navigation, re.MULTILINE), name


def test_pages_have_no_paths_of_a_machine() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(home|root|work|Users|tmp)/", text), page
        assert all(len(line) <= 120 for line in _prose(text)), page


def _prose(text: str) -> list[str]:
    """Lines outside blocks and tables."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith(("|", "!["))]


def test_there_are_blocks_to_run() -> None:
    assert sum(len(blocks(p)) for p in pages()) > 50
