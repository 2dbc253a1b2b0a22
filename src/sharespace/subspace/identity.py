"""Which bases a Share model has, as one name that changes when a number in them does."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sharespace.subspace.state import ShareModel

_KNOWN: WeakKeyDictionary[ShareModel, str] = WeakKeyDictionary()


def basis_id(model: ShareModel) -> str:
    """SHA-256 (hex) over the bases of all layers: names, shapes, dtypes and bytes.

    Coefficients mean something only together with the bases they were trained in; two models with
    the same id have the same bases, bit for bit. Computed once per model.
    """
    if model not in _KNOWN:
        digest = hashlib.sha256()
        for name in sorted(model.layers):
            layer = model.layers[name]
            digest.update(name.encode("utf-8", "surrogatepass"))
            digest_basis(digest, layer.left_basis)
            digest_basis(digest, layer.right_basis)
        _KNOWN[model] = digest.hexdigest()
    return _KNOWN[model]


def digest_basis(digest: hashlib._Hash, basis: Tensor) -> None:
    """Add one basis to a digest."""
    digest.update(f"\t{tuple(basis.shape)}\t{basis.dtype}\n".encode())
    if basis.numel():
        digest.update(basis.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
