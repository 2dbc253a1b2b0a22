"""A module's output, to which updates are added where it lies: a copy costs more than they do."""

from __future__ import annotations

from torch import Tensor


def changeable(result: Tensor, rows: bool) -> Tensor:
    """The output itself where nobody has seen it, as our hook is the first; else a copy.

    Args:
        result: of a module; a copy is made where it needs gradients.
        rows: its rows must lie one after the other, as products want it.
    """
    if rows and not result.is_contiguous():
        return result.contiguous()
    return result.clone() if result.requires_grad else result


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b.

    Args:
        out: [m, n], or [batch, m, n].
        a: [m, w], or [batch, m, w].
        b: [w, n], or [batch, w, n].
    """
    if out.dtype != a.dtype:
        # Cast first: a sum of two dtypes takes ten times as long.
        out.add_((a @ b).to(out.dtype))
    elif out.ndim == 3:
        out.baddbmm_(a, b)
    else:
        out.addmm_(a, b)
