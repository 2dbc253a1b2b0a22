"""Recipes: a whole stream of tasks in one YAML file, validated before any work."""

from sharespace.stream.recipe.check import TaskCheck, check
from sharespace.stream.recipe.data import TaskData, load_processor, load_task_data
from sharespace.stream.recipe.keys import (
    DataSettings,
    Recipe,
    SubspaceSettings,
    TaskSpec,
    record,
    refuse_other,
)
from sharespace.stream.recipe.load import load_recipe, parse_recipe
from sharespace.stream.recipe.values import RecipeSource

__all__ = [
    "DataSettings",
    "Recipe",
    "RecipeSource",
    "SubspaceSettings",
    "TaskCheck",
    "TaskData",
    "TaskSpec",
    "check",
    "load_processor",
    "load_recipe",
    "load_task_data",
    "parse_recipe",
    "record",
    "refuse_other",
]
