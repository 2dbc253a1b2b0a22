"""Values as bytes for another process, tensors with their strides.

A view is sent without the rest of its storage (a basis is a view of a whole mapped file), and with
the strides it has: another order of the same numbers in memory may round differently.
"""

from __future__ import annotations

import io
import pickle
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def dumps(value: Any) -> bytes:
    """The value as bytes; tensors of any device go to the CPU."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(value)
    return stream.getvalue()


def loads(data: bytes) -> Any:
    """The value again.

    Unpickling runs code, so the bytes must come from ``dumps`` in a process that is trusted as
    this one is; the processes of a Dask cluster trust each other anyway.
    """
    return pickle.loads(data)  # noqa: S301 - see above


class _Pickler(pickle.Pickler):
    """Pickle, with tensors and read-only mappings by value."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return _tensor, _parts(value)
        if isinstance(value, MappingProxyType):
            return _read_only, (dict(value),)
        return NotImplemented


def _read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


def _parts(tensor: Tensor) -> tuple[Any, ...]:
    """(bytes, dtype, shape, strides); the bytes from the first number used to the last."""
    tensor = tensor.detach().cpu()
    shape, strides = tuple(tensor.shape), tensor.stride()
    span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    flat = tensor.as_strided((span if tensor.numel() else 0,), (1,))
    raw = flat.contiguous().view(torch.uint8).numpy()
    return pickle.PickleBuffer(raw.data), tensor.dtype, shape, strides


def _tensor(
    data: bytes, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Tensor:
    # In memory that torch allocated: aligned, and writable.
    raw = torch.empty(len(data), dtype=torch.uint8)
    raw.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
    return raw.view(dtype).as_strided(shape, strides)
