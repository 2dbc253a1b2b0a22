"""All methods on streams of text tasks, for several seeds and orders.

    python -m experiments.text_stream.run --data DATA/text --seeds 0 1 2

One file of results a seed and order; a method that is in it already is not run again, so that a
run goes on where it was cut off. ``summarise`` makes the table and the figures of them.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import partial

from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.text_stream import script
from experiments.text_stream.jobs import Base, make_jobs
from experiments.text_stream.settings import FULL, ORDERS, QUICK, Size, settings

from sharespace.compare import ComparisonSettings


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--k", type=int, help="another cap of the subspaces")
    parser.add_argument("--phi", type=int, help="another number of new directions a task")
    parser.add_argument("--quick", action="store_true", help="tiny: for tests")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base = script.begin(chosen)
    for seed in chosen.seeds:
        for order in chosen.orders:
            run(base, order, seed, chosen)


def run(base: Base, order: str, seed: int, chosen: argparse.Namespace) -> None:
    """One seed and order."""
    size = QUICK if chosen.quick else FULL
    tasks = ORDERS[order]
    found = Run(
        folder=chosen.out,
        order=order,
        tasks=tasks,
        base=base.name,
        settings=_numbers(size, seed, chosen),
        own=script.own_folder(chosen.cache, base, size, seed),
        size=asdict(size),
        store=chosen.cache / "share" / f"{order}-{seed}",
    )
    jobs = partial(make_jobs, base, chosen.data, tasks, size, seed, chosen.cache)
    run_methods(found, jobs, chosen.methods)


def _numbers(size: Size, seed: int, chosen: argparse.Namespace) -> ComparisonSettings:
    """The settings, but for what the command line changes."""
    changed = {n: getattr(chosen, n) for n in ("k", "phi") if getattr(chosen, n) is not None}
    return replace(settings(size, seed), **changed)


if __name__ == "__main__":
    main()
