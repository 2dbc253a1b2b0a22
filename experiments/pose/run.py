"""All methods on a stream of object categories, for several seeds.

    python -m experiments.pose.run --data DATA --seeds 0 1 2

One file of results a seed and order; a method that is in it already is not run again, so that a
run goes on where it was cut off. ``occluded`` then scores all test sets, and ``summarise`` makes
the tables and figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace

from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.pose import script
from experiments.pose.jobs import Base, make_tasks
from experiments.pose.settings import ORDERS, Size, settings
from sharespace.baselines import Settings, TaskJob


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = script.parser(__doc__, "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--k", type=int, help="another cap of the subspaces")
    parser.add_argument("--p", type=int, help="another pseudo-rank")
    parser.add_argument("--phi", type=int, help="another number of new directions a task")
    parser.add_argument("--core-rate", type=float, help="another learning rate of the cores")
    parser.add_argument("--lora", type=float, help="another learning rate of LoRA")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    base = script.begin(chosen)
    for seed in chosen.seeds:
        for order in chosen.orders:
            run(base, order, seed, chosen)


def run(base: Base, order: str, seed: int, chosen: argparse.Namespace) -> None:
    """One seed and order."""
    size = script.size_of(chosen)
    tasks = script.tasks_of(order, chosen)

    def jobs() -> list[TaskJob]:
        return [task.job() for task in make_tasks(base, tasks, size, seed)]

    found = Run(
        folder=chosen.out,
        order=order,
        tasks=tasks,
        base=base.name,
        settings=_numbers(size, seed, chosen),
        own=script.own_folder(chosen.cache, size, seed),
        size=asdict(size),
        store=None if _varied(chosen) else script.share_folder(chosen.cache, size, order, seed),
    )
    run_methods(found, jobs, chosen.methods)


def _varied(chosen: argparse.Namespace) -> bool:
    """True where the Share model is not the one that ``occluded`` looks for."""
    changed = (chosen.k, chosen.p, chosen.phi, chosen.core_rate, chosen.lora)
    return any(v is not None for v in changed)


def _numbers(size: Size, seed: int, chosen: argparse.Namespace) -> Settings:
    """The settings, but for what the command line changes."""
    found = settings(size, seed)
    changed = {n: getattr(chosen, n) for n in ("k", "p", "phi") if getattr(chosen, n) is not None}
    if chosen.core_rate is not None:
        rate = chosen.core_rate
        changed["coefficients"] = replace(found.coefficients, learning_rate=rate)
    if chosen.lora is not None:
        changed["lora"] = replace(found.lora, learning_rate=chosen.lora)
    return replace(found, **changed)


if __name__ == "__main__":
    main()
