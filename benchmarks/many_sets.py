"""Up to 1000 trained adapters of one base model (digits, see ``training``): strangers and families.

Kept in a cache folder: a thousand take some minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from benchmarks import training
from benchmarks.training import Recipe

STEPS = 60
RUN_STEPS, EVERY = 300, 3
"""Checkpoints of a run: one every three steps."""
FAMILIES = 10

Paths = dict[str, Path]


def strangers(base: Mapping[str, Tensor], count: int, steps: int, cache: Path) -> Paths:
    """Tasks and LoRA starts differ."""
    recipes = [Recipe(i, init=i, steps=steps) for i in range(count)]
    return _trained(base, "strangers", recipes, cache)


def one_start(base: Mapping[str, Tensor], count: int, steps: int, cache: Path) -> Paths:
    """Tasks differ, all from one LoRA start (one seed for all, as most scripts have it)."""
    return _trained(base, "start", [Recipe(i, steps=steps) for i in range(count)], cache)


def mix(base: Mapping[str, Tensor], count: int, steps: int, cache: Path) -> Paths:
    """Half are checkpoints of up to ten runs, a quarter strangers, a quarter from one start."""
    runs = max(1, min(FAMILIES, count // 20))
    found: Paths = {}
    for run in range(runs):
        each = count // 2 // runs
        paths = list(_run(base, run, cache).items())
        step = max(len(paths) // each, 1)
        found |= dict(paths[step - 1 :: step][:each])
    rest = count - len(found)
    found |= strangers(base, rest // 2, steps, cache)
    return found | one_start(base, rest - rest // 2, steps, cache)


SETS = {
    "strangers": strangers,
    "relatives: tasks from one start": one_start,
    "mix: half checkpoints of up to 10 runs, a quarter each of the others": mix,
}


def base_model(seed: int) -> Mapping[str, Tensor]:
    """The base model of all sets."""
    return training._base(seed, 400)


def _run(base: Mapping[str, Tensor], run: int, cache: Path) -> Paths:
    recipe = Recipe(run, init=run, steps=RUN_STEPS, every=EVERY)
    folder = cache / f"run{run}"
    if not _there(folder / f"task{run}-step{RUN_STEPS:04d}"):
        training._train_adapter(base, recipe, 0, folder)
    return {f"run{run}-{p.name}": p for p in sorted(folder.iterdir())}


def _trained(base: Mapping[str, Tensor], label: str, recipes: list[Recipe], cache: Path) -> Paths:
    for recipe in recipes:
        if not _there(cache / label / f"task{recipe.task}"):
            training._train_adapter(base, recipe, 0, cache / label)
    return {f"{label}-{r.task}": cache / label / f"task{r.task}" for r in recipes}


def _there(folder: Path) -> bool:
    return (folder / "adapter_model.safetensors").is_file()
