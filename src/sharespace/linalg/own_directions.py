"""The strongest weighed singular directions of single tasks, kept while the tasks pass by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.row_chunks import Chunk


@dataclass(frozen=True, eq=False)
class OwnDirections:
    """At most ``most`` singular triples w_i (sigma, y, z) of the tasks, the strongest so far."""

    most: int
    strengths: Tensor
    """float64, descending: w_i sigma."""
    left: Tensor
    """n x count."""
    right: Tensor
    """d x count."""

    @classmethod
    def none(
        cls, n: int, d: int, most: int, dtype: torch.dtype, device: torch.device
    ) -> OwnDirections:
        """Before the first task."""
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        sides = (torch.zeros(s, 0, dtype=dtype, device=device) for s in (n, d))
        return cls(most, empty, *sides)

    @property
    def energy(self) -> float:
        """Weighed energy of the directions: what own SVDs of so many columns would keep."""
        return float(self.strengths.square().sum())

    @property
    def weakest(self) -> float:
        """What a further direction has to beat."""
        return float(self.strengths[-1]) if len(self.strengths) == self.most else 0.0

    def with_more(self, more: OwnDirections) -> OwnDirections:
        """The strongest of both."""
        if not len(more.strengths):
            return self
        strengths = torch.cat([self.strengths, more.strengths])
        order = strengths.argsort(descending=True, stable=True)[: self.most]
        left, right = (
            torch.cat(pair, dim=1)[:, order]
            for pair in ((self.left, more.left), (self.right, more.right))
        )
        return OwnDirections(self.most, strengths[order], left, right)


def own_directions(chunk: Chunk, weights: Tensor, known: OwnDirections) -> OwnDirections:
    """Those of a chunk's directions that are stronger than the weakest known.

    With A A^T = L L^T, the squared singular values of B A are the eigenvalues of L^T (B^T B) L; an
    eigenvector v gives y ~ B L v and z ~ A^T (B^T B) L v.
    """
    root = cholesky_root(chunk.right_gram, chunk.right.dtype)
    inner = root.mT @ chunk.left_gram @ root
    able = (_largest(inner).sqrt() * weights > known.weakest).nonzero()[:, 0]
    energies, vectors = torch.linalg.eigh(inner[able])
    strengths = energies.clamp_min(0).sqrt() * weights[able, None]
    flat = strengths.flatten()
    order = flat.argsort(descending=True, stable=True)[: known.most]
    chosen = order[flat[order] > known.weakest]
    rows, columns = chosen // strengths.shape[1], chosen % strengths.shape[1]
    tasks = able[rows]
    left_mix = root[tasks] @ vectors[rows, :, columns][..., None]
    right_mix = chunk.left_gram[tasks] @ left_mix
    left, right = (
        _unit((mix.mT.to(rows.dtype) @ rows[tasks])[:, 0].mT)
        for mix, rows in ((left_mix, chunk.left), (right_mix, chunk.right))
    )
    return OwnDirections(known.most, flat[chosen], left, right)


def _largest(inner: Tensor) -> Tensor:
    """[tasks]: no less than the largest eigenvalue of each, mostly by a few percent: the norm of
    the eighth power. Most tasks need no decomposition then, which takes five times as long."""
    trace = inner.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(inner.dtype).tiny)
    power = inner / trace[:, None, None]
    for _ in range(3):
        power = power @ power
    bound = power.square().sum((1, 2)) ** (1 / 16)
    return bound * trace * (1 + 1e-9)


def cholesky_root(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """L with L L^T = gram but for rounding of the factors' dtype, by which it is lifted: a factor's
    rank need not be full. Only which directions are chosen depends on it."""
    trace = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    lifted = gram / trace[:, None, None] + 4 * torch.finfo(dtype).eps * identity
    result: Tensor = torch.linalg.cholesky(lifted) * trace.sqrt()[:, None, None]
    return result


def _unit(columns: Tensor) -> Tensor:
    result: Tensor = columns / columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
    return result
