"""A reader of Share models written from docs/format.md alone: numpy and the standard library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "BOOL": "?",
    "U8": "u1",
    "BF16": "<u2",
}
"""bfloat16 is read as its bits, which numpy has no type for."""


def read_json(path: Path, sha256: str | None = None) -> dict[str, Any]:
    data = path.read_bytes()
    assert sha256 is None or hashlib.sha256(data).hexdigest() == sha256
    value: dict[str, Any] = json.loads(data)
    assert value["format"] == "sharespace"
    assert value["schema_version"] in (1, 2, 3)
    return value


def read_current(store: Path) -> dict[str, Any]:
    head = read_json(store / "share.json")
    return read_json(store / head["current"], head["sha256"])


def read_object(store: Path, ref: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors and metadata."""
    data = (store / ref["file"]).read_bytes()
    assert len(data) == ref["bytes"]
    assert hashlib.sha256(data).hexdigest() == ref["sha256"]
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata = json.loads(header.pop("__metadata__", {"sharespace": "{}"})["sharespace"])
    tensors: dict[str, Array] = {}
    for key, about in header.items():
        first, last = (begin + offset for offset in about["data_offsets"])
        flat = np.frombuffer(data[first:last], DTYPES[about["dtype"]])
        tensors[key] = flat.reshape(about["shape"])
    return tensors, metadata


def padded(
    matrix: Array, rows: int, columns: int, begin: tuple[int, int] = (0, 0)
) -> NDArray[np.float64]:
    (first, left), found = begin, np.zeros((rows, columns))
    found[first : first + matrix.shape[0], left : left + matrix.shape[1]] = matrix
    return found


def updates(store: Path, manifest: dict[str, Any], name: str) -> dict[str, NDArray[np.float64]]:
    """Module -> dW of a task, n x d, in float64."""
    basis, _ = read_object(store, manifest["basis"])
    (task,) = [task for task in manifest["tasks"] if task["name"] == name]
    tensors, metadata = read_object(store, task["coefficients"])
    layers = {layer["module"]: layer for layer in manifest["layers"]}
    found = {}
    for module in metadata["modules"]:
        parts = {
            part: tensors[f"{module}.{part}"]
            for part in ("left", "right", "core", "private_left", "private_right")
            if f"{module}.{part}" in tensors
        }
        left, right = metadata.get("begin", {}).get(module, (0, 0))
        found[module] = update(parts, basis, layers[module], (left, right))
    return found


def update(
    parts: dict[str, Array],
    basis: dict[str, Array],
    layer: dict[str, Any],
    begin: tuple[int, int],
) -> NDArray[np.float64]:
    if "private_left" in parts:
        left, right = parts["private_left"], parts["private_right"]
        return np.asarray(left.astype(np.float64) @ right.T.astype(np.float64), dtype=np.float64)
    k_left, k_right = layer["k_left"], layer["k_right"]
    if "core" in parts:
        core = padded(parts["core"], k_left, k_right, begin)
    else:
        p = parts["left"].shape[1]
        left = padded(parts["left"], k_left, p, (begin[0], 0))
        core = left @ padded(parts["right"], k_right, p, (begin[1], 0)).T
    wide = [
        basis[f"{layer['module']}.{side}_basis"].astype(np.float64) for side in ("left", "right")
    ]
    return np.asarray(wide[0] @ core @ wide[1].T, dtype=np.float64)


def files_of(store: Path, task: dict[str, Any]) -> dict[str, bytes]:
    """Name -> bytes of the tokenizer's files that a task came with."""
    if "files" not in task:
        return {}
    tensors, metadata = read_object(store, task["files"])
    assert metadata == {}
    assert all(tensor.dtype == np.uint8 and tensor.ndim == 1 for tensor in tensors.values())
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def sampled(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sampled values of a base weight, n x d."""
    n, d = weight.shape
    rows = [(2 * i + 1) * n // (2 * min(n, 8)) for i in range(min(n, 8))]
    columns = [(2 * j + 1) * d // (2 * min(d, 16)) for j in range(min(d, 16))]
    return weight[np.ix_(rows, columns)]


def is_base(store: Path, manifest: dict[str, Any], weights: dict[str, NDArray[np.float32]]) -> bool:
    """Whether these weights are those of the base that the tasks belong to."""
    tensors, metadata = read_object(store, manifest["base_model"]["digest"])
    assert metadata == {}
    for module, weight in weights.items():
        known, met = (
            tensors[f"{module}.rows"].astype(np.float64),
            sampled(weight).astype(np.float64),
        )
        allowed = 1.125 * 2.0**-8 * np.maximum(abs(known), abs(met)) + 2.0**-25
        if not (abs(known - met) <= allowed).all():
            return False
    return True
