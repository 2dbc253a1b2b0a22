"""A task as a tensor file, and back: its coefficients, its ledger and its metadata.

A merge that enlarges the basis adds zero rows to the coefficients of every old task. They are not
written, and put back on reading, so that such a merge changes no old task's file. Nor are the rows
before the subspace of a task's group written: the offset of that subspace is written instead (key
``begin``, docs/format.md).
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
from sharespace.subspace.coefficients import KINDS, Coefficients
from sharespace.subspace.layer import group_size
from sharespace.subspace.state import Ledger, Task

_NORMS = "ledger.norms"
_TRUNCATIONS = "ledger.truncations"

_KEYS = tuple(key for kind in KINDS for key in kind.keys)
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
        f"{module}.{key}": tensor
        for module, value in task.coefficients.items()
        for key, tensor in value.stored_tensors().items()
    }
    return {**coefficients, _NORMS: task.ledger.norms, _TRUNCATIONS: task.ledger.truncations}


def summarise(task: Task) -> TaskSummary:
    """What a manifest says about a task."""
    return TaskSummary(
        format=task.provenance.format,
        source=task.provenance.source,
        adapter_bytes=task.adapter_bytes,
        coefficient_bytes=sum(c.nbytes for c in task.coefficients.values()),
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
    why = coefficients.misfit(layers[module], dtype)
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
        **_offsets_to_json(task),
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


def _offsets_to_json(task: Task) -> dict[str, object]:
    # Left out where there are none: files of layers with one subspace keep the bytes that they had
    # in schema version 1.
    offsets = {
        module: list(value.offset)
        for module, value in task.coefficients.items()
        if value.offset != (0, 0)
    }
    return {"begin": offsets} if offsets else {}


def _not_json(task: str, why: str) -> StoreError:
    remedy = "Give it text, numbers, true, false, null, lists and objects only"
    return StoreError(f"task {task!r}", f"its config or provenance is not JSON: {why}", remedy)


def read_task(
    opened: OpenedFile,
    name: str,
    layers: Mapping[str, LayerEntry],
    dtype: torch.dtype,
) -> Task:
    """A task from its file, its coefficients padded with zeros to the layers' k.

    What is not in that file (what it keeps, its files and labels) is not in the task either.

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
    rest = names - {_NORMS, _TRUNCATIONS}
    if rest:
        raise corrupt(file, f"tensors that belong to no module: {sorted(rest)[:5]}")
    return Task(
        name=name,
        coefficients=coefficients,
        ledger=ledger,
        config=metadata.mapping("config"),
        provenance=_read_provenance(metadata.child("provenance")),
        adapter_bytes=metadata.whole("adapter_bytes"),
    )


def _read_offsets(metadata: JsonFields) -> dict[str, tuple[int, int]]:
    if not metadata.has("begin"):
        return {}
    fields, offsets = metadata.child("begin"), {}
    for module in metadata.mapping("begin"):
        left, right = fields.wholes(module, count=2)
        offsets[module] = left, right
    return offsets


def _read_module(
    opened: OpenedFile,
    names: set[str],
    layer: LayerEntry,
    offset: tuple[int, int],
    dtype: torch.dtype,
) -> Coefficients:
    keys = _take_keys(names, layer.module)
    tensors = {key: opened.matrix(f"{layer.module}.{key}", dtype) for key in keys}
    if any(max(t.shape) > layer.shape.sides for t in tensors.values()):
        # Refused before padding: a matrix without rows may claim any number of columns.
        raise corrupt(str(opened.path), f"module {layer.module!r}: larger than {layer.shape}")
    if group_size(layer, offset) is None:
        why = f"module {layer.module!r}: begins at {offset}, where no subspace begins"
        raise corrupt(str(opened.path), why)
    kind = next((kind for kind in KINDS if kind.keys == keys), None)
    if kind is None:
        raise corrupt(str(opened.path), f"module {layer.module!r} has the tensors {keys}")
    coefficients = kind.from_stored(tensors, layer.k, offset)
    why = coefficients.misfit(layer, dtype)
    if why:
        raise corrupt(str(opened.path), f"module {layer.module!r}: {why}")
    return coefficients


def _take_keys(names: set[str], module: str) -> tuple[str, ...]:
    """The last components of a module's keys, which are taken out of the names."""
    keys = tuple(key for key in _KEYS if f"{module}.{key}" in names)
    names.difference_update(f"{module}.{key}" for key in keys)
    return keys


def _read_ledger(opened: OpenedFile, fields: JsonFields, needed: set[str]) -> Ledger:
    modules, events = fields.texts("modules"), fields.texts("events")
    norms = opened.tensor(_NORMS).clone()
    truncations = opened.matrix(_TRUNCATIONS, torch.float64).clone()
    if norms.dtype != torch.float64 or tuple(norms.shape) != (len(modules),):
        raise corrupt(str(opened.path), f"{_NORMS}: {norms.dtype} {list(norms.shape)}")
    if tuple(truncations.shape) != (len(modules), len(events)):
        raise corrupt(str(opened.path), f"{_TRUNCATIONS}: {list(truncations.shape)}")
    if len(set(modules)) != len(modules) or needed - set(modules):
        fields.wrong("modules", "not each module once")
    return Ledger(modules, norms, truncations, events)


def _read_provenance(fields: JsonFields) -> Provenance:
    return Provenance(
        format=fields.text("format"),
        source=fields.text("source"),
        sha256=fields.text_or_null("sha256"),
    )
