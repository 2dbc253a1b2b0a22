"""Small stores to report on, and facts to warn of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from builders import adapter, build, update
from sharespace.report import Facts
from sharespace.report.facts import FileBytes, LayerFacts, TaskFacts, VersionFacts
from sharespace.report.study import Study, relations
from sharespace.store import Operation, commit
from sharespace.subspace.adapter import Adapter, ModuleShape
from sharespace.subspace.fidelity import LayerFidelity, StorageTally, TaskFidelity, UpdateTally
from sharespace.subspace.merge import merge
from sharespace.subspace.state import BuildSettings, ShareModel

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "a'b&amp;c",
    "]]>--><!--",
    "line\nbreak \ud800 \u202etxt",
    "../../etc/passwd",
    "日本語 🎉",
    "x" * 400,
)
MODULES = ("model.layers.0.q_proj", "model.layers.0.up_proj", "model.layers.1.q_proj")


def made(name: str, seed: int, **more: Any) -> Adapter:
    """An adapter of three layers."""
    found = {m: update(10, 8, 2, 10 * seed + i, **more) for i, m in enumerate(MODULES)}
    return adapter(name, found)


def store(path: Path, model: ShareModel, *further: Adapter) -> Path:
    """A store of a model, and of further adapters merged one by one."""
    version = commit(
        path, model, operation=Operation("init", tuple(model.tasks)), expected_parent=None
    )
    for one in further:
        model = merge(model, [one])
        version = commit(
            path, model, operation=Operation("add", (one.name,)), expected_parent=version
        )
    return path


def two_steps(path: Path) -> Path:
    """Three tasks at a cap, then one more."""
    model = build([made(name, i) for i, name in enumerate(("sst2", "rte", "mrpc"))], k=4)
    return store(path, model, made("cola", 9))


def task(name: str = "sst2", *, error: float = 0.01, bound: float = 0.02, **more: Any) -> TaskFacts:
    """What a report knows of a task with one layer."""
    kept = TaskFidelity(error, "m", error, bound, True, {"m": LayerFidelity(error, bound)})
    fields: dict[str, Any] = {
        "place": 1,
        "fidelity": kept,
        "p": (2, 2),
        "stored": StorageTally(whole=UpdateTally(1, 5)),
        "storage_kinds": {"m": "whole"},
        "norm": 1.0,
        "bytes": 10,
        "adapter_bytes": 100,
        "format": "peft",
        "source": "",
        "sha256": None,
        **more,
    }
    return TaskFacts(name, **fields)


def version(number: int, bounds: Mapping[str, float]) -> VersionFacts:
    """One version."""
    return VersionFacts(
        number, "2026-01-01T00:00:00Z", Operation("add", ()), bounds, 50, 20, 100, 0.0
    )


def facts(*tasks: TaskFacts, cosine: float = 0.5, overlap: float = 0.5, **more: Any) -> Facts:
    """A Share model that gives no cause for a warning."""
    tasks = tasks or (task("sst2"), task("rte", place=2))
    cosines = torch.full((len(tasks), len(tasks)), cosine, dtype=torch.float64)
    cosines.fill_diagonal_(1)
    overlaps = torch.full_like(cosines, overlap).fill_diagonal_(1)
    fields: dict[str, Any] = {
        "name": "glue.share",
        "version": 2,
        "created": "2026-01-01T00:00:00Z",
        "base": "roberta-base",
        "settings": BuildSettings(),
        "dtype": "float32",
        "tasks": tasks,
        "layers": (LayerFacts("m", ModuleShape(8, 6), (2, 2), None),),
        "file_bytes": FileBytes(40, 10, 5, 5, 5, 0, 100),
        "versions": (version(1, {}), version(2, {t.name: t.fidelity.bound for t in tasks})),
        "study": Study(tuple(t.name for t in tasks), cosines, overlaps, {"m": (0.6, 0.9)}),
        "relations": relations(overlaps),
        **more,
    }
    return Facts(**fields)
