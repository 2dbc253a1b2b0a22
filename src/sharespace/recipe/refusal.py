"""One problem of one task, as an error."""

from __future__ import annotations

from typing import NoReturn

from sharespace.errors import RecipeError
from sharespace.recipe.schema import TaskSpec


def refuse(spec: TaskSpec, key: str, why: str) -> NoReturn:
    """
    Raises:
        RecipeError: always; with the task, its line and the key.
    """
    line = f"line {spec.line}: " if spec.line else ""
    raise RecipeError("recipe", (f"{line}task {spec.name!r}, {key}: {why}",))
