"""What the package needs to be imported, and its public names."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import sharespace.evaluate

CODE = """
import sys, sharespace.evaluate
extras = {"sklearn", "scipy", "torchmetrics", "matplotlib", "transformers", "peft", "accelerate"}
assert not extras & set(sys.modules), extras & set(sys.modules)
"""


def test_importing_it_needs_no_extra() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_is_sorted() -> None:
    assert sharespace.evaluate.__all__ == sorted(sharespace.evaluate.__all__)


@pytest.mark.parametrize("name", sharespace.evaluate.__all__)
def test_public_names_are_documented_and_no_modules(name: str) -> None:
    found = getattr(sharespace.evaluate, name)
    assert not inspect.ismodule(found)
    assert inspect.getdoc(found)
