"""Continual learning by Share and by other methods, under one interface, to compare them.

::

    outcomes = run(jobs, settings, ["head_only", "per_task_lora", "share_strict"])

The task is known when it is used, and every task has its own head: figures are task-incremental.
"""

from sharespace.compare.bench import Own, Workbench
from sharespace.compare.job import Outcome, Settings, StoredBytes, TaskJob
from sharespace.compare.runner import Run, method, methods, run

__all__ = [
    "Outcome",
    "Own",
    "Run",
    "Settings",
    "StoredBytes",
    "TaskJob",
    "Workbench",
    "method",
    "methods",
    "run",
]
