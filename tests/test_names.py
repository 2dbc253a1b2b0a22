"""Every dotted name of the package that a page, a test or a setting mentions is there."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("src", "tests", "docs", "benchmarks", "experiments")
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml"}
DOTTED = re.compile(r"(?<![\w./@-])sharespace(?:\.[A-Za-z_]\w*)+(?![\w/]|\.\w)")
FREE = {
    "sharespace.nothing",  # a test's name of what is not there
    "sharespace.nn",  # where the golden files of an earlier release were made
    "sharespace.router",  # what a router's file calls its format
}


def files() -> list[Path]:
    top = [path for path in ROOT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"]
    below = [path for place in PLACES for path in (ROOT / place).rglob("*")]
    return sorted(
        path
        for path in [*top, *below]
        if path.is_file() and (path.suffix in SUFFIXES or path.name == "Makefile")
    )


def names() -> dict[str, list[str]]:
    """Name -> files that mention it."""
    mentioned: dict[str, list[str]] = {}
    for path in files():
        for name in set(DOTTED.findall(path.read_text(encoding="utf-8"))) - FREE:
            mentioned.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return mentioned


@cache
def is_there(name: str) -> bool:
    """A module, or an attribute of what stands before the last dot."""
    try:
        import_module(name)
    except ModuleNotFoundError:
        owner, _, attribute = name.rpartition(".")
        return bool(owner) and is_there(owner) and hasattr(resolved(owner), attribute)
    return True


@cache
def resolved(name: str) -> object:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        owner, _, attribute = name.rpartition(".")
        return getattr(resolved(owner), attribute)


@pytest.mark.filterwarnings("ignore")
def test_every_name_is_there() -> None:
    pytest.importorskip("peft")
    wrong = {name: paths for name, paths in names().items() if not is_there(name)}
    assert not wrong
