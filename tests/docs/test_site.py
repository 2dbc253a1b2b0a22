"""The site builds without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs.pages import ROOT

NEEDED = ("mkdocs", "material", "mkdocstrings")


@pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDED), reason="needs the extra 'docs'"
)
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "figures" / "method-dark.svg").is_file()
    assert not list(tmp_path.rglob("*.py")), "scripts are not for the site"
