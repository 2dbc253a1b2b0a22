"""What ``--json`` prints: plain JSON values of results. Names here are an interface.

How the updates of a Share model are stored, for ``info``: words, cells of a table, JSON.

Numbers as a terminal says them; bytes and counts as the report does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sharespace.share import Share
from sharespace.store import Checkout, Pruned, Report, Version
from sharespace.store.layout import LayerEntry
from sharespace.subspace.fidelity import (
    Bytes,
    Fidelity,
    ModelStorage,
    StorageTally,
    UpdateTally,
    tally_storage,
)
from sharespace.subspace.plan import Baselines, BuildPlan
from sharespace.subspace.state import Task
from sharespace.words import count, human

if TYPE_CHECKING:
    from sharespace.report import Written
    from sharespace.stream import RouterResult, StreamResult


_SAID = {
    "whole": "in all directions of their subspace",
    "leading": "in the leading ones only",
    "per_task": "stored per task, outside of any",
    "nothing": "not kept",
}

_HEADS = {
    "whole": "all of k",
    "leading": "leading",
    "per_task": "per task",
    "nothing": "not kept",
}


def bytes_record(sizes: Bytes) -> dict[str, int]:
    return {
        "basis": sizes.basis,
        "coefficients": sizes.coefficients,
        "other": sizes.other,
        "total": sizes.total,
        "adapters": sizes.adapters,
    }


def fidelity_record(found: Fidelity, baselines: Baselines | None = None) -> dict[str, Any]:
    tasks = {
        name: {
            "relative_error": t.relative_error,
            "worst_layer": t.worst_layer,
            "worst_layer_error": t.worst_layer_error,
            "bound": t.bound,
            "measured": t.measured,
            "layers": {
                m: {"relative_error": x.relative_error, "bound": x.bound}
                for m, x in t.layers.items()
            },
        }
        for name, t in found.tasks.items()
    }
    record = {
        "tasks": tasks,
        "mean_relative_error": found.mean_relative_error,
        "max_relative_error": found.max_relative_error,
        "certificates": dict(found.certificates),
        "bytes": bytes_record(found.bytes),
    }
    return record if baselines is None else {**record, "baselines": baselines_record(baselines)}


def baselines_record(baselines: Baselines) -> dict[str, Any]:
    return {
        "mean_adapter": dict(baselines.mean_adapter),
        "random_basis": dict(baselines.random_basis),
        "own_svd": dict(baselines.own_svd),
        "shared": baselines.shared,
        "shared_fraction": dict(baselines.shared_fraction),
    }


def plan_record(plan: BuildPlan) -> dict[str, Any]:
    return {
        "verdict": plan.verdict,
        "reason": plan.reason,
        "break_even": plan.break_even,
        "paper_count": {
            "parameters": plan.paper_count.parameters,
            "bytes": plan.paper_count.nbytes,
        },
        "k": {m: list(k) for m, k in plan.dimensions.items()},
        "per_task_modules": plan.per_task_modules,
        "budget": plan.budget,
        "storage": asdict(plan.storage),
        **fidelity_record(plan.fidelity, plan.baselines),
    }


def built_record(share: Share, path: str) -> dict[str, Any]:
    return {
        "share": path,
        "version": share.version,
        "method": share.model.settings.method,
        "base_model": share.model.base.id,
        "k": {m: list(layer.k) for m, layer in share.model.layers.items()},
        "out_of_core": [m for m, layer in share.model.layers.items() if layer.streamed],
        **fidelity_record(share.fidelity()),
    }


def info_record(found: Checkout, storing: ModelStorage | None = None) -> dict[str, Any]:
    """``stored`` is null, here and everywhere, where it was not counted."""
    content = found.manifest.content
    settings = content.settings
    return {
        "share": str(found.path),
        "version": found.version.number,
        "created": found.version.created,
        "base_model": {
            "id": content.base.id,
            "revision": content.base.revision,
            "fingerprint": content.fingerprint,
        },
        "method": settings.method,
        "p": settings.p,
        "budget": settings.budget,
        "dtype": str(content.dtype).removeprefix("torch."),
        "layers": {
            e.module: {
                "shape": [e.shape.out_features, e.shape.in_features],
                "kind": e.shape.kind,
                "k": list(e.k),
                "groups": [list(group) for group in e.groups],
                "cap": list(e.cap) if e.cap else None,
                "basis_bytes": _basis_bytes(e, content.dtype.itemsize),
                "out_of_core": e.streamed,
                "stored": record(storing.layers[e.module]) if storing else None,
            }
            for e in content.layers
        },
        "tasks": {
            e.name: {
                "format": e.summary.format,
                "source": e.summary.source,
                "layers": e.summary.modules,
                "bound": e.summary.bound,
                "measured": e.summary.measured,
                "coefficient_bytes": e.summary.coefficient_bytes,
                "adapter_bytes": e.summary.adapter_bytes,
                "stored": record(storing.tasks[e.name]) if storing else None,
            }
            for e in content.tasks
        },
        "stored": record(storing.total) if storing else None,
        "bytes": disk_bytes(found),
    }


def _basis_bytes(layer: LayerEntry, itemsize: int) -> int:
    """Of a layer's bases."""
    shape, (left, right) = layer.shape, layer.k
    return (shape.out_features * left + shape.in_features * right) * itemsize


def disk_bytes(found: Checkout) -> dict[str, int]:
    """Bytes of the version's files, headers included; a file that two tasks share counts once."""
    content = found.manifest.content
    total = sum(ref.bytes for ref in content.files.values())
    coefficients = sum(e.summary.coefficient_bytes for e in content.tasks)
    return {
        "basis": content.basis.bytes,
        "coefficients": coefficients,
        "other": total - content.basis.bytes - coefficients,
        "total": total,
        "adapters": sum(e.summary.adapter_bytes for e in content.tasks),
    }


def report_record(report: Report) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "versions": list(report.versions),
        "files": len(report.findings),
        "damaged": [
            {"version": f.version, "file": f.file, "status": f.status, "detail": f.detail}
            for f in report.damaged
        ],
    }


def page_record(written: Written) -> dict[str, Any]:
    return {
        "path": str(written.path),
        "bytes": written.bytes,
        "version": written.version,
        "notices": [asdict(notice) for notice in written.notices],
    }


def version_record(version: Version) -> dict[str, Any]:
    return {
        "version": version.number,
        "created": version.created,
        "verb": version.operation.verb,
        "about": list(version.operation.tasks),
        "tasks": version.task_count,
    }


def pruned_record(pruned: Pruned) -> dict[str, Any]:
    return {"versions": list(pruned.versions), "files": pruned.files, "bytes": pruned.bytes}


def stream_record(found: StreamResult) -> dict[str, Any]:
    tasks = {one.task: asdict(one) for one in found.learned}
    return {
        "share": str(found.share),
        "version": found.version,
        "tasks": {n: {k: v for k, v in t.items() if k != "task"} for n, t in tasks.items()},
        "steps": [step.name for step in found.steps],
        "matrix": found.matrix.to_record() if found.matrix else None,
        "scores": {name: asdict(score) for name, score in found.scores.items()},
        "measures": found.measures,
        "bytes": dict(found.steps[-1].bytes),
        "router": router_record(found.router) if found.router else None,
        "notices": list(found.notices),
    }


def router_record(found: RouterResult) -> dict[str, Any]:
    record = {k: v for k, v in found.to_record().items() if k != "notices"}
    return {"path": str(found.path), **record, "means": found.means}


def storing_of(found: Checkout) -> ModelStorage:
    """Count a version's updates; reads the coefficients of all tasks, one task at a time."""
    dimensions = {entry.module: entry for entry in found.manifest.content.layers}
    return tally_storage(_tasks(found), dimensions)


def _tasks(found: Checkout) -> Iterator[Task]:
    """Every task; one that was read for this alone is not remembered."""
    tasks = found.model.tasks
    return map(getattr(tasks, "peek", tasks.__getitem__), tasks)


def record(found: StorageTally) -> dict[str, dict[str, int]]:
    """Way -> updates and bytes."""
    return {w: {"updates": t.updates, "bytes": t.nbytes} for w, t in _tallies(found)}


def sentence(found: StorageTally, budget: int | None) -> str:
    """All of it in plain words."""
    parts = [
        f"{t.updates:,} {_SAID[w]} ({human(t.nbytes)})" for w, t in _tallies(found) if t.updates
    ]
    why = "" if budget is None else f", as a budget of {human(budget)} chose"
    return f"{count(found.total.updates, 'update')}{why}: {', '.join(parts) or 'none'}"


def heads(every: StorageTally) -> list[str]:
    """Columns for ``cells``: the ways that the model has."""
    return [_HEADS[w] for w, t in _tallies(every) if t.updates]


def cells(found: StorageTally, every: StorageTally) -> list[str]:
    """Updates and bytes by way, of those ways that the model has."""
    there = [w for w, t in _tallies(every) if t.updates]
    return [_cell(getattr(found, w)) for w in there]


def _cell(tally: UpdateTally) -> str:
    return f"{tally.updates:,} ({human(tally.nbytes)})" if tally.updates else "-"


def _tallies(found: StorageTally) -> list[tuple[str, UpdateTally]]:
    return [(w, getattr(found, w)) for w in _SAID]
