"""A reader of contributions written from docs/format.md alone, with numpy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gather.workers import SHAPES, dense_of, plain, trained
from sharespace.gather import Contribution, encode
from sharespace.store import load
from store.stranger import DTYPES, Array, read_current, read_object

Matrix = NDArray[np.float64]


def read(name: str, data: bytes) -> tuple[dict[str, Any], dict[str, Matrix]]:
    assert name == f"contribution-{hashlib.sha256(data).hexdigest()}.safetensors"
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    value: dict[str, Any] = json.loads(header.pop("__metadata__")["sharespace"])
    assert value["format"] == "sharespace-contribution"
    assert value["schema_version"] == 1
    assert value["data_sha256"] == hashlib.sha256(data[begin:]).hexdigest()
    tensors = {}
    for key, about in header.items():
        first, last = (begin + offset for offset in about["data_offsets"])
        flat = np.frombuffer(data[first:last], DTYPES[about["dtype"]])
        tensors[key] = flat.reshape(about["shape"]).astype(np.float64)
    return value, tensors


def basis_id(store: Path) -> str:
    manifest = read_current(store)
    basis, _ = read_object(store, manifest["basis"])
    digest = hashlib.sha256()
    for module in sorted(layer["module"] for layer in manifest["layers"]):
        digest.update(module.encode())
        for side in ("left", "right"):
            matrix = basis[f"{module}.{side}_basis"]
            rows, columns = matrix.shape
            digest.update(f"\t({rows}, {columns})\ttorch.{manifest['dtype']}\n".encode())
            digest.update(matrix.tobytes())
    return digest.hexdigest()


def side(tensors: dict[str, Matrix], basis: Array, module: str, name: str) -> Matrix:
    parts = [basis.astype(np.float64)]
    if (key := f"update.{module}.{name}_temporary") in tensors:
        parts.append(tensors[key])
    found: Matrix = np.concatenate(parts, axis=1) @ tensors[f"update.{module}.{name}"]
    return found


@pytest.mark.parametrize("phi", [0, 2])
def test_a_trained_contribution(store: Path, phi: int) -> None:
    model = load(store)
    found = trained(model, "new", 3, phi=phi)
    value, tensors = read(*encode(found))
    assert value["task"] == "new"
    assert value["basis"] == {"id": basis_id(store), "version": 1}
    manifest = read_current(store)
    assert value["base_model"]["fingerprint"] == manifest["base_model"]["fingerprint"]
    bases, _ = read_object(store, manifest["basis"])
    for module in (entry["module"] for entry in value["modules"]):
        left, right = (
            side(tensors, bases[f"{module}.{name}_basis"], module, name)
            for name in ("left", "right")
        )
        check(left @ right.T, found, module, store)
    assert "kept.base_model.model.head.weight" in tensors


def test_plain_factors(store: Path) -> None:
    found = plain("lora", 4)
    value, tensors = read(*encode(found))
    assert value["basis"] is None
    for entry, scaling in zip(value["modules"], tensors["scalings"], strict=True):
        up, down = (tensors[f"update.{entry['module']}.{part}"] for part in ("up", "down"))
        check(scaling * up @ down, found, entry["module"], store)


def check(update: Matrix, found: Contribution, module: str, store: Path) -> None:
    assert module in SHAPES
    assert np.allclose(update, dense_of(load(store), found, module).numpy(), rtol=1e-6, atol=1e-9)
