"""The strongest weighed singular directions of single tasks, kept while the tasks pass by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.linalg.row_chunks import Measured, Rows, chunks


@dataclass(frozen=True, eq=False)
class OwnDirections:
    """At most ``most`` singular directions of the tasks, the strongest so far: whose they are. The
    few tasks that have one are read again for them, where they are wanted."""

    most: int
    strengths: Tensor
    """float64, descending: w_i sigma."""
    tasks: Tensor
    """int64: whose direction."""
    columns: Tensor
    """int64: and which of its directions, the strongest is 0."""

    @classmethod
    def none(cls, most: int) -> OwnDirections:
        """Before the first task."""
        return cls(most, torch.zeros(0, dtype=torch.float64), *torch.zeros(2, 0, dtype=torch.long))

    @property
    def energy(self) -> float:
        """Weighed energy of the directions: what own SVDs of so many columns would keep."""
        return float(self.strengths.square().sum())

    @property
    def weakest(self) -> float:
        """What a further direction has to beat."""
        return float(self.strengths[-1]) if len(self.strengths) == self.most else 0.0

    def with_more(self, chunk: Measured, weights: Tensor) -> OwnDirections:
        """With those of a chunk's directions that are stronger than the weakest so far."""
        able = (_largest(chunk).sqrt() * weights > self.weakest).nonzero()[:, 0]
        if not len(able):
            return self
        _, inner = _inner(chunk, able)
        energies = torch.linalg.eigvalsh(inner).flip(1).clamp_min(0)
        found = (energies.sqrt() * weights[able, None]).cpu()
        tasks = torch.tensor(chunk.tasks)[able.cpu()]
        strengths = torch.cat([self.strengths, found.flatten()])
        order = strengths.argsort(descending=True, stable=True)[: self.most]
        order = order[strengths[order] > 0]
        rank = found.shape[1]
        return OwnDirections(
            self.most,
            strengths[order],
            torch.cat([self.tasks, tasks.repeat_interleave(rank)])[order],
            torch.cat([self.columns, torch.arange(rank).repeat(len(tasks))])[order],
        )

    def read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The directions themselves: n x count and d x count, columns of length 1."""
        found = [
            _directions(chunk, self.tasks, self.columns)
            for chunk in chunks(rows, set(self.tasks.tolist()))
        ]
        none = (torch.empty(s, 0, dtype=rows.dtype, device=rows.device) for s in (rows.n, rows.d))
        left, right = zip(tuple(none), *found, strict=True)
        return torch.cat(left, dim=1), torch.cat(right, dim=1)


def _directions(chunk: Measured, tasks: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a chunk's directions that are wanted.

    With A A^T = L L^T, the squared singular values of B A are the eigenvalues of L^T (B^T B) L; an
    eigenvector v gives y ~ B L v and z ~ A^T (B^T B) L v.
    """
    root, inner = _inner(chunk, torch.arange(len(chunk.tasks), device=chunk.left.device))
    vectors = torch.linalg.eigh(inner)[1].flip(2)
    place = {task: i for i, task in enumerate(chunk.tasks)}
    wanted = [
        (place[t], c) for t, c in zip(tasks.tolist(), columns.tolist(), strict=True) if t in place
    ]
    at, column = torch.tensor(wanted, device=root.device).T
    left_mix = root[at] @ vectors[at, :, column][..., None]
    right_mix = chunk.left_gram[at] @ left_mix
    left, right = (
        _unit((mix.mT.to(rows.dtype) @ rows[at])[:, 0].mT)
        for mix, rows in ((left_mix, chunk.left), (right_mix, chunk.right))
    )
    return left, right


def _inner(chunk: Measured, tasks: Tensor) -> tuple[Tensor, Tensor]:
    """L and L^T (B^T B) L of some tasks."""
    root = cholesky_root(chunk.right_gram[tasks], chunk.right.dtype)
    return root, root.mT @ chunk.left_gram[tasks] @ root


def _largest(chunk: Measured) -> Tensor:
    """[tasks]: no less than the squared norm of B A, mostly by a few percent. Most tasks need no
    decomposition then, which takes ten times as long.

    Its eighth power is at most the trace of (A A^T B^T B)^8; that product is not symmetric, so what
    rounding of its powers may take away is added.
    """
    product = chunk.right_gram @ chunk.left_gram
    scale = torch.linalg.matrix_norm(product).clamp_min(torch.finfo(product.dtype).tiny)
    power = product / scale[:, None, None]
    for _ in range(2):
        power = power @ power
    trace = (power * power.mT).sum((1, 2)).clamp_min(0)
    rounding = 64 * product.shape[1] * torch.finfo(product.dtype).eps
    bound: Tensor = scale * (trace + rounding) ** (1 / 8)
    return bound


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
