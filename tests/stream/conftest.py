"""A world made once; each test gets a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from sharespace.stream import StreamResult, run
from stream import world


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Sums have one order, and matrices this small gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Don't write to it."""
    folder = tmp_path_factory.mktemp("world")
    world.make(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world of the test's own."""
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shutil.copytree(made, tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture(scope="session")
def undisturbed(
    made: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, StreamResult, tuple[str, ...]]:
    """The stream of ``world.TASKS``, with a router, run without a stop: its store, result and
    stages."""
    place = tmp_path_factory.mktemp("undisturbed") / "world"
    shutil.copytree(made, place)
    stages: list[str] = []
    result = run(
        world.recipe(place, router=True), observe=lambda e: stages.append(f"{e.stage} {e.task}")
    )
    return place / "out.share", result, tuple(stages)


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, but for locks, by its path."""

    def take(folder: Path) -> dict[str, bytes]:
        files = (p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
        return {str(p.relative_to(folder)): p.read_bytes() for p in files}

    return take
