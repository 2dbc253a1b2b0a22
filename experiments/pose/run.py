"""All methods on a stream of object categories, for several seeds.

    python -m experiments.pose.run --data DATA --seeds 0 1 2

One file of results a seed and order; a method that is in it already is not run again, so that a
run goes on where it was cut off. ``occluded`` then scores all test sets, and ``summarise`` makes
the tables and figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from experiments.common import variant
from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.pose import script
from experiments.pose.jobs import Base, make_tasks
from experiments.pose.settings import ORDERS, settings
from sharespace.compare import TaskJob


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = script.parser(__doc__, "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    variant.add_options(parser)
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
        settings=variant.vary(settings(size, seed), chosen, len(tasks)),
        own=variant.own_folder(script.own_folder(chosen.cache, size, seed), chosen),
        size=asdict(size),
        store=None
        if variant.is_varied(chosen)
        else script.share_folder(chosen.cache, size, order, seed),
    )
    run_methods(found, jobs, chosen.methods)


if __name__ == "__main__":
    main()
