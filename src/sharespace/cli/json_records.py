"""What ``--json`` prints: results as plain JSON values. Their keys are an interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

from sharespace.report.warnings import Notice, build_notices
from sharespace.share import Share
from sharespace.store import Checkout, Pruned, Report, Version, known_starts
from sharespace.store.schema import LayerEntry
from sharespace.subspace.fidelity import (
    Bytes,
    Fidelity,
    ModelStorage,
    StorageTally,
    tally_storage,
)
from sharespace.subspace.plan import Baselines, BuildPlan
from sharespace.subspace.state import Task, stored_norm

if TYPE_CHECKING:
    from sharespace.gather import Gathered
    from sharespace.report import WrittenReport
    from sharespace.stream import RouterResult, StreamResult

JsonRecord: TypeAlias = dict[str, object]
"""A JSON object; its values are numbers, texts, truth values, null, lists and objects."""


def notices_of(share: Share, added: Iterable[str] | None = None) -> list[Notice]:
    """Warnings of a build, or of a merge that added these tasks."""
    names = share.model.tasks if added is None else added
    tasks = {name: share.model.tasks[name] for name in names}
    return build_notices(tasks, share.fidelity().tasks)


def built_record(share: Share, path: str, added: Iterable[str] | None = None) -> JsonRecord:
    return {
        "share": path,
        "version": share.version,
        "method": share.model.settings.method,
        "base_model": share.model.base.id,
        "k": {m: list(layer.k) for m, layer in share.model.layers.items()},
        "out_of_core": [m for m, layer in share.model.layers.items() if layer.streamed],
        "warnings": [asdict(notice) for notice in notices_of(share, added)],
        **fidelity_record(share.fidelity()),
    }


def combined_record(share: Share, name: str, path: str) -> JsonRecord:
    task = share.task(name)
    return {
        "share": path,
        "version": share.version,
        "task": name,
        "combined_from": task.provenance.source,
        "ranks": task.ranks,
        "bound": task.ledger.bound,
    }


def plan_record(plan: BuildPlan) -> JsonRecord:
    return {
        "verdict": plan.verdict,
        "reason": plan.reason,
        "break_even": plan.break_even,
        "coefficients_only": {
            "parameters": plan.coefficients_only.parameters,
            "bytes": plan.coefficients_only.nbytes,
        },
        "k": {m: list(k) for m, k in plan.dimensions.items()},
        "per_task_modules": plan.per_task_modules,
        "budget": plan.budget,
        "storage": asdict(plan.storage),
        **fidelity_record(plan.fidelity, plan.baselines),
    }


def fidelity_record(fidelity: Fidelity, baselines: Baselines | None = None) -> JsonRecord:
    tasks = {
        name: {
            "relative_error": task.relative_error,
            "worst_layer": task.worst_layer,
            "worst_layer_error": task.worst_layer_error,
            "bound": task.bound,
            "measured": task.measured,
            "layers": {
                module: {"relative_error": layer.relative_error, "bound": layer.bound}
                for module, layer in task.layers.items()
            },
        }
        for name, task in fidelity.tasks.items()
    }
    record: JsonRecord = {
        "tasks": tasks,
        "mean_relative_error": fidelity.mean_relative_error,
        "max_relative_error": fidelity.max_relative_error,
        "certificates": dict(fidelity.certificates),
        "bytes": bytes_record(fidelity.bytes),
    }
    return record if baselines is None else {**record, "baselines": baselines_record(baselines)}


def baselines_record(baselines: Baselines) -> JsonRecord:
    return {
        "mean_adapter": dict(baselines.mean_adapter),
        "random_basis": dict(baselines.random_basis),
        "own_svd": dict(baselines.own_svd),
        "shared": baselines.shared,
        "shared_fraction": dict(baselines.shared_fraction),
    }


def bytes_record(sizes: Bytes) -> dict[str, int]:
    return {
        "basis": sizes.basis,
        "coefficients": sizes.coefficients,
        "other": sizes.other,
        "total": sizes.total,
        "adapters": sizes.adapters,
    }


def info_record(opened: Checkout, storage: ModelStorage | None = None) -> JsonRecord:
    """What is in a version; each ``stored`` is null where ``storage`` is None."""
    content = opened.manifest.content
    settings = content.settings
    starts, of_whole = known_starts(opened), bounds_of_whole(opened)
    return {
        "share": str(opened.path),
        "version": opened.version.number,
        "created": opened.version.created,
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
                "basis_bytes": basis_bytes(e, content.dtype.itemsize),
                "out_of_core": e.streamed,
                "stored": storage_record(storage.layers[e.module]) if storage else None,
            }
            for e in content.layers
        },
        "tasks": {
            e.name: {
                "format": e.summary.format,
                "source": e.summary.source,
                "layers": e.summary.modules,
                "bound": e.summary.bound,
                "bound_of_whole": of_whole.get(e.name, e.summary.bound),
                "started_from": starts.get(e.name, {}),
                "measured": e.summary.measured,
                "coefficient_bytes": e.summary.coefficient_bytes,
                "adapter_bytes": e.summary.adapter_bytes,
                "stored": storage_record(storage.tasks[e.name]) if storage else None,
            }
            for e in content.tasks
        },
        "stored": storage_record(storage.total) if storage else None,
        "bytes": disk_bytes(opened),
    }


def bounds_of_whole(opened: Checkout) -> dict[str, float]:
    """Task that started from known ones -> bound on its error, relative to its whole update.

    Its ledger is relative to what was learned. Reads the coefficients of these tasks alone.
    """
    bounds: dict[str, float] = {}
    for entry in opened.manifest.content.tasks:
        whole = stored_norm(opened.model, entry.name) if entry.started_from else 0.0
        if whole:
            learned = opened.model.tasks[entry.name].ledger.total_norm
            bounds[entry.name] = entry.summary.bound * learned / whole
    return bounds


def model_storage(opened: Checkout) -> ModelStorage:
    """Count a version's updates; reads the coefficients of all tasks, one task at a time."""
    dimensions = {entry.module: entry for entry in opened.manifest.content.layers}
    return tally_storage(_tasks(opened), dimensions)


def _tasks(opened: Checkout) -> Iterator[Task]:
    """Every task; one that was read for this alone is not remembered."""
    tasks = opened.model.tasks
    # ``peek`` of a store's tasks reads one without caching it: a thousand would fill the memory.
    return map(getattr(tasks, "peek", tasks.__getitem__), tasks)


def storage_record(tally: StorageTally) -> dict[str, dict[str, int]]:
    """How many updates are stored in each way, and their bytes."""
    kinds = ("whole", "leading", "per_task", "nothing")
    return {
        kind: {"updates": getattr(tally, kind).updates, "bytes": getattr(tally, kind).nbytes}
        for kind in kinds
    }


def basis_bytes(layer: LayerEntry, itemsize: int) -> int:
    """Bytes of a layer's two bases, in numbers of ``itemsize`` bytes."""
    shape, (left, right) = layer.shape, layer.k
    return (shape.out_features * left + shape.in_features * right) * itemsize


def disk_bytes(opened: Checkout) -> dict[str, int]:
    """Bytes of the version's files, headers included; a file that two tasks share counts once."""
    content = opened.manifest.content
    total = sum(ref.bytes for ref in content.files.values())
    coefficients = sum(e.summary.coefficient_bytes for e in content.tasks)
    return {
        "basis": content.basis.bytes,
        "coefficients": coefficients,
        "other": total - content.basis.bytes - coefficients,
        "total": total,
        "adapters": sum(e.summary.adapter_bytes for e in content.tasks),
    }


def version_record(version: Version) -> JsonRecord:
    return {
        "version": version.number,
        "created": version.created,
        "verb": version.operation.verb,
        "about": list(version.operation.tasks),
        "tasks": version.task_count,
    }


def pruned_record(pruned: Pruned) -> JsonRecord:
    return {"versions": list(pruned.versions), "files": pruned.files, "bytes": pruned.bytes}


def verification_record(report: Report) -> JsonRecord:
    return {
        "ok": report.ok,
        "versions": list(report.versions),
        "files": len(report.findings),
        "damaged": [
            {"version": f.version, "file": f.file, "status": f.status, "detail": f.detail}
            for f in report.damaged
        ],
    }


def report_record(written: WrittenReport) -> JsonRecord:
    return {
        "path": str(written.path),
        "bytes": written.bytes,
        "version": written.version,
        "notices": [asdict(notice) for notice in written.notices],
    }


def gathered_record(gathered: Gathered) -> JsonRecord:
    return {
        "version": gathered.version,
        "merged": {arrival.task: arrival.id for arrival in gathered.merged},
        "quarantined": [asdict(refusal) for refusal in gathered.refused],
        "repeated": list(gathered.repeated),
        "losses": {loss.task: loss.bound for loss in gathered.losses},
    }


def stream_record(result: StreamResult) -> JsonRecord:
    tasks = {learned.task: asdict(learned) for learned in result.learned}
    return {
        "share": str(result.share),
        "version": result.version,
        "tasks": {n: {k: v for k, v in t.items() if k != "task"} for n, t in tasks.items()},
        "steps": [step.name for step in result.steps],
        "matrix": result.matrix.to_record() if result.matrix else None,
        "scores": {name: asdict(score) for name, score in result.scores.items()},
        "measures": result.measures,
        "bytes": dict(result.steps[-1].bytes),
        "router": router_record(result.router) if result.router else None,
        "notices": list(result.notices),
    }


def router_record(router: RouterResult) -> JsonRecord:
    record = {k: v for k, v in router.to_record().items() if k != "notices"}
    return {"path": str(router.path), **record, "means": router.means}
