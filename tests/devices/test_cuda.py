"""The same paths on a real GPU; ``make cuda`` runs them where there is one."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("psutil", reason="psutil is not installed")

from devices.cases import CASES, RULES, built, errors
from sharespace.linalg.precision import full_float32

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case: str) -> None:
    CASES[case](torch.device("cuda"))


def test_products_are_float32_though_the_process_allows_tf32() -> None:
    x = torch.randn(256, 256, device="cuda")
    exact = x.double() @ x.double()
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32():
            ours = (x @ x).double()
        assert (ours - exact).norm() < 1e-5 * exact.norm()
        share, originals = built(RULES["k"], torch.device("cuda"))
    finally:
        torch.set_float32_matmul_precision("highest")
    here, _ = built(RULES["k"], torch.device("cpu"))
    torch.testing.assert_close(
        torch.tensor(errors(share, originals)),
        torch.tensor(errors(here, originals)),
        rtol=0.02,
        atol=2e-4,
    )
