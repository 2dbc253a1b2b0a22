"""A folder with the adapters that the pages talk about."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from docs.samples import make


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; don't write to it."""
    folder = tmp_path_factory.mktemp("samples")
    make(folder)
    return folder


@pytest.fixture
def desk(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Go to a new folder with the samples in it, as a reader starts a page."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    count = iter(range(1000))

    def start() -> Path:
        folder = tmp_path / f"reader{next(count)}"
        shutil.copytree(samples, folder)
        monkeypatch.chdir(folder)
        return folder

    return start
