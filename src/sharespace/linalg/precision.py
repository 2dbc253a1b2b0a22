"""Which dtype computes, and what counts as rounding: the one place where this is decided.

Factors of 16 bits are computed in float32, float64 stays float64. Small matrices (cores, Grams and
their eigendecompositions) are always float64: a Gram matrix squares the condition number, and a
float32 one of near-identical adapters keeps only noise (docs/method.md, "What it costs"). On a GPU
products of float32 are float32, never TF32, whose 10 bits would be taken for what tasks differ in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sharespace.errors import OptionError

STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What bases, coefficients and exported factors may be stored in."""

_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
"""By the compute dtype; see ``tolerance``."""


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any of the dtypes is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype, or the one of that name.

    Raises:
        OptionError: nothing is stored in it.
    """
    known = {str(one).removeprefix("torch."): one for one in STORED_DTYPES}
    wanted = known.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and wanted not in STORED_DTYPES:
        raise OptionError(
            f"dtype {str(dtype).removeprefix('torch.')!r}",
            "Share models and adapters are not stored in it",
            f"Choose one of {', '.join(known)}",
        )
    return wanted


def tolerance(dtype: torch.dtype) -> float:
    """Relative error that is rounding in a compute dtype.

    Directions are dropped as "numerically zero" only while all that is dropped together stays
    under this fraction of *one* task's norm, so that no task loses more than rounding.
    """
    return _TOLERANCE[dtype]


def stored_rounding(dtype: torch.dtype) -> float:
    """Relative error that is rounding for what is stored in a dtype.

    Of 16 bits it is the cast's own: adapters that are in a model already must not look new because
    their directions were rounded when they were stored.
    """
    if dtype in (torch.float16, torch.bfloat16):
        return torch.finfo(dtype).eps
    return tolerance(compute_dtype(dtype))


def canonical_rounding(dtype: torch.dtype) -> float:
    """Relative error that the canonical form of one update may have in a compute dtype.

    Measured: 3e-7 in float32 and 1e-15 in float64 up to condition 1e6; stated with a margin.
    """
    # That is 9.5e-7 in float32 and 1.8e-15 in float64.
    return 8 * torch.finfo(dtype).eps


def usable_range(dtype: torch.dtype) -> tuple[float, float]:
    """Least and largest |dW| that are computed with in a compute dtype.

    Beyond them the factors, or the fourth powers of their sizes in float64, would under- or
    overflow somewhere on the way: float32 ends at 1e-38 and 3e38, float64 at 1e-308 and 2e308.
    """
    return (1e-70, 1e70) if dtype == torch.float64 else (1e-30, 1e30)


def common_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that holds all of them (float16 and bfloat16 together: float32)."""
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def usable_device(device: torch.device | str) -> torch.device:
    """The device, after a look whether it can compute.

    Args:
        device: as torch names it.

    Raises:
        OptionError: the name is unknown, or this machine has no such device.
    """
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError) as error:  # A torch built without CUDA asserts.
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"device {str(device)!r}", reason, "Leave it out to use the CPU"
        ) from error
    return usable


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 in the products of the block, whatever this process has chosen; also a decorator.

    The switch is the process's: products in other threads are full float32 for as long, too.
    """
    restore = _without_tf32()
    try:
        yield
    finally:
        restore()


def _without_tf32() -> Callable[[], None]:
    """Switch TF32 off, and return what switches it back.

    torch has two ways to say it: ``set_float32_matmul_precision``, and the newer ``fp32_precision``
    of a backend. Once a process has used the newer one, torch refuses questions in the older way.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = torch.backends.cuda.matmul
        precision_before = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        return lambda: setattr(matmul, "fp32_precision", precision_before)
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)
