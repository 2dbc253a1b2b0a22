"""The drawing in CONTRIBUTING.md stays true: imports point inward, and the maths stands alone."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
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
        if "linalg" in (parent.name for parent in path.parents):
            assert not _imported(path) & forbidden, path.name


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return names


def test_no_file_is_longer_than_600_lines() -> None:
    """Complexity is ruff's to limit (C901, PLR09); this only keeps one subject a file."""
    assert not [p.name for p in SOURCES if len(p.read_text("utf-8").splitlines()) > 600]


def test_no_user_error_is_an_assertion() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path.name
