"""What must be installed for the parts of ``sharespace.serve``, and what they import."""

from __future__ import annotations

import subprocess
import sys

_WITH_TRAIN_ALONE = """
import sys

sys.modules.update(dict.fromkeys(("fastapi", "uvicorn", "prometheus_client", "jinja2")))
from sharespace import MixedTasks

print(MixedTasks.__module__)
"""

_ENTRY_POINT = """
import sys

import sharespace.serve.vllm

print(sorted({"fastapi", "transformers", "peft", "uvicorn"} & set(sys.modules)))
"""


def _run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_mixed_tasks_need_the_extra_train_alone() -> None:
    assert _run(_WITH_TRAIN_ALONE).startswith("sharespace.serve.mixed")


def test_the_entry_point_of_vllm_imports_neither_the_server_nor_peft() -> None:
    """vLLM imports it in every process that it starts, whether or not sharespace is used."""
    assert _run(_ENTRY_POINT) == "[]"
