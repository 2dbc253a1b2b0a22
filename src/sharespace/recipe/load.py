"""Read a recipe: every problem of the file in one error, before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sharespace.errors import RecipeError
from sharespace.recipe.document import Entry, Problem, entries, parse
from sharespace.recipe.keys import Key, keys_of
from sharespace.recipe.rules import recipe_problems
from sharespace.recipe.schema import Recipe, TaskSpec
from sharespace.recipe.settings import DataSettings, SubspaceSettings, TrainingSettings
from sharespace.recipe.values import UnusableError, brief, hint, value_of

Group = TypeVar("Group", DataSettings, SubspaceSettings, TrainingSettings)

SHARED: dict[str, Key] = {
    **keys_of(DataSettings),
    **keys_of(SubspaceSettings),
    **keys_of(TrainingSettings),
}
"""Keys at the top and in a task."""
TOP = {**keys_of(Recipe), **SHARED}
IN_TASK = {**keys_of(TaskSpec), **SHARED}

ELSEWHERE = {
    "base_model": "base",
    "model_name_or_path": "base",
    "output_dir": "share",
    "lora_r": "lora_rank",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "max_samples": "max_train_examples",
    "datasets": "tasks",
    "dataset": "data",
    "path": "data",
    "num_epochs": "num_train_epochs",
    "micro_batch_size": "per_device_train_batch_size",
    "lr_scheduler": "lr_scheduler_type",
    "torch_dtype": "dtype",
}
"""What axolotl, LLaMA-Factory and transformers call a key -> what it is called here."""
LARGEST = 2_000_000
"""Bytes; a stream of 1000 tasks takes a tenth of that."""


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and validate a recipe file; nothing but this file is touched.

    Raises:
        RecipeError: it cannot be read, or something in it is wrong; all problems are listed.
    """
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST:
            raise RecipeError(str(file), ("too large for a recipe",), "Check the path")
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise RecipeError(str(file), (f"cannot be read ({error})",), "Check the path") from error
    return parse_recipe(text, file.absolute().parent, file)


def parse_recipe(text: str, folder: Path, file: Path | None = None) -> Recipe:
    """A recipe from YAML text.

    Args:
        text: the document.
        folder: what relative paths count from.
        file: named in errors.

    Raises:
        RecipeError: something in it is wrong; all problems are listed.
    """
    where = str(file or "recipe")
    reading = _Reading(folder)
    recipe = reading.recipe(parse(text, where), file)
    if recipe is not None:
        reading.problems += recipe_problems(recipe)
    if recipe is None or reading.problems:
        ordered = sorted(reading.problems, key=lambda p: p.line or 0)
        raise RecipeError(where, tuple(str(p) for p in ordered))
    return recipe


@dataclass
class _Reading:
    folder: Path
    problems: list[Problem] = field(default_factory=list)

    def recipe(self, node: yaml.Node | None, file: Path | None) -> Recipe | None:
        """None where keys that are needed are missing or wrong."""
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1 if node else None
            self._add(line, "a recipe is a mapping of keys: base, share, tasks and others")
            return None
        found = entries(node, "", self.problems)
        tasks = found.pop("tasks", None)
        values = self._values("", found, TOP, IN_TASK, "in a task")
        defaults = TaskSpec(
            name="",
            settings=_group(DataSettings, values),
            subspace=_group(SubspaceSettings, values),
            training=_group(TrainingSettings, values),
            seed=values.get("seed", 0),
        )
        specs = self._tasks(tasks, defaults)
        own = {name: value for name, value in values.items() if name in keys_of(Recipe)}
        if not self._complete(keys_of(Recipe).values(), found, own, "the recipe", None):
            return None
        return Recipe(**own, tasks=specs, file=file)

    def _tasks(self, entry: Entry | None, defaults: TaskSpec) -> tuple[TaskSpec, ...]:
        if entry is None or not isinstance(entry.node, yaml.SequenceNode) or not entry.node.value:
            line = entry.line if entry else None
            self._add(line, "tasks: a list of tasks is wanted, one `- name: ...` each")
            return ()
        specs = [self._task(i, n, defaults) for i, n in enumerate(entry.node.value, 1)]
        return tuple(s for s in specs if s is not None)

    def _task(self, number: int, node: yaml.Node, defaults: TaskSpec) -> TaskSpec | None:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self._add(line, f"task {number}: a mapping of keys is wanted, such as `name: ...`")
            return None
        where = f"task {number}"
        found = entries(node, f"{where}, ", self.problems)
        values = self._values(f"{where}, ", found, IN_TASK, TOP, "at the top of the recipe")
        own = {name: value for name, value in values.items() if name in keys_of(TaskSpec)}
        if not self._complete(keys_of(TaskSpec).values(), found, own, where, line):
            return None
        return replace(
            defaults,
            **own,
            settings=_group(DataSettings, values, defaults.settings),
            subspace=_group(SubspaceSettings, values, defaults.subspace),
            training=_group(TrainingSettings, values, defaults.training),
            line=line,
        )

    def _values(
        self,
        where: str,
        found: Mapping[str, Entry],
        known: Mapping[str, Key],
        other: Mapping[str, Key],
        place: str,
    ) -> dict[str, Any]:
        """The values that can be used; all else is a problem."""
        values = {}
        for name, entry in found.items():
            if name not in known:
                why = _unknown(name, known, other, place)
                self._add(entry.line, f"{where}{brief(name)}: {why}")
                continue
            try:
                values[name] = value_of(known[name], entry.node, self.folder)
            except UnusableError as error:
                self._add(entry.line, f"{where}{name}: {error}")
        return values

    def _complete(
        self,
        keys: Iterable[Key],
        found: Mapping[str, Entry],
        values: Mapping[str, Any],
        where: str,
        line: int | None,
    ) -> bool:
        needed = [key.name for key in keys if key.needed]
        for name in needed:
            if name not in found:
                self._add(line, f"{where}: the key {name} is missing")
        return all(name in values for name in needed)

    def _add(self, line: int | None, why: str) -> None:
        self.problems.append(Problem(line, why))


def _group(group: type[Group], values: Mapping[str, Any], defaults: Group | None = None) -> Group:
    own = {name: value for name, value in values.items() if name in keys_of(group)}
    return replace(defaults or group(), **own)


def _unknown(name: str, known: Mapping[str, Key], other: Mapping[str, Key], place: str) -> str:
    if name in other or name == "tasks":
        return f"belongs {place}" if name != "tasks" else "belongs at the top of the recipe"
    alias = ELSEWHERE.get(name)
    if alias in known or alias == "tasks":
        return f"no such key; did you mean {alias}?"
    return f"no such key{hint(name, tuple(known))}"
