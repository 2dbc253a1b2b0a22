"""Check that everything is there that a recipe names, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from sharespace.errors import RecipeError, SharespaceError
from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.stream.recipe.data import check_columns, inputs, parts, targets, texts
from sharespace.stream.recipe.keys import Recipe, TaskSpec
from sharespace.stream.recipe.load import refuse
from sharespace.stream.recipe.splits import TaskRows, read_rows
from sharespace.subspace.adapter import Adapter, BaseModel, common_base, common_shapes
from sharespace.subspace.naming import common_names


@dataclass(frozen=True)
class TaskCheck:
    """What there is of a task."""

    name: str
    train: int | None
    """Rows to learn from, before `max_train_examples`; None: nothing is learned."""
    eval: int | None
    """Rows to score on, before `max_eval_examples`; None: it has no data."""
    inputs: tuple[str, ...]
    """Columns that go into the model."""
    labels: tuple[str, ...]
    """Names of the classes."""
    modules: int | None
    """Modules that its adapter adapts; None: it has no adapter."""


def check(
    recipe: Recipe,
    *,
    done: Collection[str] = (),
    progress: Callable[[str], None] | None = None,
) -> tuple[TaskCheck, ...]:
    """Read the base model's config, the headers of all adapters and the rows of all data.

    Data sets of the Hub are downloaded here, so that a stream does not stop at its last task.

    Args:
        recipe: of ``load_recipe``.
        done: tasks that are learned already; their data and adapters may be gone.
        progress: called with the name of each task before it is read.

    Returns:
        What there is of each task that is not done.

    Raises:
        RecipeError: something is missing or cannot be used; all problems are listed.
        MissingExtraError: transformers or datasets is not installed.
    """
    problems = list(_base_problems(recipe))
    checks, adapters = [], []
    for spec in recipe.tasks:
        if spec.name in done:
            continue
        if progress is not None:
            progress(spec.name)
        checked, adapter, of_task = _task(spec)
        problems += of_task
        adapters += [adapter] if adapter else []
        checks.append(checked)
    problems += _mismatches(recipe, adapters)
    if problems:
        raise RecipeError(str(recipe.file or "recipe"), tuple(problems))
    return tuple(checks)


def _task(spec: TaskSpec) -> tuple[TaskCheck, Adapter | None, list[str]]:
    """What there is of a task, its adapter, and what is wrong with its adapter and its data."""
    problems: list[str] = []
    adapter, rows = None, None
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    try:
        adapter = _adapter(spec)
    except RecipeError as error:
        problems += error.problems
    try:
        if spec.data is not None:
            rows = read_rows(spec)
            columns, labels = _checked_rows(spec, rows)
    except RecipeError as error:
        problems += error.problems
    checked = TaskCheck(
        spec.name,
        len(rows.train) if rows and rows.train is not None else None,
        len(rows.eval) if rows else None,
        columns,
        labels,
        len(adapter.shapes) if adapter else None,
    )
    return checked, adapter, problems


def _checked_rows(spec: TaskSpec, rows: TaskRows) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns that go into the model and the names of the classes; every row is looked at."""
    check_columns(spec, rows)
    names, _ = targets(spec, rows)
    columns = inputs(spec, rows.eval)
    if spec.settings.task_type != "image-classification":
        for _, part in parts(rows):
            for column in columns:
                texts(spec, column, part[column])
    return columns, names


def _adapter(spec: TaskSpec) -> Adapter | None:
    """The adapter of a task; None: it has none."""
    if spec.adapter is None:
        return None
    try:
        return read_adapter(str(spec.adapter), spec.name)
    except SharespaceError as error:
        refuse(spec, "adapter", str(error))


def _mismatches(recipe: Recipe, adapters: list[Adapter]) -> Iterator[str]:
    """A problem where adapters belong to another base model, or modules have other shapes."""
    try:
        common_base(adapters, BaseModel(recipe.base.text))
        common_shapes(common_names(adapters, stated=True))
    except SharespaceError as error:
        yield str(error)


def _base_problems(recipe: Recipe) -> Iterator[str]:
    """Problems of the base model's config; its weights are not read."""
    transformers = require("transformers", "train")
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(recipe.base), revision=recipe.base_revision
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        yield f"base: {recipe.base.text!r} has no config that can be read ({reason})"
        return
    yield from _length_problems(recipe, config)


def _length_problems(recipe: Recipe, config: object) -> Iterator[str]:
    """A problem for each task whose texts may be longer than the base model takes."""
    positions = getattr(config, "max_position_embeddings", None)
    for spec in recipe.tasks:
        longest = spec.settings.max_length
        if spec.data and isinstance(positions, int) and longest > positions:
            yield (
                f"line {spec.line}: task {spec.name!r}, max_length: is {longest}, "
                f"but the base model has {positions} positions"
            )
