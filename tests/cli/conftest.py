"""Tiny adapters on disk, and the command line run in this process as a shell would run it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sharespace.cli import main
from sharespace.formats import PlainLora, write_adapter
from sharespace.subspace.adapter import BaseModel, LayerUpdate

MODULES = {"encoder.0.q": (12, 10), "encoder.0.v": (8, 10), "encoder.1.q": (12, 10)}


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``sharespace`` with these arguments."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["sharespace", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        code = stopped.value.code
        return Ran(code if isinstance(code, int) else 0, said.out, said.err)

    return call


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A folder with the adapters sst2, rte and mrpc of base "tiny/base", rank 2, one head each."""
    folder = tmp_path / "adapters"
    for seed, name in enumerate(("sst2", "rte", "mrpc")):
        make_adapter(folder / name, seed)
    return folder


def make_adapter(path: Path, seed: int, base: str = "tiny/base", rank: int = 2) -> None:
    """One PEFT adapter of normal factors and a head."""
    draw = torch.Generator().manual_seed(seed)
    updates = {
        m: LayerUpdate(torch.randn(n, rank, generator=draw), torch.randn(rank, d, generator=draw))
        for m, (n, d) in MODULES.items()
    }
    head = {"base_model.model.classifier.weight": torch.randn(3, 8, generator=draw)}
    config = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"], "peft_type": "LORA"}
    write_adapter(path, PlainLora(updates, kept=head, config=config, base=BaseModel(base)))
