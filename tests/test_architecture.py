"""The drawing in house.md stays true: imports point inward, files and functions stay short."""

from __future__ import annotations

import ast
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "sharespace").rglob("*.py"))


def _lint_imports() -> str:
    beside = Path(sys.executable).parent / "lint-imports"
    found = str(beside) if beside.exists() else shutil.which("lint-imports")
    if found is None:
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    return found


def test_imports_point_inward() -> None:
    done = subprocess.run(
        [_lint_imports(), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "imports point inward KEPT" in done.stdout


def test_the_maths_knows_no_modules_no_files_and_no_peft() -> None:
    forbidden = {"torch.nn", "pathlib", "os", "safetensors", "peft", "json", "huggingface_hub"}
    for path in SOURCES:
        if path.parent.name == "linalg":
            assert not _imported(path) & forbidden, path.name


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return names


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Names and lines without docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            text = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or 0) - node.lineno + 1
            documented = (first.end_lineno or 0) - first.lineno + 1 if text is not None else 0
            yield f"{path.name}:{node.name}", lines - documented


def test_files_and_functions_stay_short() -> None:
    long_files = [p.name for p in SOURCES if len(p.read_text("utf-8").splitlines()) > 400]
    assert not long_files
    lengths = dict(x for path in SOURCES for x in _functions(path))
    assert not {name: n for name, n in lengths.items() if n > 60}
    assert statistics.median(lengths.values()) <= 13


def test_no_user_error_is_an_assertion() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path.name
