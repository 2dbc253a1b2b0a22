"""What the tests of all experiments need."""

from __future__ import annotations

import gc
import importlib

import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_to_collect() -> None:
    """Trainer collects garbage after each training: half a second of all that was imported."""
    for name in ("transformers.trainer", "peft"):
        try:
            importlib.import_module(name)
        except ImportError:
            break
    gc.collect()
    gc.freeze()
