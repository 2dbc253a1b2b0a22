"""Adapters in memory."""

from __future__ import annotations

import pytest
import torch

from builders import adapter, update
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape


def test_shapes_ranks_dtype_and_bytes_come_from_the_tensors() -> None:
    updates = {
        "x": update(6, 4, 2, dtype=torch.float16),
        "y": update(5, 3, 1, dtype=torch.bfloat16),
    }
    found = Adapter.from_updates("a", updates, kept={"head": torch.zeros(7)})
    assert found.shapes == {"x": ModuleShape(6, 4), "y": ModuleShape(5, 3)}
    assert found.ranks == {"x": 2, "y": 1}
    assert found.dtype == torch.float32
    assert found.nbytes == 2 * (2 * 10 + 8) + 4 * 7
    assert found.layer("x") is updates["x"]


def test_a_convolution_states_its_shape() -> None:
    shape = ModuleShape(6, 18, "conv", (3, 3))
    found = adapter("a", {"conv": update(6, 18, 2)}, shapes={"conv": shape})
    assert found.shapes["conv"] == shape
    assert shape.in_channels == 2


def test_an_adapter_is_a_value() -> None:
    found = adapter("a", update(6, 4, 2), base=BaseModel("org/base"))
    other = found.with_name("b")
    assert (found.name, other.name, other.base) == ("a", "b", BaseModel("org/base"))
    with pytest.raises(TypeError):
        found.ranks["m"] = 3  # type: ignore[index]


def test_an_adapter_of_no_module_is_float32() -> None:
    empty: dict[str, LayerUpdate] = {}
    assert adapter("heads only", empty, kept={"h": torch.zeros(2)}).dtype == torch.float32
