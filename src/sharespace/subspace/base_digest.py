"""Which base model's weights a Share model belongs to: a few numbers of every adapted module.

Two base models of equal names and shapes (a model and what was made of it by more training) are
told apart by sampled values of their weights, and one model in float32 and in bfloat16 is taken for
the same: values agree where rounding to bfloat16 explains the difference (docs/format.md, "base").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sharespace.errors import MismatchError

ROWS = 8
"""Sampled rows of a weight, at most."""

COLUMNS = 16
"""Sampled columns of a weight, at most."""

# bfloat16 has 8 significant bits, so rounding moves a value by at most 2^-8 of itself. The other
# side may have been rounded to float16, which is an eighth of that.
_RELATIVE = 2**-8 * 1.125
# Half of the smallest number of float16: what is below it is 0 there.
_ABSOLUTE = 2**-25


def sampled_rows(weight: Tensor) -> Tensor:
    """The sampled values of one module's base weight.

    Args:
        weight: n x d, as the module acts; a convolution's flattened.

    Returns:
        min(n, 8) x min(d, 16) in float32 on the CPU, at the rows floor((2 i + 1) n / 16) and the
        columns floor((2 j + 1) d / 32), or at all where there are fewer.
    """
    rows, columns = (
        torch.tensor(_positions(size, most), device=weight.device)
        for size, most in zip(weight.shape, (ROWS, COLUMNS), strict=True)
    )
    picked = weight.detach().index_select(0, rows).index_select(1, columns)
    return picked.to(device="cpu", dtype=torch.float32).contiguous()


def sample_shape(out_features: int, in_features: int) -> tuple[int, int]:
    """Shape of what ``sampled_rows`` gives."""
    return min(out_features, ROWS), min(in_features, COLUMNS)


def _positions(size: int, most: int) -> list[int]:
    """The middles of equal parts, not their beginnings: what stands first may be special."""
    count = min(size, most)
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def same_base(first: Tensor, second: Tensor) -> bool:
    """Whether two samples of one module are those of one weight, each perhaps rounded."""
    if first.shape != second.shape:
        return False
    allowed = _RELATIVE * torch.maximum(first.abs(), second.abs()) + _ABSOLUTE
    return bool(((first - second).abs() <= allowed).all())


def differing_module(known: Mapping[str, Tensor], met: Mapping[str, Tensor]) -> str | None:
    """The first module, in the order of ``met``, of which two samples are not of one weight."""
    common = (module for module in met if module in known)
    return next((m for m in common if not same_base(known[m], met[m])), None)


def check_same_base(what: str, known: Mapping[str, Tensor], met: Mapping[str, Tensor]) -> None:
    """Refuse weights of another base model than those that are known.

    Args:
        what: whose weights ``met`` are, for the error.
        known: adapted module -> sample, as the Share model has them; may be empty.
        met: adapted module -> sample; modules that only one side has are not compared.

    Raises:
        MismatchError: a module's weight is another one.
    """
    module = differing_module(known, met)
    if module is not None:
        raise MismatchError(
            what,
            f"module {module!r} has other weights than in the Share model's base, though its shape "
            "is the same",
            "Use the base model that the Share model's tasks were trained on, in the same revision",
        )


def joined_samples(
    known: Mapping[str, Tensor], newcomers: Iterable[tuple[str, Mapping[str, Tensor]]]
) -> Mapping[str, Tensor]:
    """The known samples, and those of modules that newcomers bring.

    Args:
        newcomers: whose they are, for errors, and adapted module -> sample.

    Raises:
        MismatchError: one of them was made with another base model.
    """
    joined = known
    for what, met in newcomers:
        check_same_base(what, joined, met)
        added = {module: met[module] for module in met if module not in joined}
        if added:
            joined = {**joined, **added}
    return joined
