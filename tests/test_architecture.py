"""The drawing in CONTRIBUTING.md stays true: imports point inward, names are found by one word."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "sharespace"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES: Mapping[str, Path] = {_module(path): path for path in SOURCES}


def _lint_imports() -> str:
    beside = Path(sys.executable).parent / "lint-imports"
    command = str(beside) if beside.exists() else shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    return command


def test_imports_point_inward() -> None:
    linted = subprocess.run(
        [_lint_imports(), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "imports point inward KEPT" in linted.stdout


def test_the_maths_knows_no_modules_no_files_and_no_peft() -> None:
    forbidden = {"torch.nn", "pathlib", "os", "safetensors", "peft", "json", "huggingface_hub"}
    checked = [name for name in MODULES if name.startswith("sharespace.linalg")]
    assert len(checked) > 5
    for name in checked:
        assert not _imported(ast.walk(_tree(MODULES[name]))) & forbidden, name


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return names


def test_no_import_circle() -> None:
    """At module level; what only the type checker imports does not count."""
    graph = {name: _imported_modules(name) for name in MODULES}
    assert not _circle(graph), _circle(graph)


def test_a_circle_would_be_seen() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def _imported_modules(name: str) -> set[str]:
    """Modules of the package that a module imports when it is imported itself."""
    imported = set()
    for node in _at_import(_tree(MODULES[name]).body):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import module`` needs the module, and not what else the package has.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {n if n in MODULES else node.module for n in names}
    return imported & MODULES.keys() - {name}


def _at_import(body: Iterable[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from _at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            yield from _at_import(node.body)


def _circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle, if there is any: the names in order, the first again at the end."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for following in sorted(graph[name]):
            circle = visit(following, [*path, name])
            if circle:
                return circle
        done.add(name)
        return []

    for start in sorted(graph):
        circle = visit(start, [])
        if circle:
            return circle
    return []


def test_module_names_occur_once() -> None:
    places = defaultdict(set)
    for name in MODULES:
        places[name.rsplit(".", 1)[-1]].add(name)
    _check_once(places)


def test_class_names_occur_once() -> None:
    places = defaultdict(set)
    for name, path in MODULES.items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(name)
    _check_once(places)


def _check_once(places: Mapping[str, set[str]]) -> None:
    twice = {name: sorted(modules) for name, modules in places.items() if len(modules) > 1}
    assert not twice


def test_no_user_error_is_an_assertion() -> None:
    for path in SOURCES:
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(_tree(path))), path
