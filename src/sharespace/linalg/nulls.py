"""What costs nothing to know: errors of the mean update, of a random basis, of own SVDs."""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.linalg.canonical import Updates
from sharespace.linalg.cores import captured, seen_by

_CHUNK = 1024


def inner_products(updates: Updates) -> Tensor:
    """<dW_i, dW_j> for all pairs: float64 [tasks, tasks], through c x c products in chunks."""
    sigma = updates.sigma.double()
    ranks = torch.tensor(updates.ranks, device=sigma.device)
    owner = torch.repeat_interleave(torch.arange(len(updates.ranks), device=sigma.device), ranks)
    result = torch.zeros(len(updates.ranks), len(updates.ranks), dtype=torch.float64)
    for start in range(0, len(sigma), _CHUNK):
        rows = slice(start, start + _CHUNK)
        left = (updates.left[:, rows].mT @ updates.left).double()
        right = (updates.right[:, rows].mT @ updates.right).double()
        products = left * right * sigma[rows, None] * sigma
        by_task = products.new_zeros(len(products), len(ranks)).index_add_(1, owner, products)
        result.index_add_(0, owner[rows].cpu(), by_task.cpu())
    return result


def mean_errors(updates: Updates) -> Tensor:
    """|dW_i - mean of all dW_j| for every task: float64 [tasks]."""
    products = inner_products(updates)
    cross = products.mean(1)
    return (torch.diagonal(products) - 2 * cross + cross.mean()).clamp_min(0).sqrt()


def random_errors(updates: Updates, k: tuple[int, int], seed: int = 0) -> Tensor:
    """|dW_i - projection onto random orthonormal bases| for every task: float64 [tasks]."""
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for side, size in zip((updates, updates.flipped), k, strict=True):
        basis = torch.randn(side.left.shape[0], size, generator=generator).to(side.left)
        seen.append(seen_by(side, torch.linalg.qr(basis)[0]))
    sigma = updates.blocks(updates.sigma)
    kept = captured(seen[0], sigma, seen[1], None).cpu()
    return (updates.norms.cpu().square() - kept).clamp_min(0).sqrt()


def own_errors(energies: Tensor, ranks: list[int]) -> Tensor:
    """Error of each task's own SVD, truncated to its rank: float64 [tasks].

    Args:
        energies: tasks x r, squared singular values, descending.
        ranks: directions that each task keeps.
    """
    index = torch.arange(energies.shape[1])
    lost = energies * (index >= torch.tensor(ranks)[:, None])
    return lost.sum(1).sqrt()
