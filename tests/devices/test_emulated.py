"""Every path on an emulated second device: a ``.to(device)`` that is missing is found anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("psutil", reason="psutil is not installed")

from devices.cases import CASES


@pytest.fixture(scope="module")
def outcome() -> dict[str, str]:
    script = Path(__file__).with_name("run_emulated.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_on_an_emulated_device(case: str, outcome: dict[str, str]) -> None:
    assert not outcome[case], outcome[case]


def test_the_emulation_refuses_what_a_gpu_refuses() -> None:
    program = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from devices.emulated import emulated
with emulated() as device:
    x = torch.ones(2, 2).to(device)
    assert x.device == device and torch.equal((x @ x).cpu(), torch.full((2, 2), 2.0))
    assert (x * torch.tensor(2.0)).sum().item() == 8, "numbers without a dimension may mix"
    for mixed in (lambda: x + torch.ones(2), lambda: torch.ones(2, 2) @ x):
        try:
            mixed()
        except RuntimeError:
            continue
        raise SystemExit("devices were mixed")
"""
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
