"""New tasks learned from data in the subspace of earlier ones, without heads, by all methods.

    python -m experiments.generation.learn --data DATA/text --seeds 0 1 2

One file of results a seed; a method that is in it already is not run again. The first three tasks
come as own LoRAs and are compressed; the other five are learned one after the other (strict Share).
``--rates`` tries other learning rates on held-out training examples instead, and prints the scores.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import partial

from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.generation import script
from experiments.generation.jobs import make_jobs
from experiments.generation.script import Ready
from experiments.generation.settings import INITIAL, LEARN, LEARN_QUICK, settings

from sharespace import Share
from sharespace.baselines import Workbench
from sharespace.baselines.own import own_lora
from sharespace.baselines.shared import build, learn
from sharespace.nn import release

HELD_OUT = 64


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "learn")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, help="of the core; nothing is written")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    ready = script.begin(chosen)
    if chosen.rates:
        rates(ready, chosen.rates)
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
        own=chosen.cache / "own" / f"{ready.base.name}-{ready.size.learn_steps}-{seed}",
        size=asdict(ready.size),
    )
    run_methods(found, partial(make_jobs, ready, tasks), chosen.methods)


def rates(ready: Ready, tried: list[float]) -> None:
    """Percent of held-out examples, of the tasks that are learned in the subspace. Seed 0."""
    numbers = settings(ready.size, 0)
    jobs = make_jobs(ready, LEARN, held_out=HELD_OUT)
    bench = Workbench(jobs, numbers)
    share = build(bench, {name: own_lora(bench, name) for name in LEARN[:INITIAL]})
    for rate in tried:
        coefficients = replace(numbers.coefficients, learning_rate=rate)
        bench.settings = replace(numbers, coefficients=coefficients)
        found = {name: _learned(bench, share, name) for name in LEARN[INITIAL:]}
        print(f"core at {rate}: {_mean(found):.1f} {found}", flush=True)
    own = {name: own_lora(bench, name).score for name in LEARN[INITIAL:]}
    print(f"own LoRA: {_mean(own):.1f} {own}", flush=True)


def _learned(bench: Workbench, share: Share, name: str) -> float:
    found = learn(bench, share, name, phi=bench.settings.phi, start="zero")
    score = bench.score(name, found.model)
    release(found.model)
    return score


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


if __name__ == "__main__":
    main()
