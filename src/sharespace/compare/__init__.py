"""Continual learning by Share and by other methods, under one interface, to compare them.

::

    outcomes = run(jobs, settings, ["head_only", "per_task_lora", "share_strict"])

The task is known when it is used, and every task has its own head: figures are task-incremental.
Importing this registers the methods of ``sharespace.compare.methods``; ``compared_method``
registers one from elsewhere.
"""

from sharespace.compare.bench import OwnLora, Workbench
from sharespace.compare.compared import ComparedMethod, all_methods, compared_method, method, run
from sharespace.compare.job import ComparisonSettings, Outcome, StoredBytes, TaskJob
from sharespace.compare.methods.share_stream import ShareStream, run_share_stream

__all__ = [
    "ComparedMethod",
    "ComparisonSettings",
    "Outcome",
    "OwnLora",
    "ShareStream",
    "StoredBytes",
    "TaskJob",
    "Workbench",
    "all_methods",
    "compared_method",
    "method",
    "run",
    "run_share_stream",
]
