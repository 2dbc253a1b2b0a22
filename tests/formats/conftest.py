"""Real adapters for the tests of formats, where the machine has them."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "adapters"


def shared_files() -> list[Path]:
    """Weights files of public adapters that lie beside the repository; may be none."""
    return sorted(SHARED.glob("*/*/*.safetensors"))


@pytest.fixture
def shared_adapters() -> Path:
    """The folder of public adapters; skips where it is absent."""
    if not shared_files():
        pytest.skip("the public adapters do not lie beside this repository")
    return SHARED
