"""Read a recipe: every problem of the file is told in one error, before any work.

First each key is read by itself, then what the keys have to do with each other is checked. No file
but the recipe is looked at (``check`` looks at the others).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from sharespace.errors import OptionError, RecipeError
from sharespace.learn.settings import TrainingSettings
from sharespace.stream.recipe.keys import (
    METRICS,
    DataSettings,
    Recipe,
    SubspaceSettings,
    TaskSpec,
)
from sharespace.stream.recipe.values import (
    Key,
    RecipeEntry,
    RecipeProblem,
    UnusableError,
    brief,
    entries,
    hint,
    keys_of,
    parse,
    value_of,
)
from sharespace.subspace.state import name_problem

SettingsT = TypeVar("SettingsT", DataSettings, SubspaceSettings, TrainingSettings)

SHARED: dict[str, Key] = {
    **keys_of(DataSettings),
    **keys_of(SubspaceSettings),
    **keys_of(TrainingSettings),
}
"""Keys that stand at the top for all tasks, or in a task for that one."""

TOP = {**keys_of(Recipe), **SHARED}
"""Keys that may stand at the top."""

IN_TASK = {**keys_of(TaskSpec), **SHARED}
"""Keys that may stand in a task."""

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
"""Most bytes of a recipe's file; a stream of 1000 tasks takes a tenth of that."""

MOST_LABELS = 100_000


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and validate a recipe file; nothing but this file is touched.

    Args:
        path: of a YAML file.

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
    """A recipe that is being read, and the problems that were met so far."""

    folder: Path
    problems: list[RecipeProblem] = field(default_factory=list)

    def recipe(self, node: yaml.Node | None, file: Path | None) -> Recipe | None:
        """None where keys that are needed are missing or wrong."""
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1 if node else None
            self._add(line, "a recipe is a mapping of keys: base, share, tasks and others")
            return None
        written = entries(node, "", self.problems)
        tasks = written.pop("tasks", None)
        values = self._values("", written, TOP, IN_TASK, "in a task")
        specs = self._tasks(tasks, values)
        own = {name: value for name, value in values.items() if name in keys_of(Recipe)}
        if not self._complete(keys_of(Recipe).values(), written, own, "the recipe", None):
            return None
        return Recipe(**own, tasks=specs, file=file)

    def _tasks(self, entry: RecipeEntry | None, shared: Mapping[str, Any]) -> tuple[TaskSpec, ...]:
        if entry is None or not isinstance(entry.node, yaml.SequenceNode) or not entry.node.value:
            line = entry.line if entry else None
            self._add(line, "tasks: a list of tasks is wanted, one `- name: ...` each")
            return ()
        specs = [self._task(i, n, shared) for i, n in enumerate(entry.node.value, 1)]
        return tuple(s for s in specs if s is not None)

    def _task(self, number: int, node: yaml.Node, shared: Mapping[str, Any]) -> TaskSpec | None:
        """A task of the list; None where it cannot be used.

        Args:
            number: of the task, from 1.
            node: what stands in the list.
            shared: values of keys that stand at the top for all tasks.
        """
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self._add(line, f"task {number}: a mapping of keys is wanted, such as `name: ...`")
            return None
        where = f"task {number}"
        written = entries(node, f"{where}, ", self.problems)
        values = self._values(f"{where}, ", written, IN_TASK, TOP, "at the top of the recipe")
        own = {name: value for name, value in values.items() if name in keys_of(TaskSpec)}
        if not self._complete(keys_of(TaskSpec).values(), written, own, where, line):
            return None
        # Here and not for the keys at the top alone: those may make sense only with the task's.
        values = {**shared, **values}
        try:
            return TaskSpec(
                **own,
                settings=_group(DataSettings, values),
                subspace=_group(SubspaceSettings, values),
                training=_group(TrainingSettings, values),
                seed=shared.get("seed", 0),
                line=line,
            )
        except OptionError as error:
            self._add(line, f"task {own['name']!r}, {error}")
            return None

    def _values(
        self,
        where: str,
        written: Mapping[str, RecipeEntry],
        known: Mapping[str, Key],
        misplaced: Mapping[str, Key],
        place: str,
    ) -> dict[str, Any]:
        """The values that can be used; all else is a problem.

        Args:
            where: before the key's name in problems.
            written: what stands in the file.
            known: keys that may stand there.
            misplaced: keys that belong elsewhere, namely to ``place``.
            place: where those belong.
        """
        values = {}
        for name, entry in written.items():
            if name not in known:
                why = _unknown(name, known, misplaced, place)
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
        written: Mapping[str, RecipeEntry],
        values: Mapping[str, Any],
        where: str,
        line: int | None,
    ) -> bool:
        """True where every key that is needed has a usable value."""
        needed = [key.name for key in keys if key.needed]
        for name in needed:
            if name not in written:
                self._add(line, f"{where}: the key {name} is missing")
        return all(name in values for name in needed)

    def _add(self, line: int | None, why: str) -> None:
        self.problems.append(RecipeProblem(line, why))


def _group(group: type[SettingsT], values: Mapping[str, Any]) -> SettingsT:
    return group(**{name: value for name, value in values.items() if name in keys_of(group)})


def _unknown(name: str, known: Mapping[str, Key], misplaced: Mapping[str, Key], place: str) -> str:
    """Why a name is no key where it stands."""
    if name in misplaced or name == "tasks":
        return f"belongs {place}" if name != "tasks" else "belongs at the top of the recipe"
    alias = ELSEWHERE.get(name)
    if alias in known or alias == "tasks":
        return f"no such key; did you mean {alias}?"
    return f"no such key{hint(name, tuple(known))}"


def recipe_problems(recipe: Recipe) -> Iterator[RecipeProblem]:
    """All that is wrong between the keys of a recipe."""
    if recipe.tasks and recipe.initial > len(recipe.tasks):
        count = len(recipe.tasks)
        yield RecipeProblem(None, f"initial: is {recipe.initial}, but there are {count} tasks")
    yield from _same_names(recipe)
    yield from _unknown_starts(recipe)
    for spec in recipe.tasks:
        for why in _task_problems(spec):
            yield RecipeProblem(spec.line, f"task {spec.name!r}, {why}")


def _same_names(recipe: Recipe) -> Iterator[RecipeProblem]:
    first: dict[str, int | None] = {}
    for spec in recipe.tasks:
        if spec.name in first:
            why = f"a task of that name is in line {first[spec.name]} already"
            yield RecipeProblem(spec.line, f"task {spec.name!r}, name: {why}")
        first.setdefault(spec.name, spec.line)


def _unknown_starts(recipe: Recipe) -> Iterator[RecipeProblem]:
    """A task may start from an earlier one by its name, which only the whole recipe tells."""
    earlier: list[str] = ["auto", "zero", "mean"]
    for spec in recipe.tasks:
        start = spec.subspace.start
        if start not in earlier:
            why = f"{start!r} is neither auto, zero, mean nor an earlier task"
            near = hint(start, tuple(earlier))
            yield RecipeProblem(spec.line, f"task {spec.name!r}, start: {why}{near}")
        earlier.append(spec.name)


def _task_problems(spec: TaskSpec) -> Iterator[str]:
    if why := name_problem(spec.name):
        yield f"name: {why}"
    yield from _source_problems(spec)
    yield from _data_problems(spec.settings, spec.labels)
    training = spec.training
    if spec.subspace.p is not None and spec.subspace.p > spec.subspace.k:
        yield f"p: is {spec.subspace.p}, above k = {spec.subspace.k}"
    if training.eval_steps is not None and training.early_stopping_patience is None:
        yield "eval_steps: needs early_stopping_patience"


def _source_problems(spec: TaskSpec) -> Iterator[str]:
    if spec.data is None and spec.adapter is None:
        yield "data, adapter: at least one of them is needed"
    if spec.eval_only and (spec.data is None or spec.adapter is None):
        yield "eval_only: needs both data and adapter"
    for name in ("eval_data", "data_config", "data_revision", "labels"):
        if getattr(spec, name) is not None and spec.data is None:
            yield f"{name}: needs data"
    ways = ("eval_split", "eval_fraction")
    given = [n for n in ways if getattr(spec.settings, n) is not None]
    if len(given) + (spec.eval_data is not None) > 1:
        yield "eval_data, eval_split, eval_fraction: only one of them"


def _data_problems(settings: DataSettings, labels: tuple[str, ...] | None) -> Iterator[str]:
    kind = settings.task_type
    if settings.metric and settings.metric not in METRICS[kind]:
        yield f"metric: {settings.metric} is none of {kind}: {', '.join(METRICS[kind])}"
    if labels is not None and kind in ("regression", "causal-lm"):
        yield f"labels: {kind} has none"
    if labels is not None and not 2 <= len(labels) <= MOST_LABELS:
        yield f"labels: {len(labels)} of them; at least 2 are needed"
    if (settings.prompt is None) != (settings.completion is None):
        yield "prompt, completion: both or none of them"
    elif settings.prompt is not None and kind != "causal-lm":
        yield "prompt, completion: for causal-lm only"
    if settings.metric in ("rouge_l", "exact_match") and settings.prompt is None:
        yield f"metric: {settings.metric} needs prompt and completion"
    if settings.text2 is not None and kind in ("causal-lm", "image-classification"):
        yield f"text2: {kind} has no pairs"


def refuse(spec: TaskSpec, key: str, why: str) -> NoReturn:
    """Refuse a task for one of its keys.

    Raises:
        RecipeError: always; with the task, its line and the key.
    """
    line = f"line {spec.line}: " if spec.line else ""
    raise RecipeError("recipe", (f"{line}task {spec.name!r}, {key}: {why}",))
