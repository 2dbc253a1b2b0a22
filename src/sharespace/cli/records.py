"""What ``--json`` prints: plain JSON values of results. Names here are an interface."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sharespace.cli import stored
from sharespace.share import Share
from sharespace.store import Checkout, Pruned, Report, Version
from sharespace.store.layout import LayerEntry
from sharespace.subspace.fidelity import Bytes, Fidelity
from sharespace.subspace.nulls import Nulls
from sharespace.subspace.plan import Plan
from sharespace.subspace.stored import Storing

if TYPE_CHECKING:
    from sharespace.page import Written
    from sharespace.stream import RouterResult, StreamResult


def bytes_record(sizes: Bytes) -> dict[str, int]:
    return {
        "basis": sizes.basis,
        "coefficients": sizes.coefficients,
        "other": sizes.other,
        "total": sizes.total,
        "adapters": sizes.adapters,
    }


def fidelity_record(found: Fidelity, nulls: Nulls | None = None) -> dict[str, Any]:
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
    return record if nulls is None else {**record, "nulls": nulls_record(nulls)}


def nulls_record(nulls: Nulls) -> dict[str, Any]:
    return {
        "mean_adapter": dict(nulls.mean_adapter),
        "random_basis": dict(nulls.random_basis),
        "own_svd": dict(nulls.own_svd),
        "shared": nulls.shared,
        "shared_fraction": dict(nulls.shared_fraction),
    }


def plan_record(plan: Plan) -> dict[str, Any]:
    return {
        "verdict": plan.verdict,
        "reason": plan.reason,
        "break_even": plan.break_even,
        "paper_count": {
            "parameters": plan.paper_count.parameters,
            "bytes": plan.paper_count.nbytes,
        },
        "k": {m: list(k) for m, k in plan.dimensions.items()},
        "private_modules": plan.private_modules,
        "budget": plan.budget,
        "storage": asdict(plan.storage),
        **fidelity_record(plan.fidelity, plan.nulls),
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


def info_record(found: Checkout, storing: Storing | None = None) -> dict[str, Any]:
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
                "parts": [list(part) for part in e.parts],
                "cap": list(e.cap) if e.cap else None,
                "basis_bytes": _basis_bytes(e, content.dtype.itemsize),
                "out_of_core": e.streamed,
                "stored": stored.record(storing.layers[e.module]) if storing else None,
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
                "stored": stored.record(storing.tasks[e.name]) if storing else None,
            }
            for e in content.tasks
        },
        "stored": stored.record(storing.total) if storing else None,
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


def pruned_record(pruned: Pruned | None) -> dict[str, Any] | None:
    if pruned is None:
        return None
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
