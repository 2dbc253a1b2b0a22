"""A task <-> its tensor file: coefficients, ledger, metadata.

Coefficients <-> the tensors that stand for them on disk.

A merge that enlarges the basis adds zero rows to the coefficients of every old task. They are not
written, and put back on reading, so that such a merge changes no old task's file. Nor are the rows
before a family's own subspace: where it begins is written instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from sharespace.errors import MismatchError, StoreError
from sharespace.store.layout import LayerEntry, TaskSummary, corrupt
from sharespace.store.objects import OpenedFile, TensorFile, tensor_file
from sharespace.strict_json import JsonFields, parse_json
from sharespace.subspace.adapter import Provenance
from sharespace.subspace.coefficients import group_offsets
from sharespace.subspace.state import Coefficients, Core, Factors, Ledger, PerTask, Task

NORMS = "ledger.norms"

TRUNCATIONS = "ledger.truncations"

ALL_PARTS = ("left", "right", "core", "private_left", "private_right")
"""Last components of the keys in a task's file."""


def task_file(task: Task, layers: Mapping[str, LayerEntry], dtype: torch.dtype) -> TensorFile:
    """Plan a task's file; its name and what is kept are not in it.

    Raises:
        MismatchError: coefficients do not fit the layers or the dtype.
        StoreError: a value is not finite, or the config is not JSON.
    """
    for module, coefficients in task.coefficients.items():
        _check_fit(task.name, module, coefficients, layers, dtype)
    _check_ledger(task)
    tensors = tensors_of(task)
    refuse_non_finite(f"task {task.name!r}", tensors)
    return tensor_file("task", tensors, _metadata(task))


def tensors_of(task: Task) -> dict[str, Tensor]:
    """The tensors of a task's file: coefficients without trailing zero rows, and the ledger."""
    coefficients = {
        f"{module}.{part}": tensor
        for module, found in task.coefficients.items()
        for part, tensor in parts_of(found).items()
    }
    return {**coefficients, NORMS: task.ledger.norms, TRUNCATIONS: task.ledger.truncations}


def summarise(task: Task) -> TaskSummary:
    """What a manifest says about a task."""
    return TaskSummary(
        format=task.provenance.format,
        source=task.provenance.source,
        adapter_bytes=task.adapter_bytes,
        coefficient_bytes=sum(
            t.numel() * t.element_size()
            for c in task.coefficients.values()
            for t in parts_of(c).values()
        ),
        modules=len(task.coefficients),
        norm=task.ledger.total_norm,
        bound=task.ledger.bound,
        measured=task.ledger.measured,
    )


def refuse_non_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Check values before anything is written.

    Raises:
        StoreError: a tensor has a NaN or an infinity.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            why = f"{name} has values that are not finite"
            raise StoreError(what, why, "Look for a training that diverged, or an overflow in fp16")


def _check_fit(
    task: str,
    module: str,
    coefficients: Coefficients,
    layers: Mapping[str, LayerEntry],
    dtype: torch.dtype,
) -> None:
    if module not in layers:
        raise MismatchError(f"task {task!r}", f"the model has no module {module!r}")
    why = misfit(coefficients, layers[module], dtype)
    if why:
        raise MismatchError(f"task {task!r}, module {module}", why)


def _check_ledger(task: Task) -> None:
    ledger = task.ledger
    shape = (len(ledger.modules), len(ledger.events))
    fits = tuple(ledger.norms.shape) == shape[:1] and tuple(ledger.truncations.shape) == shape
    missing = set(task.coefficients) - set(ledger.modules)
    if not fits or missing or len(set(ledger.modules)) != shape[0]:
        why = f"its ledger has {shape[0]} modules and {shape[1]} events, which do not fit"
        raise MismatchError(f"task {task.name!r}", f"{why} {sorted(missing) or 'its tensors'}")
    if {ledger.norms.dtype, ledger.truncations.dtype} != {torch.float64}:
        raise MismatchError(f"task {task.name!r}", "its ledger is not float64")


def _metadata(task: Task) -> str:
    value = {
        "modules": list(task.coefficients),
        **_begins_to_json(task),
        "ledger": {"modules": list(task.ledger.modules), "events": list(task.ledger.events)},
        "config": dict(task.config),
        "provenance": asdict(task.provenance),
        "adapter_bytes": task.adapter_bytes,
    }
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
        same = parse_json(text, ValueError) == value
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(task.name, str(error)) from error
    if not same:
        raise _not_json(
            task.name, "JSON gives back something else (a tuple, a key that is no text)"
        )
    return text


def _begins_to_json(task: Task) -> dict[str, object]:
    """Left out where there are none: files of layers with one subspace stay as they were."""
    found = {
        module: list(value.offset)
        for module, value in task.coefficients.items()
        if not isinstance(value, PerTask) and value.offset != (0, 0)
    }
    return {"begin": found} if found else {}


def _read_offsets(metadata: JsonFields) -> dict[str, tuple[int, int]]:
    if not metadata.has("begin"):
        return {}
    fields, found = metadata.child("begin"), {}
    for module in metadata.mapping("begin"):
        left, right = fields.wholes(module, count=2)
        found[module] = left, right
    return found


def _not_json(task: str, why: str) -> StoreError:
    remedy = "Give it text, numbers, true, false, null, lists and objects only"
    return StoreError(f"task {task!r}", f"its config or provenance is not JSON: {why}", remedy)


def read_task(
    opened: OpenedFile,
    name: str,
    kept: Mapping[str, Tensor],
    layers: Mapping[str, LayerEntry],
    dtype: torch.dtype,
) -> Task:
    """A task from its file, its coefficients padded with zeros to the layers' k.

    Raises:
        CorruptStoreError: keys, shapes, dtypes or metadata are not those of a task.
    """
    file = str(opened.path)
    make_error = partial(corrupt, file)
    metadata = JsonFields(parse_json(opened.metadata, make_error), make_error, "metadata")
    names = set(opened.names)
    coefficients: dict[str, Coefficients] = {}
    offsets = _read_offsets(metadata)
    for module in metadata.texts("modules"):
        if module not in layers or module in coefficients:
            raise corrupt(file, f"module {module!r} is twice there, or not in the manifest")
        offset = offsets.get(module, (0, 0))
        coefficients[module] = _read_module(opened, names, layers[module], offset, dtype)
    ledger = _read_ledger(opened, metadata.child("ledger"), set(coefficients))
    rest = names - {NORMS, TRUNCATIONS}
    if rest:
        raise corrupt(file, f"tensors that belong to no module: {sorted(rest)[:5]}")
    return Task(
        name=name,
        coefficients=coefficients,
        ledger=ledger,
        kept=kept,
        config=metadata.mapping("config"),
        provenance=_read_provenance(metadata.child("provenance")),
        adapter_bytes=metadata.whole("adapter_bytes"),
    )


def _read_module(
    opened: OpenedFile,
    names: set[str],
    layer: LayerEntry,
    offset: tuple[int, int],
    dtype: torch.dtype,
) -> Coefficients:
    found = _take(names, layer.module)
    tensors = [opened.matrix(f"{layer.module}.{part}", dtype) for part in found]
    if any(max(t.shape) > layer.shape.sides for t in tensors):
        # Refused before padding: a matrix without rows may claim any number of columns.
        raise corrupt(str(opened.path), f"module {layer.module!r}: larger than {layer.shape}")
    if offset not in group_offsets(layer.groups or (layer.k,)):
        why = f"module {layer.module!r}: begins at {offset}, where no subspace begins"
        raise corrupt(str(opened.path), why)
    coefficients = from_parts(found, tensors, layer.k, offset)
    if coefficients is None:
        raise corrupt(str(opened.path), f"module {layer.module!r} has the tensors {found}")
    why = misfit(coefficients, layer, dtype)
    if why:
        raise corrupt(str(opened.path), f"module {layer.module!r}: {why}")
    return coefficients


def _take(names: set[str], module: str) -> tuple[str, ...]:
    """The parts that a module has, taken out of the names."""
    found = tuple(part for part in ALL_PARTS if f"{module}.{part}" in names)
    names.difference_update(f"{module}.{part}" for part in found)
    return found


def _read_ledger(opened: OpenedFile, fields: JsonFields, needed: set[str]) -> Ledger:
    modules, events = fields.texts("modules"), fields.texts("events")
    norms = opened.tensor(NORMS).clone()
    truncations = opened.matrix(TRUNCATIONS, torch.float64).clone()
    if norms.dtype != torch.float64 or tuple(norms.shape) != (len(modules),):
        raise corrupt(str(opened.path), f"{NORMS}: {norms.dtype} {list(norms.shape)}")
    if tuple(truncations.shape) != (len(modules), len(events)):
        raise corrupt(str(opened.path), f"{TRUNCATIONS}: {list(truncations.shape)}")
    if len(set(modules)) != len(modules) or needed - set(modules):
        fields.wrong("modules", "not each module once")
    return Ledger(modules, norms, truncations, events)


def _read_provenance(fields: JsonFields) -> Provenance:
    return Provenance(
        format=fields.text("format"),
        source=fields.text("source"),
        sha256=fields.text_or_null("sha256"),
    )


def parts_of(coefficients: Coefficients) -> dict[str, Tensor]:
    """The tensors that are stored, by the last component of their key: no trailing zero rows, and
    none before the subspace that they offset in."""
    if isinstance(coefficients, Factors):
        rows, columns = coefficients.offset
        left, right = coefficients.left[rows:], coefficients.right[columns:]
        return {"left": left[: _rows(left)], "right": right[: _rows(right)]}
    if isinstance(coefficients, Core):
        rows, columns = coefficients.offset
        matrix = coefficients.matrix[rows:, columns:]
        return {"core": matrix[: _rows(matrix), : _rows(matrix.T)]}
    return {"private_left": coefficients.left, "private_right": coefficients.right}


def _rows(matrix: Tensor) -> int:
    """Number of rows up to the last that is not zero; a row with -0.0 is not zero."""
    if matrix.numel() == 0:
        return 0
    if matrix[-1].any():
        return matrix.shape[0]
    used = (matrix != 0) | matrix.signbit()
    found = used.any(dim=1).nonzero()
    return int(found[-1]) + 1 if len(found) else 0


def from_parts(
    parts: tuple[str, ...],
    tensors: list[Tensor],
    k: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
) -> Coefficients | None:
    """Coefficients from stored tensors, padded with zeros to k; None: not a set of parts.

    The result is a copy; whether it fits is for ``misfit`` to say.

    Args:
        offset: directions before those of the tensors.
    """
    if parts == ("left", "right"):
        left, right = (
            _pad(matrix, (before, 0), (most, matrix.shape[1]))
            for matrix, before, most in zip(tensors, offset, k, strict=True)
        )
        return Factors(left, right, offset=offset)
    if parts == ("core",):
        return Core(_pad(tensors[0], offset, k), offset=offset)
    if parts == ("private_left", "private_right"):
        return PerTask(tensors[0].clone(), tensors[1].clone())
    return None


def _pad(matrix: Tensor, offset: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A copy with zeros around it; one that is too large stays so, to be refused."""
    (above, before), (rows, columns) = offset, matrix.shape
    padded = matrix.new_zeros((max(size[0], above + rows), max(size[1], before + columns)))
    padded[above : above + rows, before : before + columns] = matrix
    return padded


def misfit(coefficients: Coefficients, layer: LayerEntry, dtype: torch.dtype) -> str:
    """Why the coefficients do not fit the layer; empty where they do."""
    k_left, k_right = layer.k
    if isinstance(coefficients, Core):
        tensors, wanted = [coefficients.matrix], [(k_left, k_right)]
    else:
        tensors = [coefficients.left, coefficients.right]
        columns = coefficients.left.shape[-1] if coefficients.left.ndim else 0
        private = isinstance(coefficients, PerTask)
        rows = (layer.shape.out_features, layer.shape.in_features) if private else layer.k
        wanted = [(rows[0], columns), (rows[1], columns)]
        if columns > layer.shape.sides:
            return f"{columns} columns, more than any matrix of {layer.shape} has directions"
    if not isinstance(coefficients, PerTask) and not _may_start(coefficients, layer):
        return f"begins at {coefficients.offset}, where no subspace begins or something is before"
    found = [tuple(t.shape) for t in tensors]
    if found != wanted:
        return f"{type(coefficients).__name__} of shapes {found} where {wanted} belongs"
    dtypes = {t.dtype for t in tensors} - {dtype}
    return f"dtype {dtypes.pop()} in a model of {dtype}" if dtypes else ""


def _may_start(found: Factors | Core, layer: LayerEntry) -> bool:
    """At one of the layer's subspaces, and all before it is zero."""
    rows, columns = found.offset
    if found.offset not in group_offsets(layer.groups or (layer.k,)):
        return False
    if isinstance(found, Core):
        return not (found.matrix[:rows].any() or found.matrix[:, :columns].any())
    return not (found.left[:rows].any() or found.right[:columns].any())
