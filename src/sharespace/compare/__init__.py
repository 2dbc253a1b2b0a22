"""Continual learning by Share and by other methods, under one interface, to compare them.

::

    outcomes = run(jobs, settings, ["head_only", "per_task_lora", "share_strict"])
    result = compare_recipe("recipe.yaml", ["head", "lora", "share"], seeds=3)

The task is known when it is used, and every task has its own head: figures are task-incremental.
Importing this registers the methods of ``sharespace.compare.methods``; ``compared_method``
registers one from elsewhere.
"""

from sharespace.compare.bench import OwnLora, Workbench
from sharespace.compare.compared import ComparedMethod, all_methods, compared_method, method, run
from sharespace.compare.job import ComparisonSettings, Outcome, StoredBytes, TaskJob
from sharespace.compare.methods.share_stream import ShareStream, run_share_stream
from sharespace.compare.recipe_comparison import ChosenRate, RecipeComparison, compare_recipe
from sharespace.compare.recipe_table import write_csv

__all__ = [
    "ChosenRate",
    "ComparedMethod",
    "ComparisonSettings",
    "Outcome",
    "OwnLora",
    "RecipeComparison",
    "ShareStream",
    "StoredBytes",
    "TaskJob",
    "Workbench",
    "all_methods",
    "compare_recipe",
    "compared_method",
    "method",
    "run",
    "run_share_stream",
    "write_csv",
]
