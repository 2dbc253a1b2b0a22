"""PEFT's own behaviour tests on this method, where its source distribution has been fetched.

``python tests/tuner/peft_suite.py`` fetches it and runs all of them, for every case.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tuner.peft_suite import CASES, KNOWN, NOT_OURS, QUICK, available


@pytest.mark.skipif(
    available() is None, reason="PEFT's source is not here: run python tests/tuner/peft_suite.py"
)
def test_peft_says_that_it_behaves() -> None:
    script = str(Path(__file__).with_name("peft_suite.py"))
    chosen = ["--quick", "-k", "save_load_roundtrip or mixed or delete"]
    command = [sys.executable, script, "--offline", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_cases_and_exceptions_are_named() -> None:
    names = [name for name, _, _ in CASES]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)
    assert all(reason for reason in [*NOT_OURS.values(), *KNOWN.values()])
