"""One linear module that learns a new task inside the subspace (method.md, step 2).

::

    h = W0 x + [beta, beta'] [E; e] ([F; f]^T [alpha, alpha']^T x)

W0, beta and alpha are frozen and shared by all tasks; E, F, e, f and the phi temporary directions
a side, beta' and alpha', are trained. Kaushik et al., arXiv 2602.06043, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sharespace.subspace.adapter import LayerUpdate

TEMPORARY_SCALE = 0.02
"""Norm of a column of beta' at the start."""


class SubspaceLinear(nn.Module):
    """A frozen linear module plus a task's update in the subspace.

    Args:
        base: ``nn.Linear`` or Conv1D of transformers; only its forward is used. Whoever wraps it
            freezes it (``sharespace.learn.attach`` does).
        left_basis: beta, n x k_left, orthonormal columns.
        right_basis: alpha, d x k_right, orthonormal columns.
        p: pseudo-rank; lowered to what k + phi leaves room for.
        phi: temporary directions a side; lowered to n - k_left and d - k_right.
        generator: of the random start.
        core: C, k_left x k_right, that the task starts from; None: dW = 0.

    Trained in float32, or in float64 where the base weight is.
    """

    left_basis: Tensor
    right_basis: Tensor

    def __init__(
        self,
        base: nn.Module,
        left_basis: Tensor,
        right_basis: Tensor,
        *,
        p: int,
        phi: int,
        generator: torch.Generator,
        core: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        weight = next(base.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        new_left = complement(left_basis, phi, generator) * TEMPORARY_SCALE
        new_right = complement(right_basis, phi, generator)
        k_left, k_right = left_basis.shape[1], right_basis.shape[1]
        sides = (k_left + new_left.shape[1], k_right + new_right.shape[1])
        left, right = start(sides, min(p, *sides), core, generator)
        self.register_buffer("left_basis", left_basis.to(weight.device, dtype))
        self.register_buffer("right_basis", right_basis.to(weight.device, dtype))
        self.left_temporary = nn.Parameter(new_left.to(weight.device, dtype))
        self.right_temporary = nn.Parameter(new_right.to(weight.device, dtype))
        self.left_coefficients = nn.Parameter(left.to(weight.device, dtype))
        self.right_coefficients = nn.Parameter(right.to(weight.device, dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """B^ (n x p) and A^ (d x p), with dW = B^ A^^T."""
        left = torch.cat([self.left_basis, self.left_temporary], dim=1)
        right = torch.cat([self.right_basis, self.right_temporary], dim=1)
        return left @ self.left_coefficients, right @ self.right_coefficients

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> h (..., n), in the dtype of the base module's output."""
        up, down = self.factors()
        hidden: Tensor = self.base(x)
        return hidden + ((x.to(down.dtype) @ down) @ up.mT).to(hidden.dtype)

    def update(self) -> LayerUpdate:
        """dW as trained so far, temporary directions included: up n x p, down p x d, scaling 1."""
        up, down = self.factors()
        return LayerUpdate(up.detach().clone(), down.detach().mT.contiguous())


def start(
    sides: tuple[int, int], p: int, core: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """[E; e] and [F; f] before training: (k_left + phi) x p and (k_right + phi) x p.

    Zero: E = e = 0 and orthonormal [F; f]. With all of them zero there would be no gradient.
    From a core: C's own split, e = 0; a column that C does not fill starts as in the zero start.
    """
    right = torch.linalg.qr(torch.randn(sides[1], p, generator=generator))[0]
    left = torch.zeros(sides[0], p)
    if core is not None and core.numel():
        u, s, vh = torch.linalg.svd(core.double(), full_matrices=False)
        filled = int((s[:p] > 1e-6 * s[0]).sum()) if s[0] > 0 else 0
        root = s[:filled].sqrt()
        left[: len(u), :filled] = (u[:, :filled] * root).float()
        right[:, :filled] = 0
        right[: vh.shape[1], :filled] = (vh[:filled].mT * root).float()
    return left, right


def complement(basis: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal directions orthogonal to a basis: n x min(count, n - k), float64."""
    n, k = basis.shape
    draw = torch.randn(n, min(count, n - k), generator=generator).double()
    known = torch.linalg.qr(basis.cpu().double())[0]
    # Twice, as one pass leaves what rounding put back into the basis.
    for _ in range(2):
        draw = torch.linalg.qr(draw - known @ (known.mT @ draw))[0]
    return draw
