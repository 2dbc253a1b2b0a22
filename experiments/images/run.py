"""All methods on streams of image tasks, for several seeds.

    python -m experiments.images.run --data DATA --base mobilenet --seeds 0 1 2
    python -m experiments.images.run --data DATA --base vit --seeds 0

One file of results a base, stream and seed; a method that is in it already is not run again, so
that a run goes on where it was cut off. ``summarise`` makes the tables and figures of them.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial

from experiments.common import variant
from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.images import script
from experiments.images.base import Base
from experiments.images.jobs import make_jobs
from experiments.images.settings import STREAMS, Size


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--streams", nargs="+", help="default: all of the base")
    variant.add_options(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    chosen = parser.parse_args()
    known = list(STREAMS[chosen.base])
    chosen.streams = chosen.streams or known
    if not set(chosen.streams) <= set(known):
        parser.error(f"--streams of {chosen.base}: {', '.join(known)}")
    return chosen


def main() -> None:
    chosen = options()
    base, size = script.begin(chosen)
    for seed in chosen.seeds:
        for stream in chosen.streams:
            run(base, size, stream, seed, chosen)


def run(base: Base, size: Size, stream: str, seed: int, chosen: argparse.Namespace) -> None:
    """One stream and seed."""
    tasks = STREAMS[chosen.base][stream]
    numbers = script.numbers(base, chosen.base, size, seed, len(tasks))
    found = Run(
        folder=chosen.out / chosen.base,
        order=stream,
        tasks=tasks,
        base=base.name,
        settings=variant.vary(numbers, chosen, len(tasks)),
        own=variant.own_folder(script.own_folder(chosen.cache, base, size, seed), chosen),
        size=asdict(size),
        store=None
        if variant.is_varied(chosen)
        else chosen.cache / "share" / f"{chosen.base}-{stream}-{seed}",
    )
    images = chosen.data / script.IMAGES
    jobs = partial(make_jobs, base, images, tasks, size, seed, chosen.cache / "features")
    run_methods(found, jobs, chosen.methods)


if __name__ == "__main__":
    main()
