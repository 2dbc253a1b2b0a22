"""A stored Share model of thousands of tasks: what is read and kept is that of the tasks in use."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sharespace import Share
from sharespace.files import read_bytes
from sharespace.serve.mixed import MixedTasks
from sharespace.store import objects
from tuner.spaces import seeded, space

FEW, MANY, USED, SLOTS = 100, 2000, 50, 60


def model() -> Any:
    return seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)))


@dataclass
class Reads:
    """Files of stores that were opened, and their bytes."""

    tensors: list[str] = field(default_factory=list)
    others: list[int] = field(default_factory=list)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    opened = objects.OpenedFile.__init__

    def open_it(self: Any, root: Path, ref: Any, *, hashed: bool) -> None:
        found.tensors.append(ref.file)
        opened(self, root, ref, hashed=hashed)

    def read_it(path: Path, limit: int, corrupt: Callable[[str], Exception]) -> bytes:
        data = read_bytes(path, limit, corrupt)
        found.others.append(len(data))
        return data

    monkeypatch.setattr(objects.OpenedFile, "__init__", open_it)
    monkeypatch.setattr("sharespace.store.directory.read_bytes", read_it)
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Made without waiting for the disk: 2,000 files would take longer than all tests."""
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for count in (FEW, MANY):
            share = Share(space(model(), tasks=[f"t{i}" for i in range(count)]))
            share.save(folder / f"{count}.share")
    return {count: folder / f"{count}.share" for count in (FEW, MANY)}


def serve(path: Path, count: int, turns: int = 1) -> tuple[MixedTasks, Share]:
    """Open, and run batches of 50 tasks spread over all of them."""
    share = Share.load(path)
    base = model()
    mixed = MixedTasks(base, share, slots=SLOTS)
    x = torch.randn(USED, 3, 16)
    for turn in range(turns):
        names = [f"t{(i * (count // USED) + turn) % count}" for i in range(USED)]
        with torch.no_grad(), mixed.tasks(names):
            base(x)
    return mixed, share


@pytest.mark.parametrize("count", [FEW, MANY])
def test_only_the_tasks_in_use_are_read(count: int, stores: dict[int, Path], reads: Reads) -> None:
    mixed, share = serve(stores[count], count)
    roles = [Path(file).name.split("-")[0] for file in reads.tensors]
    assert sorted(roles) == ["basis", *["task"] * USED], "each file once, and no other"
    assert len(reads.others) == 2, "share.json and one manifest"
    assert len(mixed.slots.at_hand) == USED
    assert not share.model.tasks._cache, "nothing is remembered twice"  # type: ignore[attr-defined]


def test_what_is_kept_is_the_same_for_any_number(stores: dict[int, Path]) -> None:
    sizes = {count: serve(path, count, turns=2)[0].slots.nbytes for count, path in stores.items()}
    assert sizes[FEW] == sizes[MANY]


def test_a_task_that_is_not_in_use_costs_its_line_in_the_manifest(
    stores: dict[int, Path], reads: Reads
) -> None:
    """Names and hashes are all that grows: bytes on disk, and Python objects once it is read."""
    taken, held = {}, {}
    for count, path in stores.items():
        reads.others.clear()
        tracemalloc.start()
        share = Share.load(path)
        held[count] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        taken[count] = sum(reads.others)
        assert len(share.tasks) == count
    more = MANY - FEW
    assert (taken[MANY] - taken[FEW]) / more < 600, "bytes of a task in the manifest"
    assert (held[MANY] - held[FEW]) / more < 1500, "bytes of a task in memory"
