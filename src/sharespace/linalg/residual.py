"""Errors as norms of core differences in enlarged coordinates, not as differences of squares.

A difference of squares has a floor of sqrt(eps), 3e-4 in float32; these are exact to eps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates


def errors(updates: Updates, left: Tensor, right: Tensor, cores: Tensor) -> Tensor:
    """|dW_i - left C_i right^T| for every task, without an n x d matrix.

    Args:
        updates: the tasks, dW_i = Y_i diag(s_i) Z_i^T.
        left: n x k_left frame; need not be orthonormal (a basis cast to 16 bits is not).
        right: d x k_right frame.
        cores: tasks x k_left x k_right.

    Returns:
        float64 [tasks], absolute Frobenius norms.
    """
    inside_l, outside_l, r_left = _split(updates, left)
    inside_r, outside_r, r_right = _split(updates.flipped, right)
    sigma = updates.blocks(updates.sigma.double())
    scaled = inside_l.mT * sigma[:, None]
    inner = scaled @ inside_r - r_left @ cores.double() @ r_right.mT
    outer_l, outer_r = outside_l * _outer(sigma), outside_r * _outer(sigma)
    seen_l, seen_r = inside_l @ inside_l.mT, inside_r @ inside_r.mT
    cross = (seen_l * outer_r).sum((1, 2)) + (outer_l * seen_r).sum((1, 2))
    rest = (outer_l * outside_r).sum((1, 2))
    return (inner.square().sum((1, 2)) + cross.clamp_min(0) + rest.clamp_min(0)).sqrt()


def frame_difference(
    old: tuple[Tensor, Tensor, Tensor], new: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """|L C_i R^T - L' C'_i R'^T| for every task.

    Args:
        old: (left n x k, right d x k', cores tasks x k x k').
        new: the same for the new frames.

    Returns:
        float64 [tasks].
    """
    r_left = torch.linalg.qr(torch.cat([old[0].double(), new[0].double()], dim=1), mode="r")[1]
    r_right = torch.linalg.qr(torch.cat([old[1].double(), new[1].double()], dim=1), mode="r")[1]
    k_left, k_right = old[0].shape[1], old[1].shape[1]
    difference = r_left[:, k_left:] @ new[2].double() @ r_right[:, k_right:].mT
    # R is triangular: the old tasks have no part below its first rows.
    before = r_left[:k_left, :k_left] @ old[2].double() @ r_right[:k_right, :k_right].mT
    difference[:, : before.shape[1], : before.shape[2]] -= before
    norms: Tensor = torch.linalg.vector_norm(difference, dim=(1, 2))
    return norms


def _split(updates: Updates, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a frame sees of each task (tasks x r x k), the Gram of what it does not, and its R."""
    q, r = torch.linalg.qr(frame.to(updates.left.dtype))
    seen = updates.left.mT @ q
    hidden = updates.blocks(torch.addmm(updates.left.mT, seen, q.mT, alpha=-1))
    return updates.blocks(seen).double(), (hidden @ hidden.mT).double(), r.double()


def _outer(sigma: Tensor) -> Tensor:
    return sigma[:, :, None] * sigma[:, None]
