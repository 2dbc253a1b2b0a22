"""Small Share models for the tests, with every kind of coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sharespace.subspace.adapter import BaseModel, ModuleShape, Provenance
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import Certificate, LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task

WEIRD_NAMES = ("../../etc/passwd", "line\nbreak", "lone \ud800 surrogate", "a/b", "日本語 🎉", " ")

SHAPES = {
    "encoder.layer.10.query": ModuleShape(7, 5),
    "encoder.layer.2.query": ModuleShape(6, 9),
    "unet.conv_in": ModuleShape(8, 36, "conv", (3, 3)),
}
K = (3, 4)


def orthonormal(rows: int, columns: int, seed: int, dtype: torch.dtype) -> Tensor:
    q: Tensor = torch.linalg.qr(values(seed, rows, columns))[0]
    return q.to(dtype)


def values(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def ledger(modules: tuple[str, ...], seed: int = 0) -> Ledger:
    norms = values(seed, len(modules)).abs()
    return Ledger(modules, norms, (norms / 7)[:, None], ("init",))


def task(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **more: Any) -> Task:
    """Factors, Core and PerTask in one task."""
    k_left, k_right = K
    factors, core, private = SHAPES
    shape = SHAPES[private]
    found: dict[str, Coefficients] = {
        factors: Factors(
            values(seed + 1, k_left, 2).to(dtype), values(seed + 2, k_right, 2).to(dtype)
        ),
        core: Core(values(seed + 3, k_left, k_right).to(dtype)),
        private: PerTask(
            values(seed + 4, shape.out_features, 1).to(dtype),
            values(seed + 5, shape.in_features, 1).to(dtype),
        ),
    }
    fields: dict[str, Any] = {
        "kept": {"classifier.weight": values(seed + 6, 2, 3).half(), "steps": torch.tensor(7)},
        "config": {"r": 2, "target_modules": ["query"], "bias": None, "é\ud800": {"x": 1.5}},
        "provenance": Provenance("peft", "someone/adapter", "ab" * 32),
        "adapter_bytes": 1234,
        **more,
    }
    return Task(name, found, ledger(tuple(SHAPES), seed), **fields)


def layers(dtype: torch.dtype = torch.float32, k: tuple[int, int] = K) -> dict[str, LayerSubspace]:
    return {
        module: LayerSubspace(
            shape,
            orthonormal(shape.out_features, k[0], i, dtype),
            orthonormal(shape.in_features, k[1], 100 + i, dtype),
            cap=(4, 5) if i else None,
            certificate=Certificate(0.1, 0.0, 1e-300) if i else None,
        )
        for i, (module, shape) in enumerate(SHAPES.items())
    }


def model(
    names: tuple[str, ...] = ("a", "b"), dtype: torch.dtype = torch.float32, **more: Any
) -> ShareModel:
    fields: dict[str, Any] = {
        "base": BaseModel("org/base", "main"),
        "settings": BuildSettings(p=2, cap=5, budget=10**7, seed=-3),
        "dtype": dtype,
        "layers": layers(dtype),
        "tasks": {name: task(name, 10 * i, dtype) for i, name in enumerate(names)},
        **more,
    }
    return ShareModel(**fields)


def assert_same(found: ShareModel, wanted: ShareModel) -> None:
    """Bit for bit, orders included (what is kept has no order)."""
    assert (found.base, found.settings, found.dtype) == (wanted.base, wanted.settings, wanted.dtype)
    assert list(found.layers) == list(wanted.layers)
    for module, layer in wanted.layers.items():
        other = found.layers[module]
        assert (other.shape, other.cap, other.certificate) == (
            layer.shape,
            layer.cap,
            layer.certificate,
        )
        assert_bits(other.left_basis, layer.left_basis)
        assert_bits(other.right_basis, layer.right_basis)
    assert_same_tensors(found.base_samples, wanted.base_samples)
    assert list(found.tasks) == list(wanted.tasks)
    for name, wanted_task in wanted.tasks.items():
        assert_same_task(found.tasks[name], wanted_task)


def assert_same_task(found: Task, wanted: Task) -> None:
    assert (found.name, found.config, found.provenance, found.adapter_bytes) == (
        wanted.name,
        wanted.config,
        wanted.provenance,
        wanted.adapter_bytes,
    )
    assert list(found.coefficients) == list(wanted.coefficients)
    for module, coefficients in wanted.coefficients.items():
        assert type(found.coefficients[module]) is type(coefficients)
        assert_same_coefficients(vars(found.coefficients[module]), vars(coefficients))
    assert (found.ledger.modules, found.ledger.events) == (
        wanted.ledger.modules,
        wanted.ledger.events,
    )
    assert_bits(found.ledger.norms, wanted.ledger.norms)
    assert_bits(found.ledger.truncations, wanted.ledger.truncations)
    assert_same_tensors(found.kept, wanted.kept)
    assert_same_tensors(found.files, wanted.files)
    assert (found.labels, found.started_from) == (wanted.labels, wanted.started_from)


def assert_same_coefficients(found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            mine = found[name]
            assert isinstance(mine, Tensor)
            assert_bits(mine, value)
        else:
            assert found[name] == value


def assert_same_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert_bits(found[name], tensor)


def assert_bits(found: Tensor, wanted: Tensor) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(bits(found), bits(wanted))


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
