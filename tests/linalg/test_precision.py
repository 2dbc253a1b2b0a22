"""The one place where dtypes are decided."""

from __future__ import annotations

import pytest
import torch

from sharespace.errors import OptionError
from sharespace.linalg.precision import (
    canonical_rounding,
    common_dtype,
    compute_dtype,
    full_float32,
    stored_rounding,
    tolerance,
    usable_device,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def test_sixteen_bits_are_computed_in_float32_and_float64_wins() -> None:
    assert compute_dtype() == compute_dtype(F16) == compute_dtype(BF16, F32) == F32
    assert compute_dtype(F32, F64) == F64


def test_the_common_dtype_holds_all_exactly() -> None:
    assert common_dtype(F16) == F16
    assert common_dtype(F16, BF16) == F32
    assert common_dtype(BF16, F32, F64) == F64


def test_rounding_grows_with_what_a_dtype_forgets() -> None:
    order = [stored_rounding(d) for d in (F64, F32, F16, BF16)]
    assert order == sorted(order)
    assert stored_rounding(F32) == tolerance(F32)
    for dtype in (F16, BF16):
        numbers = torch.randn(1000, generator=torch.Generator().manual_seed(1))
        assert float((numbers - numbers.to(dtype)).norm() / numbers.norm()) < stored_rounding(dtype)
    assert canonical_rounding(F64) < 1e-14 < canonical_rounding(F32) < 1e-6


def test_an_unusable_device_is_an_option_error() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    for name in ("no such device", "cuda:99"):
        with pytest.raises(OptionError, match="device"):
            usable_device(name)


@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
def test_tf32_is_off_inside_and_as_it_was_outside(chosen: str) -> None:
    torch.set_float32_matmul_precision(chosen)
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == chosen

        @full_float32()
        def fails() -> None:
            assert torch.get_float32_matmul_precision() == "highest"
            raise ValueError

        with pytest.raises(ValueError):  # noqa: PT011
            fails()
        assert torch.get_float32_matmul_precision() == chosen
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_chosen_in_the_newer_way() -> None:
    """After it torch refuses questions asked in the older way."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one way only")
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_float32():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
        torch.set_float32_matmul_precision("highest")
