"""Tasks in coordinates of a subspace: C_i = (left^T Y_i) diag(s_i) (Z_i^T right), batched.

``seen`` arguments are what one basis sees of each task's own directions: tasks x r x k, the rows of
Y_i^T left (or Z_i^T right). All results are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates


@dataclass(frozen=True, eq=False)
class CoreSvd:
    """Singular value decompositions of the cores, tasks x (k_left or k_right) x q."""

    left: Tensor
    values: Tensor
    right: Tensor

    def factors(self, p: int | None = None) -> tuple[Tensor, Tensor]:
        """E = U S^1/2 and F = V S^1/2 of the p leading directions, tasks x k x p.

        A core that is zero gives E = 0 and F orthonormal, so that later training does not start
        on a saddle.
        """
        q = self.values.shape[1] if p is None else min(p, self.values.shape[1])
        root = self.values[:, :q].sqrt()
        zero = (self.values == 0).all(dim=1)[:, None, None]
        scaled = self.right[..., :q] * root[:, None]
        return self.left[..., :q] * root[:, None], torch.where(zero, self.right[..., :q], scaled)

    def tail(self, p: int | None) -> Tensor:
        """Energy beyond the p leading directions, per task."""
        return self.values[:, p:].square().sum(1) if p is not None else self.values.new_zeros(())


def seen_by(updates: Updates, left: Tensor) -> Tensor:
    """Y_i^T left: tasks x r x k, zero rows where a task's rank is smaller."""
    # The wide side last: a quarter faster than the product the other way round.
    seen = left.to(updates.left.dtype).mT @ updates.left
    return updates.blocks(seen.mT.contiguous())


def core_svd(seen_left: Tensor, sigma: Tensor, seen_right: Tensor) -> CoreSvd:
    """SVDs of all cores through r x r matrices, never k x k.

    Args:
        seen_left: tasks x r x k_left.
        sigma: tasks x r.
        seen_right: tasks x r x k_right.
    """
    q_left, r_left = torch.linalg.qr(seen_left.double().mT)
    q_right, r_right = torch.linalg.qr(seen_right.double().mT)
    u, s, vh = torch.linalg.svd((r_left * sigma.double()[:, None]) @ r_right.mT, False)
    return CoreSvd(q_left @ u, s, q_right @ vh.mT)


def core_factors(
    seen_left: Tensor, sigma: Tensor, seen_right: Tensor, p: int | None = None
) -> tuple[Tensor, Tensor]:
    """E and F of every core, as ``CoreSvd.factors``; faster where nothing is truncated.

    From one QR and one eigendecomposition: with seen_right^T = Q R and M = seen_left^T S R^T, the
    eigenvectors V of M^T M give E F^T = (M V)(Q V)^T, exact however small a singular value is. Only
    how orthogonal the faintest columns of E are to each other suffers.
    """
    rank = seen_left.shape[1]
    if rank > min(seen_left.shape[2], seen_right.shape[2]) or (p is not None and p < rank):
        return core_svd(seen_left, sigma, seen_right).factors(p)
    q, r = torch.linalg.qr(seen_right.double().mT)
    mixed = (r * sigma.double()[:, None]) @ seen_left.double()
    vectors = torch.linalg.eigh(mixed @ mixed.mT)[1].flip(2)
    left, right = mixed.mT @ vectors, q @ vectors
    values = torch.linalg.vector_norm(left, dim=1)
    values = torch.where(values > torch.finfo(values.dtype).tiny, values, 0.0)
    root = values.sqrt()[:, None]
    zero = (values == 0).all(dim=1)[:, None, None]
    inverse = torch.where(root > 0, root, 1.0).reciprocal() * (root > 0)
    return left * inverse, torch.where(zero, right, right * root)


def cores(seen_left: Tensor, sigma: Tensor, seen_right: Tensor) -> Tensor:
    """The cores themselves: tasks x k_left x k_right."""
    return (seen_left.double().mT * sigma.double()[:, None]) @ seen_right.double()


def captured(seen_left: Tensor, sigma: Tensor, seen_right: Tensor, p: int | None) -> Tensor:
    """Energy of each task's core, of its p leading directions: [tasks]."""
    ranks = min(seen_left.shape[1], seen_left.shape[2], seen_right.shape[2])
    if p is not None and p < ranks:
        return core_svd(seen_left, sigma, seen_right).values[:, :p].square().sum(1)
    left = (seen_left @ seen_left.mT).double() * sigma.double()[:, None]
    right = (seen_right @ seen_right.mT).double() * sigma.double()[:, None]
    return (left * right.mT).sum((1, 2)).clamp_min(0)
