"""The paper's bases: SVD of the stacked LoRA factors, each side alone (arXiv 2602.06043, step 1).

For reproduction and comparison. It depends on how an update happens to be split between B and A,
and on the adapters' norms; ``joint`` does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharespace.linalg.precision import compute_dtype, tolerance
from sharespace.linalg.problem import BasisPair
from sharespace.linalg.truncated import leading, orthonormal
from sharespace.linalg.updates import CanonicalUpdates


def factor_bases(
    pairs: list[tuple[Tensor, Tensor]],
    k: tuple[int, int] | None,
    *,
    variance: float | None = None,
    centred: bool = False,
    seed: int = 0,
) -> BasisPair:
    """Leading left singular vectors of [B_1 ... B_t] and of [A_1^T ... A_t^T].

    Args:
        pairs: for each task (B_i, n x r_i) and (A_i^T, d x r_i).
        k: (k_left, k_right); None: as ``variance`` needs.
        variance: explained variance of each side alone (the paper's rule, at least 0.6 there).
        centred: subtract the mean column; it is then kept as one of the k directions (without it
            an adapter cannot be reconstructed even where k would suffice).
        seed: of the randomised range finder.
    """
    sides = [torch.cat([pair[side] for pair in pairs], dim=1) for side in (0, 1)]
    caps = k or (None, None)
    bases = [_side(s, c, variance, centred, seed) for s, c in zip(sides, caps, strict=True)]
    return BasisPair(bases[0], bases[1])


def _side(stack: Tensor, k: int | None, variance: float | None, centred: bool, seed: int) -> Tensor:
    stack = stack.to(compute_dtype(stack.dtype))
    mean = stack.mean(dim=1, keepdim=True)
    centre = mean if centred and bool(mean.norm() > 0) else mean[:, :0]
    rest = stack - mean if centre.shape[1] else stack
    limit = min(rest.shape) if k is None else max(k - centre.shape[1], 0)
    found = leading(
        CanonicalUpdates(rest, torch.ones(rest.shape[1]).to(rest), rest[:0], (rest.shape[1],)),
        torch.eye(rest.shape[1]).to(rest)[None],
        limit,
        dropped=tolerance(rest.dtype) ** 2 * float(stack.square().sum()) / rest.shape[1],
        generator=torch.Generator().manual_seed(seed),
    )
    keep = _explained(found.energies, variance, float(rest.double().square().sum()))
    basis = found.basis[:, :keep].to(stack.dtype)
    return orthonormal(torch.cat([centre, basis], dim=1)) if centre.shape[1] else basis


def _explained(energies: Tensor, variance: float | None, total: float) -> int:
    if variance is None or variance == 1.0:
        return len(energies)
    return min(int((energies.cumsum(0) < variance * total).sum()) + 1, len(energies))
