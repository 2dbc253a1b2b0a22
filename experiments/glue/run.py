"""Per-task LoRA, Share strict and Share-full on the tasks of a recipe, over several seeds.

    python -m experiments run glue --seeds 0 1 2

One file of results a seed; a method that is in it already is not run again, so that a run goes on
where it was cut off. At the end the table of ``experiments.glue.table`` is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from benchmarks.common import environment

from experiments.glue import table
from experiments.glue.jobs import make, with_seed
from experiments.harness.results import read_if_there, write
from sharespace.compare import Outcome, Workbench, all_methods, method
from sharespace.errors import SharespaceError
from sharespace.learn.training import quiet
from sharespace.stream.recipe import Recipe, check, load_recipe, record, refuse_other

HERE = Path(__file__).parent
METHODS = ("head_only", "per_task_lora", "share_strict", "share_full")


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=HERE / "full.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=list(all_methods()), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    try:
        with quiet():
            recipe = load_recipe(options.recipe)
            check(recipe)
            seeded = [with_seed(recipe, seed) for seed in options.seeds]
            files = [run(each, options.methods, options.out) for each in seeded]
    except SharespaceError as error:
        sys.exit(str(error))
    print(table.text(files))


def run(recipe: Recipe, names: Sequence[str], folder: Path) -> Path:
    """All methods with one seed; the file of their results."""
    file = folder / f"seed-{recipe.seed}.json"
    results = _begin(file, recipe)
    missing = [name for name in names if name not in results["methods"]]
    if not missing:
        return file
    bench = Workbench(*make(recipe))
    for name in missing:
        outcome = method(name)(bench)
        results["methods"][name] = result(outcome)
        write(file, results)
        mean = fmean(outcome.matrix.last.values())
        print(f"seed {recipe.seed} {name}: mean {mean:.2f}, {outcome.seconds:.0f} s", flush=True)
    return file


def result(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON, with what its line in the table needs."""
    return {**outcome.to_record(), "cost": asdict(outcome.cost)}


def _begin(file: Path, recipe: Recipe) -> dict[str, Any]:
    """What is in the file already, or an empty record.

    Raises:
        RecipeError: the file is of another recipe.
    """
    known = read_if_there(file)
    if known is not None:
        refuse_other(recipe, known["recipe"])
        return known
    return {
        "base": recipe.base.text,
        "recipe": record(recipe),
        "environment": {**environment(recipe.seed), "accelerator": _accelerator()},
        "methods": {},
    }


def _accelerator() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
