"""One step of subspace iteration on a side's weighed Gram matrix, as a sum over chunks of tasks.

G = sum_i w_i^2 dW_i dW_i^T is never formed: dW_i dW_i^T x = B_i (A_i A_i^T) (B_i^T x).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.linalg.canonical import weights
from sharespace.linalg.row_chunks import Chunk, Measured


def width(k: int, side: int, columns: int) -> int:
    """Columns of a test matrix: a quarter more than are wanted, at least 8 more."""
    return min(k + max(8, k // 4), side, max(columns, 1))


def entered_weights(norms: Tensor, entry_norms: Tensor | None) -> Tensor:
    """float64 [tasks]: inverse norms of entry where they are known, else of the updates."""
    if entry_norms is None:
        return weights(norms)
    entered = entry_norms.to(norms)
    return weights(torch.where(entered.isnan(), norms, entered))


def chunk_weights(chunk: Chunk, entry_norms: Tensor | None) -> Tensor:
    """float64 [tasks of the chunk]."""
    return entered_weights(chunk.norms, None if entry_norms is None else entry_norms[chunk.tasks])


def sides(chunk: Measured) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(one factor's rows, the other one's Gram) of the left and of the right side."""
    return (chunk.left, chunk.right_gram), (chunk.right, chunk.left_gram)


def seen(factor: Tensor, columns: Tensor) -> Tensor:
    """m x r x l: B_i^T columns, for all rows in one product."""
    # The wide side last: a tenth faster than the product the other way round.
    rows = (columns.mT @ factor.flatten(0, 1).mT).mT.contiguous()
    return rows.reshape(*factor.shape[:2], -1)


def add_power(factor: Tensor, inner: Tensor, weighing: Tensor, test: Tensor, into: Tensor) -> None:
    """Add sum_i w_i^2 B_i inner_i (B_i^T columns), transposed, to ``into`` (l x n).

    Args:
        factor: m x r x n, B_i^T.
        inner: float64, m x r x r: A_i A_i^T, or what a frame sees of it.
        weighing: float64 [m], w_i.
        test: m x r x l, what the columns see of each task: B_i^T columns.
    """
    gains = (weighing.square()[:, None, None] * inner).to(factor.dtype)
    into.addmm_((gains @ test).flatten(0, 1).mT, factor.flatten(0, 1))


def zero_sum(columns: Tensor) -> Tensor:
    """Zeros like the columns (n x l), column by column in memory, as ``add_power`` takes them."""
    return columns.new_zeros(columns.shape[1], columns.shape[0]).mT


def orthonormal_columns(columns: Tensor) -> Tensor:
    """By QR in float64: small beside a chunk."""
    q: Tensor = torch.linalg.qr(columns.double())[0]
    return q.to(columns.dtype)


def normal(columns: Tensor) -> Tensor:
    """Columns of length 1, zero ones as they are."""
    tiny = torch.finfo(columns.dtype).tiny
    result: Tensor = columns / torch.linalg.vector_norm(columns, dim=0).clamp_min(tiny)
    return result


def ritz(test: Tensor, pushed: Tensor) -> tuple[Tensor, Tensor]:
    """Energies along the directions of an orthonormal test matrix, descending, and the directions
    (float64), from what the Gram matrix makes of it."""
    inner = test.double().mT @ pushed.double()
    energies, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    return energies.flip(0).clamp_min(0), vectors.flip(1)
