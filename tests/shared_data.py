"""Public adapters beside the repository; tests that need them skip, with a reason, without."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
ADAPTERS = SHARED / "adapters"
TEXT = SHARED / "data" / "text"
"""Folders with a text set each."""


def public_adapters(base: str) -> list[Path]:
    """Folders of the public adapters of one base model."""
    found = sorted(p.parent for p in ADAPTERS.glob(f"{base}/*/*.safetensors"))
    if not found:
        pytest.skip(f"no public adapters of {base} in {ADAPTERS}")
    return found
