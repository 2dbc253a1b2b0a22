"""New tasks learned from data in the subspace of earlier ones, without heads, by all methods.

    python -m experiments.generation.learn --data DATA/text --seeds 0 1 2

One file of results a seed; a method that is in it already is not run again. The first three tasks
come as own LoRAs and are compressed; the other five are learned one after the other (strict Share).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

from experiments.common import variant
from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.generation import script
from experiments.generation.jobs import make_jobs
from experiments.generation.script import Ready
from experiments.generation.settings import LEARN, LEARN_QUICK, settings


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "learn")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    variant.add_options(parser)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    ready = script.begin(chosen)
    for seed in chosen.seeds:
        run(ready, seed, chosen)


def run(ready: Ready, seed: int, chosen: argparse.Namespace) -> None:
    """One seed."""
    tasks = LEARN_QUICK if chosen.quick else LEARN
    found = Run(
        folder=chosen.out,
        order="generation",
        tasks=tasks,
        base=ready.base.name,
        settings=variant.vary(settings(ready.size, seed), chosen, len(tasks)),
        own=variant.own_folder(own_folder(ready, seed, chosen.cache), chosen),
        size=asdict(ready.size),
    )
    run_methods(found, partial(make_jobs, ready, tasks), chosen.methods)


def own_folder(ready: Ready, seed: int, cache: Path) -> Path:
    """Where the own LoRAs of a seed are kept."""
    return cache / "own" / f"{ready.base.name}-{ready.size.learn_steps}-{seed}"


if __name__ == "__main__":
    main()
