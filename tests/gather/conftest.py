"""A store, and an inbox beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gather.workers import start


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Version 1, one task, no cap."""
    path = tmp_path / "s.share"
    start(path)
    return path


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path
