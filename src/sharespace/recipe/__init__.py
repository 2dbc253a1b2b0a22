"""Recipes: a whole stream of tasks in one YAML file, validated before any work."""

from sharespace.recipe.check import TaskCheck, check
from sharespace.recipe.data import TaskData, load_processor, load_task_data
from sharespace.recipe.identity import record, refuse_other
from sharespace.recipe.load import load_recipe, parse_recipe
from sharespace.recipe.schema import Recipe, TaskSpec
from sharespace.recipe.settings import DataSettings, SubspaceSettings, TrainingSettings
from sharespace.recipe.source import Source

__all__ = [
    "DataSettings",
    "Recipe",
    "Source",
    "SubspaceSettings",
    "TaskCheck",
    "TaskData",
    "TaskSpec",
    "TrainingSettings",
    "check",
    "load_processor",
    "load_recipe",
    "load_task_data",
    "parse_recipe",
    "record",
    "refuse_other",
]
