"""Continual learning by Share and by other methods, under one interface, to compare them.

::

    outcomes = run(jobs, settings, ["head_only", "per_task_lora", "share_strict"])

The task is known when it is used, and every task has its own head: figures are task-incremental.
"""

from sharespace.baselines.bench import Own, Workbench
from sharespace.baselines.job import Settings, TaskJob
from sharespace.baselines.outcome import Outcome, Stored
from sharespace.baselines.registry import Run, method, methods, run

__all__ = [
    "Outcome",
    "Own",
    "Run",
    "Settings",
    "Stored",
    "TaskJob",
    "Workbench",
    "method",
    "methods",
    "run",
]
