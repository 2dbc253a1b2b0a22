"""Tensors come out as they went in: bits, dtype, shape, strides."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import gauss, law
from sharespace.subspace.executor import dumps, loads

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)


def view(tensor: Tensor, kind: str) -> Tensor:
    """A view as it occurs: transposed, columns, rows, steps, one row for many, nothing."""
    views = {
        "whole": tensor,
        "transposed": tensor.mT,
        "columns": tensor[:, 1:3],
        "rows": tensor[2:],
        "steps": tensor[::2, ::3],
        "repeated": tensor[:1].expand(4, -1),
        "empty": tensor[:, :0],
        "number": tensor[1, 1],
    }
    return views[kind]


KINDS = ("whole", "transposed", "columns", "rows", "steps", "repeated", "empty", "number")


@law(60)
@given(
    rows=st.integers(3, 9),
    columns=st.integers(4, 9),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
)
def test_a_tensor_is_the_same_to_the_bit(
    rows: int, columns: int, dtype: torch.dtype, kind: str
) -> None:
    tensor = view((3 * gauss(rows, rows, columns)).to(dtype), kind)
    found = loads(dumps(tensor))
    assert (found.dtype, found.shape, found.stride()) == (
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
    )
    assert torch.equal(found, tensor)


def test_not_a_number_and_infinity_travel() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    assert torch.equal(loads(dumps(odd)).view(torch.int32), odd.view(torch.int32))


def test_a_view_leaves_the_rest_of_its_storage_behind() -> None:
    whole = torch.zeros(1_000_000)
    assert len(dumps(whole[:10])) < 1000


def test_what_arrives_is_aligned_and_can_be_written_to() -> None:
    found = loads(dumps([torch.ones(3), torch.ones(5)]))[1]
    found += 1
    assert found.tolist() == [2.0] * 5
    assert found.data_ptr() % 64 == 0


def test_a_trained_parameter_arrives_as_plain_numbers() -> None:
    found = loads(dumps(torch.nn.Parameter(torch.ones(2))))
    assert type(found) is Tensor
    assert not found.requires_grad


def test_read_only_mappings_stay_read_only() -> None:
    found = loads(dumps(MappingProxyType({"a": (1, torch.ones(1))})))
    assert dict(found)["a"][0] == 1
    with pytest.raises(TypeError):
        found["b"] = 2
