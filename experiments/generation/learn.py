"""New tasks learned from data in the subspace of earlier ones, without heads, by all methods.

    python -m experiments.generation.learn --data DATA/text --seeds 0 1 2

One file of results a seed; a method that is in it already is not run again. The first three tasks
come as own LoRAs and are compressed; the other five are learned one after the other (strict Share).
``--rates`` tries learning rates of the core on held-out training examples instead, after a run.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import environment
from experiments.common import own as own_files
from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods, write
from experiments.generation import script
from experiments.generation.jobs import make_jobs
from experiments.generation.script import Ready
from experiments.generation.settings import INITIAL, LEARN, LEARN_QUICK, settings

from sharespace import Share
from sharespace.baselines import Workbench
from sharespace.baselines.shared import build, learn
from sharespace.nn import release

HELD_OUT = 64
RATED = ("banking77-1", "clinc150-1")
"""Tasks that the core's rate is tried on."""


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "learn")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--rates", nargs="+", type=float, help="of the core, tried on held-out examples"
    )
    return parser.parse_args()


def main() -> None:
    chosen = options()
    ready = script.begin(chosen)
    if chosen.rates:
        rates(ready, chosen)
        return
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
        settings=settings(ready.size, seed),
        own=_own_folder(ready, seed, chosen.cache),
        size=asdict(ready.size),
    )
    run_methods(found, partial(make_jobs, ready, tasks), chosen.methods)


def rates(ready: Ready, chosen: argparse.Namespace) -> None:
    """Percent of held-out training examples of two new tasks, by the core's rate. Seed 0.

    The subspace is that of the first tasks' own LoRAs, which ``run`` left in the cache.
    """
    numbers = settings(ready.size, 0)
    own = own_files.load(_own_folder(ready, 0, chosen.cache))
    bench = Workbench(make_jobs(ready, RATED, held_out=HELD_OUT), numbers)
    share = build(bench, {name: own[name] for name in LEARN[:INITIAL]})
    found: dict[str, Any] = {}
    for rate in chosen.rates:
        coefficients = replace(numbers.coefficients, learning_rate=rate)
        bench.settings = replace(numbers, coefficients=coefficients)
        found[str(rate)] = {name: _learned(bench, share, name) for name in RATED}
        print(f"core at {rate}: {found[str(rate)]}", flush=True)
        write(
            chosen.out.parent / "rates.json",
            {"environment": environment(0), "held_out": HELD_OUT, "scores": found},
        )


def _own_folder(ready: Ready, seed: int, cache: Path) -> Path:
    return cache / "own" / f"{ready.base.name}-{ready.size.learn_steps}-{seed}"


def _learned(bench: Workbench, share: Share, name: str) -> float:
    found = learn(bench, share, name, phi=bench.settings.phi, start="zero")
    score = bench.score(name, found.model)
    release(found.model)
    return score


if __name__ == "__main__":
    main()
