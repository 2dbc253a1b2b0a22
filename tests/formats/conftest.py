"""Fixtures of the tests of formats."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "adapters"


@pytest.fixture
def shared_adapters() -> list[Path]:
    """Weights files of public adapters beside the repository; skips where there are none."""
    found = sorted(SHARED.glob("*/*/*.safetensors"))
    if not found:
        pytest.skip("no public adapters in ../shared/adapters")
    return found
